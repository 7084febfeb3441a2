"""scGenePT: networks, predictions, tables of texts, checkpoints, training and evaluation, through the public functions."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from golden_runners._compare import close, load
from scgpt_tools.data.gene_embeddings import GeneEmbeddings
from scgpt_tools.metrics import perturbation_gears as gears
from scgpt_tools.metrics.perturbation_scgenept import scgenept_scores
from scgpt_tools.models import CellModel, parse_model_type
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.nn.heads import sample_zeros
from scgpt_tools.nn.losses import masked_mse
from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.perturbations import condition_genes
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.train.optim import make_optimizer, make_schedule
from scgpt_tools.vocabulary import Vocabulary


def run(folder: Path, case: dict) -> None:
    done = [check(folder, case) for check in CHECKS]
    assert any(done), "nothing was checked"


def vocabulary(case: dict) -> Vocabulary:
    return Vocabulary(case["vocab"])


def network(folder: Path, case: dict) -> CellModel:
    """The model of a case, from a file as it is released: a bare state dict of any name."""
    weights = load(folder / "weights.safetensors")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "best_model_gpt3.5_ada_rnd_seed_42.pt"
        torch.save(weights, file)
        settings = {"nheads": case["constructor"]["nhead"]}
        model = CellModel.from_pretrained(file, vocabulary=vocabulary(case), settings=settings, device="cpu")
        check_round_trip(model, weights, Path(place))
    return model


def check_round_trip(model: CellModel, weights: dict, place: Path) -> None:
    """What we write has the original's names and numbers, and reads back the same; so does our own format."""
    spelling = "fused" if any("Wqkv" in name for name in weights) else "torch"
    exported = model.export(place / "exported", attention_names=spelling)
    written = read_contents(exported / "best_model.pt").weights
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], tensor.to(written[name].dtype)) for name, tensor in weights.items())
    for folder in (exported, model.save(place / "native")):
        again = CellModel.from_pretrained(folder, device="cpu")
        assert again.config == model.config
        assert again.checksum == model.checksum


def has(case: dict, *words: str) -> bool:
    return any(word in exercise for exercise in case["exercises"] for word in words)


# Networks -------------------------------------------------------------------------------------------------------------


def tokens(inputs: dict, prefix: str = "forward") -> TokenBatch:
    return TokenBatch(
        genes=inputs[f"{prefix}.src"],
        values=inputs[f"{prefix}.values"],
        mask=~inputs[f"{prefix}.src_key_padding_mask"],
        perturbed=inputs[f"{prefix}.input_pert_flags"],
    )


def check_forward(folder: Path, case: dict) -> bool:
    if not has(case, "forward"):
        return False
    model, inputs, expected = (
        network(folder, case),
        load(folder / "inputs.safetensors"),
        load(folder / "outputs.safetensors"),
    )
    batch = tokens(inputs)
    model.train("train_mode.mlm_output" in expected)
    for attention in ("sdpa", "varlen", "eager"):
        with torch.no_grad():
            output = model(batch, ("expression",), attention=attention)
        for name, wanted in expected.items():
            call, _, part = name.partition(".")
            if part.startswith("mlm_output") and call in ("forward", "train_mode"):
                where = batch.mask
                close(output["expression"][where], wanted[where], case["tolerance"], f"{attention} {name}")
            elif part == "mlm_zero_probs":
                close(output["expression_nonzero"], wanted, case["tolerance"], name)
    if "sampled.mlm_output" in expected:
        values, drawn = output["expression"], expected["sampled.mlm_output"]
        close(torch.where(drawn == 0, drawn, values), drawn, case["tolerance"], "sampled")
        ours = sample_zeros(values, output["expression_nonzero"], torch.Generator().manual_seed(0))
        assert ((ours == 0) | (ours == values)).all()
    return True


# Predictions ----------------------------------------------------------------------------------------------------------


def check_predictions(folder: Path, case: dict) -> bool:
    calls = [call for call in case.get("calls") or [] if call.get("method") == "pred_perturb"]
    if not calls:
        return False
    model, inputs, expected = (
        network(folder, case),
        load(folder / "inputs.safetensors"),
        load(folder / "outputs.safetensors"),
    )
    for call in calls:
        ids = inputs["pred.gene_ids"]
        if call["kwargs"].get("pert_type", "intrinsic") == "intrinsic":
            values, flags = inputs["pred.x"].view(-1, len(ids), 2).unbind(-1)
        else:
            values, flags = inputs["pred.ctrl_gene_expression"], inputs["pred.pert_vector"]
        taken = (
            values.ne(0).any(dim=0) if call["kwargs"]["include_zero_gene"] == "batch-wise" else torch.ones(len(ids)) > 0
        )
        found = torch.zeros_like(values)
        found[:, taken] = predicted(model, ids[taken], values[:, taken], flags[:, taken].long())
        close(found, expected[call["name"]], case["tolerance"], call["name"])
    return True


def predicted(model: CellModel, ids: torch.Tensor, values: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
    batch = TokenBatch(
        genes=ids.expand(len(values), -1).contiguous(),
        values=values.contiguous(),
        mask=torch.ones(values.shape, dtype=torch.bool),
        perturbed=flags.contiguous(),
    )
    with torch.inference_mode():
        return model.eval()(batch, ("expression",))["expression"]


def check_controls(folder: Path, case: dict) -> bool:
    """From a pool of controls: each cell is predicted by the public function, and drawn ones repeat."""
    calls = [call for call in case.get("calls") or [] if call.get("method") == "pred_perturb_from_ctrl"]
    if not calls:
        return False
    model, inputs, expected = (
        network(folder, case),
        load(folder / "inputs.safetensors"),
        load(folder / "outputs.safetensors"),
    )
    X = inputs["ctrl.X"].numpy()
    for call in calls:
        asked, name = call["kwargs"], call["name"]
        pool = len(X) if asked["pool_size"] is None else asked["pool_size"]
        rows = np.random.RandomState(call["numpy_global_seed"]).randint(0, len(X), pool)
        recorded = inputs.get(f"{name}.sampled_rows", inputs.get("ctrl.sampled_rows"))
        np.testing.assert_array_equal(rows, recorded)
        found = torch.from_numpy(from_controls(model, X, case["dataset_genes"], asked["perturbation"])[rows])
        found = found.mean(dim=0, keepdim=True) if asked["return_mean"] else found[:, None]
        close(found, expected[name], case["tolerance"], name)
    return True


def from_controls(model: CellModel, X: np.ndarray, genes: list[str], perturbation: str) -> np.ndarray:
    if not condition_genes(perturbation):
        # Nothing is perturbed: that is no prediction of a perturbation, and the network is asked as it is.
        ids = torch.from_numpy(model.vocabulary.ids(genes))
        ids = torch.where(ids < 0, model.vocabulary.pad_id, ids)
        return predicted(model, ids, torch.from_numpy(X), torch.zeros(X.shape, dtype=torch.int64)).numpy()
    adata = ad.AnnData(sp.csr_matrix(X), var=pd.DataFrame(index=genes))
    before = adata.copy()
    sct.tl.predict_perturbation(
        adata, perturbation, model, condition_key=None, unknown="pad", batch_size=3, show_progress=False
    )
    assert (adata.X != before.X).nnz == 0
    return adata.layers["predicted"]


# Tables and starts ----------------------------------------------------------------------------------------------------


def check_tables(folder: Path, case: dict) -> bool:
    if case.get("embed_dim") is None:
        return False
    expected = load(folder / "outputs.safetensors")
    for number, call in enumerate(case["calls"]):
        rng = np.random.RandomState(call["numpy_global_seed"])
        sources = parse_model_type(call["model_type"], compat="upstream").sources
        assert sources.keys() == {name for name, key in (("text", "genept"), ("go", "go")) if call[key] is not None}
        for name, source in sources.items():
            recorded = call["genept" if name == "text" else "go"]
            found = GeneEmbeddings.read(folder, source=source)
            with_text = found.coverage(case["dataset_genes"]).query("embedded").index.tolist()
            assert with_text == recorded["mapped_genes"]
            assert found.width == recorded["dim"]
            rows = found.rows(vocabulary(case), rng=rng, genes=case["dataset_genes"], compat="upstream")
            key = f"{number}.{'genept' if name == 'text' else 'go'}"
            close(rows, expected[key], case["tolerance"], key)
            corrected = found.rows(vocabulary(case))
            assert not corrected[vocabulary(case).pad_id].any()
    return True


def check_starts(folder: Path, case: dict) -> bool:
    """Which tensors of scGPT a new model takes, by the original's names, and that no other changes."""
    if not has(case, "prefix filter"):
        return False
    # The recorded file has one tensor of a head that has three, which the original does not read.
    weights = {name: found for name, found in load(folder / "weights.safetensors").items() if "mvc_decoder" not in name}
    heads = case["calls"][0]["constructor"]["nhead"]
    with tempfile.TemporaryDirectory() as place:
        torch.save(weights, Path(place) / "best_model.pt")
        base = CellModel.from_pretrained(
            Path(place) / "best_model.pt", vocabulary=vocabulary(case), settings={"nheads": heads}, device="cpu"
        )
        for call in case["calls"]:
            kind = parse_model_type(call["model_type"], compat="upstream")
            width = call["constructor"]["genept_emb_size"] or call["constructor"]["go_emb_size"] or 4
            texts = {gene: np.linspace(0, 1, width) + i for i, gene in enumerate(case["vocab"][:-3])}
            model = sct.models.to_scgenept(base, kind, dict.fromkeys(kind.sources, texts) or None, missing="draw")
            written = read_contents(model.export(Path(place) / call["model_type"]) / "best_model.pt").weights
            plain = {name.replace("Wqkv.", "in_proj_"): tensor for name, tensor in weights.items()}
            for name in call["loaded_keys"]:
                assert torch.equal(written[name], plain[name]), name
            assert set(call["left_untouched"]) == set(written) - set(call["loaded_keys"])
            same = {
                name for name in call["left_untouched"] if name in plain and written[name].shape == plain[name].shape
            }
            assert not any(torch.equal(written[name], plain[name]) for name in same if len(written[name].unique()) > 1)
    return True


# Training and evaluation ----------------------------------------------------------------------------------------------


def check_training(folder: Path, case: dict) -> bool:
    if "training" not in case:
        return False
    model, inputs, expected = (
        network(folder, case).train(),
        load(folder / "inputs.safetensors"),
        load(folder / "outputs.safetensors"),
    )
    how, ids, tolerance = case["training"], inputs["gene_ids"], case["tolerance"]
    config = sct.train.FitConfig(lr=how["lr"], schedule="step", step_factor=0.9, clip=how["clip_norm"])
    n_batches = how["batches_per_epoch"]
    optimizer = make_optimizer(model, config)
    scheduler = make_schedule(optimizer, config, steps=how["epochs"] * n_batches, steps_per_epoch=n_batches)
    losses, norms = [], []
    for _ in range(how["epochs"]):
        for number in range(n_batches):
            values, flags = inputs[f"batch{number}.x"].view(-1, len(ids), 2).unbind(-1)
            batch = TokenBatch(
                genes=ids.expand(len(values), -1).contiguous(),
                values=values.contiguous(),
                mask=torch.ones(values.shape, dtype=torch.bool),
                perturbed=flags.long().contiguous(),
            )
            loss = masked_mse(model(batch, ("expression",))["expression"], inputs[f"batch{number}.y"], batch.mask)
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip))
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
    for name, found in (("losses", losses), ("grad_norms", norms)):
        key = next(key for key in expected if key.startswith(name.split("_")[0]))
        close(torch.stack(found).flatten(), expected[key].flatten().to(found[0].dtype), tolerance, name)
    with tempfile.TemporaryDirectory() as place:
        after = read_contents(model.export(Path(place) / "after") / "best_model.pt").weights
        after = {name: tensor.clone() for name, tensor in after.items()}
    before, width = load(folder / "weights.safetensors"), model.dim
    for name, found in after.items():
        ours, theirs = found, expected[f"final.{name}"].to(found.dtype)
        if name.endswith("in_proj_bias"):
            ours, theirs = (torch.cat((part[:width], part[2 * width :])) for part in (ours, theirs))
        close(ours, theirs, tolerance, name)
        if name not in case["changed_keys"]:
            assert torch.equal(found, before[name].to(found.dtype)), name
    return True


def check_batches(folder: Path, case: dict) -> bool:
    """Assembly of minibatches from the genes that the original drew, and our own draws."""
    if not has(case, "get_batch_data"):
        return False
    inputs, expected = load(folder / "inputs.safetensors"), load(folder / "outputs.safetensors")
    genes, known = case["dataset_genes"], vocabulary(case)
    values, flags = (part.numpy() for part in inputs["x"].view(-1, len(genes), 2).unbind(-1))
    targets = inputs["y"].numpy()
    perturbed = [tuple(genes[column] for column in np.flatnonzero(row)) for row in flags]
    for number, call in enumerate(case["calls"]):
        recorded = {name.partition(".")[2]: found for name, found in expected.items() if name.startswith(f"{number}.")}
        columns = recorded["gene_columns"].numpy()
        draws = call["max_seq_len"] < len(genes) and len(columns) == call["max_seq_len"]
        how = "sample" if draws else "shared"
        batch, ours = assembled(known, genes, call, values, perturbed, targets, overflow=how)
        if not draws:
            np.testing.assert_array_equal(ours[0], columns)
            check_batch(batch, recorded)
            continue
        # Of more genes some are drawn: as many, from those selected, each with its own values and flags.
        assert ours.shape == (len(values), len(columns))
        selected = np.flatnonzero((values > 0).any(axis=0) | flags.any(axis=0).astype(bool))
        assert np.isin(ours, selected if call["include_zero_gene"] == "batch-wise" else np.arange(len(genes))).all()
        np.testing.assert_array_equal(batch.values, np.take_along_axis(values, ours, axis=1))
        np.testing.assert_array_equal(batch.perturbed, np.take_along_axis(flags, ours, axis=1))
        np.testing.assert_array_equal(batch.target, np.take_along_axis(targets, ours, axis=1))
        # And the genes that the original drew make up the recorded minibatch.
        taken = [genes[column] for column in columns]
        alone = [tuple(gene for gene in own if gene in taken) for own in perturbed]
        everything = {**call, "include_zero_gene": "all", "max_seq_len": len(genes)}
        batch, _ = assembled(known, taken, everything, values[:, columns], alone, targets[:, columns])
        check_batch(batch, recorded)
    return True


def assembled(known: Vocabulary, genes: list[str], call: dict, values, perturbed, targets, *, overflow="shared"):
    config = sct.models.FAMILIES["scgenept"](known).tokenizer
    reading = replace(
        config, genes=call["include_zero_gene"], length=call["max_seq_len"], unknown="pad", overflow=overflow
    )
    features = FeatureTable.from_var(pd.DataFrame(index=genes), known, duplicates="all")
    screen = ScreenTokens.match(features, genes, Tokenizer(reading, known))
    keys = np.arange(len(values), dtype=np.uint64)
    return screen.batch(sp.csr_matrix(values), perturbed, keys, seed=0, targets=sp.csr_matrix(targets))


def check_batch(batch: TokenBatch, recorded: dict) -> None:
    np.testing.assert_array_equal(batch.genes, recorded["mapped_input_gene_ids"])
    np.testing.assert_array_equal(batch.values, recorded["input_values"])
    np.testing.assert_array_equal(batch.perturbed, recorded["input_pert_flags"])
    np.testing.assert_array_equal(batch.target, recorded["target_values"])


def check_evaluation(folder: Path, case: dict) -> bool:
    if not has(case, "eval loop"):
        return False
    model, inputs, expected = (
        network(folder, case),
        load(folder / "inputs.safetensors"),
        load(folder / "outputs.safetensors"),
    )
    ids, tolerance, names = inputs["gene_ids"], case["tolerance"], case["var_names"]
    conditions = np.array([name for batch in case["batches"] for name in batch["pert"]])
    found = []
    for number in range(len(case["batches"])):
        values, flags = inputs[f"batch{number}.x"].view(-1, len(ids), 2).unbind(-1)
        taken = values.ne(0).any(dim=0) if case["include_zero_gene"] == "batch-wise" else torch.ones(len(ids)) > 0
        batch = torch.zeros_like(values)
        batch[:, taken] = predicted(model, ids[taken], values[:, taken], flags[:, taken].long())
        found.append(batch)
    ours = torch.cat(found)
    truth, de = (torch.cat([inputs[f"batch{n}.{key}"] for n in range(len(found))]) for key in ("y", "de_idx"))
    for name, cells in (("pred", ours), ("truth", truth)):
        close(cells, expected[name], tolerance, name)
        close(cells.gather(1, de), expected[f"{name}_de"], tolerance, f"{name}_de")
    column = {name: place for place, name in enumerate(names)}
    test = gears.HeldOutCells.from_cells(ours.double().numpy(), truth.double().numpy(), conditions)
    lists = {what: [] for what in ("rank_genes_groups_cov_all", "top_non_dropout_de_20")}
    for what, own in lists.items():
        own.extend(
            np.array([column[gene] for gene in case["uns"][what][case["condition_name"][name]]])
            for name in test.conditions
        )
    control = inputs["adata.X"].numpy()[np.array(case["obs_condition"]) == "ctrl"].mean(axis=0)
    for part, groups in case["subgroup"].items():
        scores = scgenept_scores(
            test,
            control,
            np.stack(lists["rank_genes_groups_cov_all"]),
            lists["top_non_dropout_de_20"],
            groups,
            part=part.partition("_")[0],
        )
        means = {**scores.means, **scores.groups}
        recorded = {name.partition("/")[2]: value for name, value in expected.items() if name.startswith("metric/")}
        assert means.keys() == recorded.keys()
        for name, value in recorded.items():
            close(means[name], value, tolerance, name)
        for name, value in expected.items():
            if name.startswith("pert/"):
                _, condition, score = name.split("/")
                close(scores.conditions[condition][score], value, tolerance, name)
        with tempfile.TemporaryDirectory() as place:
            detailed = json.loads((scores.save(place) / "test_metrics_detailed.json").read_text())
            assert {type(detailed[name]) for name in scores.groups} == {str}
    return True


RUNNERS = {"scGenePT": run}
CHECKS = (
    check_forward,
    check_predictions,
    check_controls,
    check_tables,
    check_starts,
    check_training,
    check_batches,
    check_evaluation,
)
