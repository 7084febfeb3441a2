"""Runners of the GEARS cases on data, graphs and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from golden_runners._gears import arrays, matrix, read
from scgpt_tools.objectives.gears import autofocus_direction
from scgpt_tools.screens.graphs import coexpression_graph, ontology_graph
from scgpt_tools.screens.pairing import pair_controls_gears
from scgpt_tools.screens.ranking import gears_lists, gears_names, rank_genes
from scgpt_tools.screens.split_options import SplitOptions
from scgpt_tools.screens.splits import split_conditions
from scgpt_tools.tokens.perturbations import condition_genes, expressible, perturbed_genes

OPTIONS = {
    "train_gene_set_size": "train_genes",
    "combo_seen2_train_frac": "train_seen2",
    "combo_single_split_test_set_fraction": "test_fraction",
}


def split_of(run: dict, conditions: list[str]):
    """Translate GEARS' arguments; names that do not occur change nothing there and are refused here."""
    params = dict(run["params"])
    genes = set(perturbed_genes(conditions))
    options = {OPTIONS[name]: params.pop(name) for name in list(params) if name in OPTIONS}
    for name in ("test_perts", "test_pert_genes"):
        if (named := params.pop(name, None)) is not None:
            names = named.split("_") if isinstance(named, str) else named
            field = "test_conditions" if run["split"] == "combo_seen2" and name == "test_perts" else "test_genes"
            known = set(conditions) if field == "test_conditions" else genes
            options[field] = tuple(item for item in names if item in known)
    options["only_test_genes"] = bool(params.pop("only_test_set_perts", False))
    assert not params, f"unknown parameters of a split: {params}"
    return split_conditions(conditions, run["split"], options=SplitOptions(rng=run["seed"], **options))


def run_splits(folder: Path, case: dict) -> None:
    found = read(folder / "splits.json")
    for run in found["runs"]:
        conditions = found[run["conditions"]]
        if "error" in run:
            with pytest.raises(ValueError):
                split_of(run, conditions)
            continue
        split = split_of(run, conditions)
        for part in ("train", "val", "test", "dropped"):
            assert set(getattr(split, part)) == set(run["assignment"].get(part, [])), (run["split"], part)
        for part, groups in run.get("subgroup", {}).items():
            ours = split.subgroups[part.removesuffix("_subgroup")]
            assert {name: set(group) for name, group in ours.items()} == {k: set(v) for k, v in groups.items()}


def run_de(folder: Path, case: dict) -> None:
    found, expected = arrays(folder / "input.npz"), arrays(folder / "expected.npz")
    conditions, kinds, cells = found["condition"], found["cell_type"], matrix(found)
    names = gears_names(conditions, kinds)
    for key, columns in read(folder / "expected.json").items():
        condition, kind = key.split("|")
        first = int(np.flatnonzero((conditions == condition) & (kinds == kind))[0])
        assert {name: names[name].tolist()[first] for name in columns} == columns
    ranking = rank_genes(cells, conditions, contexts=kinds)
    lists = gears_lists(cells, conditions, ranking, names)
    compared = 0
    for key, values in expected.items():
        what, name = key.split("::")
        if what == "score":
            continue
        row = ranking.names.index(name.rsplit("_", 1)[0])
        score = expected[f"score::{name}"]
        size = np.abs(ranking.scores()[row])
        if what == "order":
            # By gene, since versions of scanpy put genes of equal size in orders of their own.
            np.testing.assert_allclose(ranking.scores()[row][values], score, rtol=1e-4, atol=1e-5)
            check_order(ranking.order[row], values, size)
        elif what.startswith("top"):
            check_order(lists[what][name], values, size)
        else:
            np.testing.assert_array_equal(np.sort(lists[what][name]), np.sort(values))
        compared += 1
    assert compared


def check_order(ours, theirs, size) -> None:
    """Equal but for runs of genes whose scores tie."""
    assert len(ours) == len(theirs)
    different = np.asarray(ours) != np.asarray(theirs)
    np.testing.assert_allclose(size[ours[different]], size[theirs[different]], rtol=1e-4, atol=1e-6)


def run_pairing(folder: Path, case: dict) -> None:
    found, expected = arrays(folder / "input.npz"), arrays(folder / "pairing.npz")
    listed = read(folder / "pairing.json")
    conditions, cells = found["condition"], matrix(found)
    assert list(dict.fromkeys(conditions)) == listed["condition_order"]
    for run in listed["runs"]:
        pairs = pair_controls_gears(conditions, n=run["num_samples"], seed=run["seed"])
        controls = np.flatnonzero(conditions == "ctrl")
        np.testing.assert_array_equal(pairs[controls], np.repeat(controls[:, None], run["num_samples"], axis=1))
        drawn = {key: values for key, values in expected.items() if key.startswith(f"{run['key']}::")}
        assert drawn
        for key, values in drawn.items():
            np.testing.assert_array_equal(pairs[conditions == key.split("::")[1]].ravel(), values)
    ranking = rank_genes(cells, conditions, contexts=found["cell_type"])
    positions = {gene: i for i, gene in enumerate(listed["pert_names"])}
    for condition, index in listed["pert_idx"].items():
        assert [positions[gene] for gene in condition_genes(condition)] == [i for i in index if i >= 0]
    for condition, de in listed["de_idx"].items():
        if condition_genes(condition):
            row = next(i for i, name in enumerate(ranking.names) if name.endswith(f"_{condition}"))
            size = np.abs(ranking.scores()[row])
            check_order(np.sort(ranking.top(20)[row]), np.array(de), size)


def run_graph_filter(folder: Path, case: dict) -> None:
    found = read(folder / "filter.json")
    assert expressible(found["conditions"], found["genes_in_graph"]) == found["kept"]
    assert list(perturbed_genes(found["conditions"])) == found["genes_from_perts"]


def run_graphs(folder: Path, case: dict) -> None:
    found, listed, expected = arrays(folder / "input.npz"), read(folder / "graphs.json"), arrays(folder / "graphs.npz")
    trained = np.isin(found["condition"], [name for name in listed["train_conditions"] if "ctrl" in name])
    cells = matrix(found)[np.flatnonzero(trained)]
    exact, sparsely = (coexpression_graph(side, k=None, threshold=0.1) for side in (cells.toarray(), cells))
    np.testing.assert_allclose(sparsely.weight.sum(), exact.weight.sum(), rtol=1e-5)
    check_graph(coexpression_graph(cells.toarray(), k=listed["k"], threshold=listed["threshold"]), expected, "co")
    terms = [listed["gene2go"][gene] for gene in listed["go_genes"]]
    check_graph(ontology_graph(terms, k=None), expected, "go")
    check_graph(ontology_graph(terms, k=listed["k"]), expected, "gotop")


def check_graph(graph, expected: dict, prefix: str) -> None:
    """Same weights for every target; same edges but for the last ones of a target, which may tie."""
    source, target, weight = (expected[f"{prefix}_{name}"] for name in ("source", "target", "importance"))
    assert len(graph.weight) == len(weight)
    theirs = dict(zip(zip(source, target, strict=True), weight, strict=True))
    ours = dict(zip(zip(graph.source, graph.target, strict=True), graph.weight, strict=True))
    for node in np.unique(target):
        found, wanted = (np.sort([w for (_, t), w in edges.items() if t == node]) for edges in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)
        weakest = wanted[0]
        for edges, others in ((ours, theirs), (theirs, ours)):
            missing = [w for edge, w in edges.items() if edge[1] == node and edge not in others]
            np.testing.assert_allclose(missing, weakest, rtol=1e-5)


def run_loss(folder: Path, case: dict) -> None:
    given = {
        name: torch.tensor(value) if value.dtype.kind in "fi" else value
        for name, value in arrays(folder / "arrays.npz").items()
    }
    labels = given["perts"].tolist()
    kept = {name: given[f"keep_{name[0]}"] for name in set(labels) if condition_genes(name)}
    for entry in read(folder / "loss.json"):
        predicted = given["pred"].clone().requires_grad_()
        log_variance = given["logvar"].clone().requires_grad_() if entry["kind"] == "uncertainty_loss" else None
        weight = entry["direction_lambda"]
        options = {"direction": weight, "log_variance": log_variance, "certainty": entry.get("reg", 1.0)}
        loss = autofocus_direction(predicted, given["y"], given["ctrl"], labels, kept, **options)
        # The original adds up the parts of the uncertainty loss in single precision, whatever the input.
        np.testing.assert_allclose(loss.item(), entry["value"], rtol=1e-9 if log_variance is None else 2e-7)
        loss.backward()
        prefix = "grad" if log_variance is None else "ugrad_pred"
        close = {"rtol": 1e-9 if log_variance is None else 2e-7, "atol": 1e-15}
        np.testing.assert_allclose(predicted.grad, given[f"{prefix}_{weight:g}"], **close)
        if log_variance is not None:
            np.testing.assert_allclose(log_variance.grad, given[f"ugrad_logvar_{weight:g}"], **close)


RUNNERS = {
    "gears splits": run_splits,
    "gears de": run_de,
    "gears pairing": run_pairing,
    "gears graph": run_graph_filter,
    "gears graphs": run_graphs,
    "gears loss": run_loss,
}
