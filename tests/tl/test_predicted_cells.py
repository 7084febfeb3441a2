"""Predicted cells beside true ones: distances, and genes found differentially expressed."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from generators import generator
from scgpt_tools.metrics import de_agreement, differential_expression, energy_distance
from scgpt_tools.metrics.panel import CELL_EVAL, CELL_METRICS
from scgpt_tools.screens.held_out import HeldOutScreen
from scgpt_tools.screens.predicted_cells import CellScores
from screen_tables import screen

# Generators with random weights tell perturbations hardly apart, and are told off for it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The predictions of:UserWarning"),
    pytest.mark.usefixtures("without_bars"),
]

HELD = ("G0+ctrl", "G2+G3", "G0+G6")
METHODS = {
    "no_change",
    "perturbed_mean",
    "matching_mean",
    "additive",
    "scaled_additive",
    "linear",
    "kernel",
    "shrunken_mean",
    "ceiling",
    "perturbed_cells",
}
OWN = {"energy", "energy_to_control", "mmd"}


@pytest.fixture
def cells():
    adata = screen(20)
    rest = [name for name in adata.obs["condition"].unique() if name not in HELD]
    sct.pp.perturbation_split(adata, "custom", parts={"train": rest, "test": HELD})
    return adata


@pytest.fixture
def model(cells):
    return generator(cells.var_names, strength=20)


def wide(scores, metric: str) -> pd.DataFrame:
    return scores.table.query("metric == @metric").pivot(index="condition", columns="method", values="value")


def needs(package: str):
    """The package of an extra, whose own warnings at import are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package, reason=f"an extra brings {package}")


def test_cells_stand_in_the_table_beside_baselines_and_ceiling(cells, model):
    plain = sct.tl.evaluate_perturbation(cells, {"m": model})
    scores = sct.tl.evaluate_perturbation(cells, {"m": model}, cells=True)
    own = scores.table["metric"].isin(OWN)
    pd.testing.assert_frame_equal(scores.table[~own], plain.table)
    found = scores.table[own]
    assert set(found["metric"]) == OWN
    assert set(found["method"]) == {"m", *METHODS}
    assert set(found["condition"]) == set(HELD)
    assert set(found["group"]) == {"seen_single", "combo_seen2"}
    assert (wide(scores, "energy_to_control")["no_change"] == 1).all()
    assert set(scores.compare("m")["metric"]) == set(scores.table["metric"])
    assert {"energy", "mmd"} <= set(scores.winners().index)


def test_the_true_cells_are_nearest_and_baselines_move_controls(cells):
    cells.layers["true"] = cells.X.toarray()
    scores = sct.tl.evaluate_perturbation(cells, "true", cells=True)
    energy = wide(scores, "energy")
    assert (energy["true"] < 0.2 * energy["no_change"]).all()
    # Both halves are true cells, and the sum of the singles is what the screen was made of.
    assert energy["ceiling"].mean() < 0.3 * energy["no_change"].mean()
    assert energy.loc["G2+G3", "additive"] < energy.loc["G2+G3", "no_change"]
    assert scores.winners()["energy"] == "true"


def test_contexts_are_compared_with_their_own_controls(cells, model):
    scores = sct.tl.evaluate_perturbation(cells, {"m": model}, cells=True, within="batch")
    shifted = cells.copy()
    dense = shifted.X.toarray()
    dense[((shifted.obs["batch"] == "b") & (shifted.obs["condition"] == "ctrl")).to_numpy()] += 2
    shifted.X = dense
    again = sct.tl.evaluate_perturbation(shifted, {"m": model}, cells=True, within="batch")
    ratio = wide(again, "energy")["no_change"] / wide(scores, "energy")["no_change"]
    in_a = ratio.index.str.startswith("a_")
    np.testing.assert_allclose(ratio[in_a], 1, rtol=0.5)
    assert (ratio[~in_a] > 2).all()


def test_models_without_cells_have_no_scores_of_cells(cells, model):
    means = sct.tl.screen(cells, list(HELD), model)
    scores = sct.tl.evaluate_perturbation(cells, {"cells": model, "means": means}, cells=True)
    assert "means" not in set(scores.table.query("metric == 'energy'")["method"])
    assert "energy" not in set(scores.compare("means")["metric"])
    for options in ({"cells": True}, {"distances": ()}):
        if options == {"cells": True}:
            with pytest.raises(ValueError, match="Expected predictions that are cells"):
                sct.tl.evaluate_perturbation(cells, means, **options)
        else:
            assert len(sct.tl.evaluate_perturbation(cells, means, **options).table)


@pytest.mark.parametrize(
    ("options", "package", "extra"),
    [({"distances": "mmd"}, "pertpy", "pert"), ({"cell_eval": True}, "cell_eval", "celleval")],
)
def test_absent_packages_are_named_with_the_line_that_installs_them(
    cells, model, monkeypatch, options, package, extra, unchanged
):
    monkeypatch.setitem(sys.modules, package, None)
    before = unchanged(cells)
    with pytest.raises(ImportError, match=rf"'{package}'.*extra '{extra}' of scgpt-tools"):
        sct.tl.evaluate_perturbation(cells, {"m": model}, **options)
    assert unchanged(cells) == before


def test_unknown_distances_are_refused():
    with pytest.raises(ValueError, match="edistance"):
        CellScores(distances=("energydistance",))


def test_every_metric_of_cells_has_a_direction():
    assert {f"celleval_{name}" for name in CELL_EVAL} | OWN <= set(CELL_METRICS)


@pytest.mark.filterwarnings("ignore")
def test_distances_of_pertpy(cells, model):
    needs("pertpy")
    names = ("edistance", "mmd", "wasserstein")
    scores = sct.tl.evaluate_perturbation(cells, {"m": model}, cells=True, distances=names)
    assert {f"pertpy_{name}" for name in names} <= set(scores.table["metric"])
    theirs, ours = wide(scores, "pertpy_edistance"), wide(scores, "energy")
    assert set(theirs.columns) == {"m", *METHODS}
    # Theirs counts the distance of a cell to itself, which makes it larger by what our biased form has.
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(20, 5)), rng.normal(1, 1, (30, 5))
    import pertpy

    one = pertpy.tools.Distance("edistance", obsm_key="X_pca")(first, second)
    assert one == pytest.approx(energy_distance(first, second, unbiased=False))
    assert (theirs > ours).to_numpy().all()
    assert np.corrcoef(theirs["no_change"], ours["no_change"])[0, 1] > 0.9
    assert np.isfinite(wide(scores, "pertpy_mmd")).to_numpy().all()


@pytest.mark.filterwarnings("ignore")
def test_differential_expression_by_cell_eval(cells, tmp_path, monkeypatch):
    needs("cell_eval")
    monkeypatch.chdir(tmp_path)
    cells.layers["true"] = cells.X.toarray()
    noisy = cells.X.toarray()
    noisy[:, ::2] = noisy[:, 1::2]
    cells.layers["noisy"] = noisy
    before = cells.X.toarray().copy()
    scores = sct.tl.evaluate_perturbation(cells, {"true": "true", "noisy": "noisy"}, cell_eval=True)
    np.testing.assert_array_equal(cells.X.toarray(), before)
    assert list(tmp_path.iterdir()) == [], "cell-eval writes tables into the folder that it is given"
    assert {f"celleval_{name}" for name in CELL_EVAL} <= set(scores.table["metric"])
    overlap = wide(scores, "celleval_overlap_at_N")
    np.testing.assert_allclose(overlap["true"], 1)
    assert (overlap["noisy"] < 0.9).all()
    np.testing.assert_allclose(wide(scores, "celleval_de_sig_genes_recall")["no_change"].fillna(0), 0)
    # The controls that predictions start from, not those that true changes refer to.
    start = HeldOutScreen.read(cells).controls("", cells.n_obs, seed=0)
    rows = np.concatenate([start, np.flatnonzero(cells.obs["condition"].isin(HELD))])
    labels = cells.obs["condition"].iloc[rows].tolist()
    pair = [
        differential_expression(np.concatenate([before[start], layer[rows[start.size :]]]), labels)
        for layer in (noisy, before)
    ]
    expected = pd.DataFrame(de_agreement(*pair), index=list(pair[0].conditions))
    for metric in ("de_sig_genes_recall", "de_direction_match", "pr_auc"):
        own = wide(scores, f"celleval_{metric}")["noisy"]
        np.testing.assert_allclose(own, expected.loc[own.index, metric], atol=0.05)


def test_shares_of_no_distance_are_not_reported(cells, model):
    """Where a perturbation changes nothing, a share of the distance of the controls would be noise over noise."""
    same = cells.copy()
    rng = np.random.default_rng(1)
    dense = same.X.toarray()
    own = np.flatnonzero(same.obs["condition"] == "G0+ctrl")
    dense[own] = dense[rng.choice(np.flatnonzero(same.obs["condition"] == "ctrl"), own.size)]
    # Two halves that differ: what a batch effect within a condition looks like.
    dense[own[:20]] += 0.2
    same.X = dense
    shares = wide(sct.tl.evaluate_perturbation(same, {"m": model}, cells=True), "energy_to_control")
    assert shares.loc["G2+G3"].notna().all()
    energy = wide(sct.tl.evaluate_perturbation(same, {"m": model}, cells=True), "energy")
    changed = energy["no_change"] > energy["ceiling"].clip(lower=0)
    np.testing.assert_array_equal(shares.notna().all(axis=1), changed)
