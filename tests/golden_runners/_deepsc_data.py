"""DeepSC's data: collators, bins, tables of genes, normalisation, reference mapping."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from golden_runners._compare import close
from golden_runners._deepsc_models import build, files, tolerance
from scgpt_tools.metrics.mapping import vote
from scgpt_tools.models.deepsc import DataCollator, InferenceCollator, build_gene_ids_for_dataset, build_vocab_from_csv
from scgpt_tools.models.deepsc.vocabulary import expressed_cells, matching_report, name2col
from scgpt_tools.models.reference import ReferenceIndex
from scgpt_tools.pp import preprocess
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.gene_tables import match_symbols, merge_symbols
from scgpt_tools.tokens.linear_bins import linear_bins, log_bins, three_bins


def cells_in(inputs: dict) -> list[dict]:
    numbers = sorted({int(name.split(".")[0].removeprefix("cell")) for name in inputs})
    parts = ("genes", "expressions", "cell_type_id")
    return [{part: inputs[f"cell{n}.{part}"] for part in parts if f"cell{n}.{part}" in inputs} for n in numbers]


def run_collator(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    arguments = dict(case["constructor_args"])
    if arguments.get("dynamic_mask_probabilities"):
        arguments["dynamic_mask_probabilities"] = {
            int(k): v for k, v in arguments["dynamic_mask_probabilities"].items()
        }
    collator = DataCollator(**arguments)
    for name, value in case["expected"].items():
        assert getattr(collator, name) == value
    # The mask may be taken as given, where the draw differs.
    found = collator(cells_in(inputs), mask=expected["mask"].bool())
    for name, tensor in expected.items():
        close(found[name], tensor.bool() if name == "mask" else tensor, tolerance(case, name), name)
    if case["call_args"].get("torch_manual_seed") is None:
        assert torch.equal(collator(cells_in(inputs))["mask"], expected["mask"].bool())


def run_bins(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    bins = case["constructor_args"]["num_bins"]

    def linear(values: torch.Tensor) -> torch.Tensor:
        return linear_bins(values[None], torch.ones(1, len(values), dtype=torch.bool), bins)[0]

    kinds = {"linear": linear, "log": lambda values: log_bins(values, bins), "three": three_bins}
    for name, tensor in expected.items():
        kind, _, what = name.partition("_")
        values = inputs["x"].double() if what == "float64" else inputs[what or "x"]
        close(kinds[kind](values), tensor, "exact", name)


def run_alignment(folder: Path, case: dict) -> None:
    given = case["call_args"]
    kind = run_table if "database_rows" in given else run_vocabulary if "dataset_genes" in given else run_cells
    kind(folder, case)


def run_vocabulary(folder: Path, case: dict) -> None:
    _, _, outputs = files(folder, case)
    given, expected = case["call_args"], case["expected"]
    with TemporaryDirectory() as place:
        path = Path(place) / "gene_map.csv"
        pd.DataFrame(given["rows"], columns=["feature_name", "id"]).to_csv(path, index=False)
        ids, names, pad, pad_id = build_vocab_from_csv(path, given["special_tokens"])
    assert ids == expected["vocab2id"]
    assert {str(number): name for number, name in names.items()} == expected["id2vocab"]
    assert (pad, pad_id) == (expected["pad_token"], expected["pad_id"])
    genes = given["dataset_genes"]
    close(build_gene_ids_for_dataset(genes, ids, pad), outputs["gene_ids"], "exact", "ids")
    report = matching_report(genes, ids)
    assert {name: report[name] for name in ("matched", "total", "vocab_size")} == {
        name: expected[name] for name in ("matched", "total", "vocab_size")
    }
    assert name2col(genes) == expected["name2col"]


def run_cells(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    given = case["call_args"]
    rows, labels = [tuple(row) for row in given["rows"]], given["cell_types"]
    cells, ids = expressed_cells(inputs["X"].numpy(), given["var_names"], rows, labels=labels, type2id=given["type2id"])
    local, _ = expressed_cells(inputs["X"].numpy(), given["var_names"], rows, labels=labels)
    close(ids, expected["sorted_ids"], "exact", "ids")
    for number, (cell, own) in enumerate(zip(cells, local, strict=True)):
        for name in ("genes", "expressions", "cell_type_id"):
            close(cell[name], expected[f"cell{number}.{name}"], tolerance(case, name), f"cell{number}.{name}")
        assert own["cell_type_id"] == int(expected[f"cell{number}.local_cell_type_id"])


def run_table(folder: Path, case: dict) -> None:
    given, expected = case["call_args"], case["expected"]
    database = pd.DataFrame(given["database_rows"], columns=given["database_columns"])
    found = [match_symbols(given[f"source_{n}_genes"], database) for n in (1, 2)]
    for n, table in enumerate(found, start=1):
        assert table.to_dict("records") == expected[f"matched_{n}"]
    merged = merge_symbols(*found, labels=("occur in cellxgene", "occur in 3ca"))
    assert merged.astype(str).to_dict("records") == expected["merged"]


def run_normalize(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    least = case["call_args"]["min_genes"]

    def table(counts: torch.Tensor) -> AnnData:
        return AnnData(counts.numpy())

    tp10k = preprocess(table(inputs["counts"]), min_cell_genes=least, target_sum=1e4, bins=None)
    cpm = preprocess(table(inputs["counts"]), target_sum=1e6, log1p=False, bins=None)
    plain = preprocess(table(inputs["counts_for_plain_log1p"]), min_cell_genes=200, target_sum=None, bins=None)
    close(tp10k.layers["X_log1p"], expected["tp10k_log1p"], tolerance(case, ""), "TP10K")
    close(cpm.layers["X_normed"], expected["cpm_no_log"], tolerance(case, ""), "CPM")
    close(plain.layers["X_log1p"], expected["plain_log1p"], tolerance(case, ""), "log1p")


def run_mapping(folder: Path, case: dict) -> None:
    (run_neighbours if "ref_labels" in case["call_args"] else run_embedding)(folder, case)


def run_embedding(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    model, given = build(case, weights), case["call_args"]
    cells = cells_in(inputs)
    collator = InferenceCollator(
        num_bins=given["num_bins"],
        num_genes=given["num_genes"],
        max_length=given["max_length"],
        cell_type="cell_type_id" in cells[0],
    )
    found = collator(cells)
    for name, tensor in expected.items():
        if name.startswith("batch."):
            close(found[name.removeprefix("batch.")], tensor, tolerance(case, name), name)
    for kind, pooling in (("cls", "cls"), ("avg", "mean")):
        parts = []
        for start in range(0, len(cells), given["batch_size"]):
            batch = collator(cells[start : start + given["batch_size"]])
            tokens = TokenBatch(
                genes=batch["gene"],
                values=batch["masked_continuous_expr"],
                bins=batch["masked_discrete_expr"],
                mask=batch["gene"] != 0,
            )
            with torch.no_grad():
                parts.append(model.cell_model.embed_cells(tokens, pooling=pooling))
        # Divided on a CPU, a minibatch would have less padding, which DeepSC sees.
        close(torch.cat(parts), expected[f"embedding_{kind}"], tolerance(case, kind), kind)


def run_neighbours(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    given = case["call_args"]
    classes, codes = np.unique(given["ref_labels"], return_inverse=True)
    index = ReferenceIndex(inputs["ref"].numpy(), codes.astype(np.int64), tuple(classes.tolist()))
    found = index.search(inputs["query"].numpy(), given["k"])
    close(found.rows, expected["neighbors"], "exact", "neighbours")
    close(-np.sqrt(found.distances), expected["similarity"], tolerance(case, ""), "similarity")
    ballot = vote(codes[found.rows], len(classes), ties="first")
    assert [classes[number] for number in ballot.winner] == case["expected"]["predicted"]


VARIANTS = {
    "collator": run_collator,
    "discretize": run_bins,
    "alignment": run_alignment,
    "normalize": run_normalize,
    "reference_mapping": run_mapping,
}
