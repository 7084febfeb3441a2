"""The table of models by tasks: who is in it, what is beside, and what happens to those that fail."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.metrics import BenchmarkScores, linear_probe

N, G = 60, 24


@pytest.fixture
def cells(vocabulary) -> ad.AnnData:
    """Counts of two types, each with genes of its own, and an embedding that tells them apart."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % 2
    genes = [name for name in vocabulary.tokens if name.startswith("GENE")][:G] + ["OTHER1", "OTHER2"]
    rates = 1 + 5 * (np.arange(len(genes)) % 2 == kind[:, None])
    obs = pd.DataFrame({"cell_type": pd.Categorical(np.array(["B", "T"])[kind])}, index=[f"c{i}" for i in range(N)])
    obs["perturbed"] = np.array(["ctrl", "A", "B", "C", "D", "E"])[np.arange(N) % 6]
    adata = ad.AnnData(rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=genes))
    adata.obsm["X_good"] = (5 * np.eye(2)[kind] + rng.normal(size=(N, 2))).astype(np.float32)
    return adata


def good(cells: ad.AnnData) -> np.ndarray:
    return cells.obsm["X_good"]


def broken(cells: ad.AnnData) -> np.ndarray:
    raise RuntimeError("no weights here")


def test_models_stand_beside_baselines(cells, model, unchanged):
    before = unchanged(cells)
    scores = sct.tl.benchmark({"tiny": model, "good": good}, cells, n_seeds=2)
    assert unchanged(cells) == before
    summary = scores.summary().set_index(["model", "metric"])
    assert set(scores.table["model"]) == {"tiny", "good", "tiny, untrained", "PCA"}
    assert set(scores.table["metric"]) == {"accuracy", "f1_macro", "f1_weighted"}
    assert summary.loc[("good", "accuracy"), "mean"] > 0.9
    assert summary.loc[("good", "accuracy"), "reference"] == pytest.approx(0.5)
    assert (summary.xs("accuracy", level="metric")["n"] == 2).all()
    assert scores.failures.empty


def test_scores_are_those_of_the_metric_by_seed(cells):
    table = sct.tl.benchmark(good, cells, n_seeds=3, rng=4, baselines=()).table
    own = table[table["metric"] == "accuracy"]
    expected = [linear_probe(cells.obsm["X_good"], cells.obs["cell_type"], rng=seed) for seed in (4, 5, 6)]
    assert own["value"].tolist() == [found.accuracy for found in expected]
    assert own["reference"].tolist() == [found.majority for found in expected]
    assert own["seed"].tolist() == [4, 5, 6]
    assert set(own["model"]) == {"good"}


def test_a_model_embeds_as_embed_does(cells, model):
    scores = sct.tl.benchmark({"tiny": model}, cells, n_seeds=1, baselines=())
    sct.tl.embed(cells, model)
    expected = linear_probe(cells.obsm["X_scGPT"], cells.obs["cell_type"], rng=0)
    assert scores.table["value"].tolist() == pytest.approx(list(expected[:3]))
    assert scores.about["models"]["tiny"]["checksum"] == model.checksum


def test_what_is_known_of_replicates_is_kept_of_each(cells, model, make_model):
    other = make_model()
    torch.nn.init.zeros_(next(other.parameters()))
    about = sct.tl.benchmark({"tiny": [model, other]}, cells, n_seeds=1, baselines=["untrained"]).about["models"]
    assert list(about) == ["tiny", "tiny #1", "tiny, untrained"]
    assert [about[name]["checksum"] for name in ("tiny", "tiny #1")] == [model.checksum, other.checksum]


def test_untrained_twins_differ_by_seed(cells, model):
    table = sct.tl.benchmark(model, cells, n_seeds=3, baselines=["untrained"]).table
    twins = table[table["role"] == "baseline"]
    assert twins["replicate"].unique().tolist() == [0, 1, 2]
    assert (twins["replicate"] == twins["seed"]).all()


def test_replicates_are_averaged_over_seeds_first(cells):
    noise = [lambda cells, seed=seed: np.random.default_rng(seed).normal(size=(N, 3)) for seed in range(3)]
    scores = sct.tl.benchmark({"noise": noise}, cells, n_seeds=4, baselines=())
    row = scores.summary().set_index("metric").loc["accuracy"]
    values = scores.table[scores.table["metric"] == "accuracy"].groupby("replicate")["value"].mean()
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(values.mean())
    assert row["low"] < row["mean"] < row["high"]


def test_a_model_that_fails_is_a_row_with_its_reason(cells):
    def short(cells: ad.AnnData) -> np.ndarray:
        return cells.obsm["X_good"][:-1]

    def infinite(cells: ad.AnnData) -> np.ndarray:
        return np.full((N, 2), np.inf)

    models = {"good": good, "broken": broken, "short": short, "infinite": infinite, "absent": "no-such-model-here"}
    with (
        sct.settings.override(offline=True),
        pytest.warns(UserWarning, match="'broken', 'short', 'infinite', 'absent' failed"),
    ):
        scores = sct.tl.benchmark(models, cells, n_seeds=1, baselines=["pca"])
    reasons = scores.failures.set_index("model")["reason"]
    assert reasons["broken"] == "RuntimeError: no weights here"
    assert "(60 cells, dimensions)" in reasons["short"]
    assert "infinite" in reasons["infinite"]
    assert "no-such-model-here" in reasons["absent"]
    assert scores.table.query("model == 'good'")["value"].notna().all()
    assert "broken failed: RuntimeError: no weights here" in str(scores)


def test_functions_get_a_copy(cells, unchanged):
    def careless(cells: ad.AnnData) -> np.ndarray:
        cells.obs["mine"] = 1
        cells.X[:] = 0
        return cells.obsm["X_good"]

    before = unchanged(cells)
    sct.tl.benchmark(careless, cells, n_seeds=1, baselines=())
    assert unchanged(cells) == before


def test_cells_without_label_or_alone_do_not_take_part(cells):
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    cells.obs.iloc[:4, cells.obs.columns.get_loc("cell_type")] = np.nan
    cells.obs.iloc[4, cells.obs.columns.get_loc("cell_type")] = "alone"
    scores = sct.tl.benchmark(good, cells, n_seeds=1, baselines=())
    assert scores.table["n_cells"].tolist() == [11] * 3


def test_perturbations_are_decoded(cells):
    question = {"name": "perturbation", "condition_key": "perturbed", "params": {"n_top_genes": 5}}
    scores = sct.tl.benchmark(good, cells, question, n_seeds=2, baselines=["pca"])
    assert set(scores.table["metric"]) == {"pearson", "mse", "direction", "above_mean"}
    assert scores.table.query("metric == 'mse'")["reference"].notna().all()


def test_means_have_the_scores_of_each_benchmark_and_no_others(cells):
    questions = ["linear_probe", {"name": "perturbation", "condition_key": "perturbed", "n_top_genes": 5}]
    means = sct.tl.benchmark({"zeta": good, "alpha": good}, cells, questions, n_seeds=1, baselines=()).means()
    assert list(means.index) == ["zeta", "alpha"]
    assert [metric for _, question, metric in means.columns if question == "linear_probe"] == [
        "accuracy",
        "f1_macro",
        "f1_weighted",
    ]
    assert len(means.columns) == 7
    assert means.notna().all(axis=None)


def test_networks_are_recovered_beside_co_expression(cells, tmp_path):
    even, odd = cells.var_names[0:8:2], cells.var_names[1:9:2]
    edges = [(a, b) for group in (even, odd) for i, a in enumerate(group) for b in group[i + 1 :]]
    network = pd.DataFrame(edges, columns=["source", "target"])
    network.to_csv(tmp_path / "network.tsv", sep="\t", index=False)
    question = {"name": "grn_inference", "network": str(tmp_path / "network.tsv"), "min_cells": 3}
    scores = sct.tl.benchmark(good, cells, question, n_seeds=2, baselines=())
    means = scores.means()[("data", "grn_inference", "auroc")]
    with pytest.raises(ValueError, match="'co-expression', which a baseline has"):
        sct.tl.benchmark({"co-expression": good}, cells, question, n_seeds=1, baselines=())
    assert means["co-expression"] > 0.9
    assert means["good"] > 0.6
    assert scores.table.query("metric == 'auroc'")["reference"].between(0.2, 0.8).all()
    assert "path" not in str(scores.about["benchmarks"])


def test_pairs_of_weight_zero_are_the_only_ones_that_are_no_edges(cells):
    names = list(cells.var_names[:4])
    pairs = [(names[0], names[2], 1.0), (names[1], names[3], 2.0), (names[0], names[1], 0.0), (names[2], names[3], 0.0)]
    network = pd.DataFrame(pairs, columns=["gene1", "gene2", "weight"])
    question = {"name": "grn_inference", "network": network, "min_cells": 3}
    scores = sct.tl.benchmark(good, cells, question, n_seeds=1, baselines=())
    assert scores.table.query("metric == 'early_precision'")["reference"].tolist() == [0.5, 0.5]
    # Genes that repress each other are connected, too.
    network["weight"] = [1.0, -1.0, 0.0, 0.0]
    again = sct.tl.benchmark(good, cells, question, n_seeds=1, baselines=())
    pd.testing.assert_frame_equal(again.table, scores.table)
    network["weight"] = ["", "1", "0", "0"]
    with pytest.raises(ValueError, match="'weight' of `network`, found others in 1 of 4 rows"):
        sct.tl.benchmark(good, cells, question, n_seeds=1, baselines=())


@pytest.mark.slow
def test_quality_is_that_of_scib(cells):
    pytest.importorskip("scib_metrics", reason="the extra scib is not installed")
    cells = ad.concat([cells, cells], index_unique="-")
    question = {"name": "embedding_quality", "share": 1.0}
    scores = sct.tl.benchmark(good, cells, question, n_seeds=1, baselines=["pca"]).means()
    cells.obsm["X_pca"] = np.asarray(cells.obsm["X_good"])  # what only scores of batches look at
    expected = sct.tl.score_embedding(cells, label_key="cell_type", embeddings=["X_good"], baselines=[])
    for metric in ("Silhouette label", "cLISI", "Bio conservation"):
        found = scores[("data", "embedding_quality", metric)]["good"]
        assert found == pytest.approx(expected.loc["X_good", metric], rel=1e-5)


def test_tables_of_files_and_benchmarks_of_one_of_them(cells, tmp_path):
    cells.write_h5ad(tmp_path / "stored.h5ad")
    question = {
        "name": "linear_probe",
        "dataset": "stored",
        "title": "probe of perturbations",
        "label_key": "perturbed",
    }
    tables = {"stored": tmp_path / "stored.h5ad", "mine": cells}
    scores = sct.tl.benchmark([], tables, ["linear_probe", question], n_seeds=1, baselines=["pca"])
    asked = scores.table.groupby("dataset")["benchmark"].unique().map(list).to_dict()
    assert asked == {"stored": ["linear_probe", "probe of perturbations"], "mine": ["linear_probe"]}
    same = scores.table.query("benchmark == 'linear_probe'").groupby("metric")["value"].nunique()
    assert (same == 1).all()


def test_scores_go_to_files_and_back(cells, tmp_path):
    with pytest.warns(UserWarning, match="failed"):
        scores = sct.tl.benchmark({"good": good, "broken": broken}, cells, n_seeds=2)
    for name in ("scores.json", "scores.csv"):
        again = BenchmarkScores.read(scores.save(tmp_path / name))
        pd.testing.assert_frame_equal(again.table, scores.table)
        pd.testing.assert_frame_equal(again.summary(), scores.summary())
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["seeds"] == [0, 1]
    assert content["datasets"] == {"data": {"n_cells": N, "n_genes": cells.n_vars}}
    assert content["benchmarks"]["linear_probe"]["label_key"] == "cell_type"
    assert content["versions"]["scgpt-tools"]
    assert {row["model"] for row in content["summary"]} == {"good", "broken", "PCA"}
    with pytest.raises(ValueError, match="format of scores '.txt'"):
        scores.save(tmp_path / "scores.txt")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"benchmarks": "linear_prob"}, ValueError, "Did you mean 'linear_probe'"),
        ({"benchmarks": {"name": "linear_probe", "label": "x"}}, ValueError, "no field of LinearProbe named 'label'"),
        ({"benchmarks": {"name": "linear_probe", "label_key": "kind"}}, KeyError, "kind"),
        ({"benchmarks": ["linear_probe", "linear_probe"]}, ValueError, "Set `title`"),
        ({"benchmarks": {"name": "linear_probe", "dataset": "test"}}, ValueError, "dataset of a benchmark"),
        ({"benchmarks": []}, ValueError, "one benchmark or more"),
        ({"benchmarks": "grn_inference"}, ValueError, "network"),
        ({"benchmarks": {"name": "perturbation"}}, KeyError, "condition"),
        ({"models": [good, good]}, ValueError, "'good' twice"),
        ({"models": {"one": 3}}, TypeError, "Expected 'one' to be a model"),
        ({"models": [], "baselines": ()}, ValueError, "found none of either"),
        ({"datasets": 3}, TypeError, "AnnData or paths"),
        ({"datasets": "absent.h5ad"}, FileNotFoundError, "absent.h5ad"),
        ({"baselines": ["X_pca"]}, ValueError, "baselines"),
        ({"n_seeds": 0}, ValueError, "n_seeds"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(cells, change, error, message):
    called = []

    def seen(cells: ad.AnnData) -> np.ndarray:
        called.append(1)
        return cells.obsm["X_good"]

    with pytest.raises(error, match=message):
        sct.tl.benchmark(**{"models": seen, "datasets": cells, "n_seeds": 1, **change})
    assert not called
