"""Many perturbations on paper."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.colors import to_hex

import scgpt_tools as sct
from scgpt_tools.metrics import PerturbationScores
from scgpt_tools.pl._forest import ROLES

METHODS = {
    "mine": "model",
    "no_change": "baseline",
    "perturbed_mean": "baseline",
    "additive": "baseline",
    "ceiling": "ceiling",
}


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def scores(rng) -> PerturbationScores:
    rows = [
        (f"C{number}", "unseen_single" if number % 2 else "combo_seen1", method, role, metric, rng.random())
        for method, role in METHODS.items()
        for metric in ("mse", "pearson_control", "mae")
        for number in range(6)
    ]
    table = pd.DataFrame(rows, columns=["condition", "group", "method", "role", "metric", "value"])
    return PerturbationScores(table, table.iloc[:0], pd.Series(dtype=float), "0" * 64)


@pytest.fixture
def effects(rng) -> ad.AnnData:
    table = ad.AnnData(rng.random((5, 9)).astype(np.float32))
    table.obs_names, table.var_names = list("ABCDE"), [f"G{i}" for i in range(9)]
    table.layers["effect"] = rng.normal(size=(5, 9)) * np.arange(9)
    return table


def markers(ax):
    return {
        line.get_ydata()[0]: (line.get_xdata()[0], to_hex(line.get_color()))
        for line in ax.lines
        if line.get_marker() not in (None, "None", "")
    }


def test_a_panel_a_metric_with_a_mark_a_method(scores):
    figure = sct.pl.perturbation_benchmark(scores, return_fig=True)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["MSE", "Pearson of change\nagainst control"]
    summary = scores.summary().set_index(["metric", "method"])["mean"]
    found = markers(figure.axes[0])
    for height, (method, role) in enumerate(METHODS.items()):
        assert found[height] == (pytest.approx(summary["mse", method]), ROLES[role].lower())
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(METHODS)
    assert figure.axes[0].get_xlabel() == "lower is better"
    assert figure.axes[1].get_xlabel() == "higher is better"
    assert figure.get_suptitle() == "6 held-out conditions"


def test_groups_and_metrics_are_chosen(scores):
    figure = sct.pl.perturbation_benchmark(scores, metrics=["mae"], group="combo_seen1", return_fig=True)
    assert figure.get_suptitle() == "3 held-out conditions (combo_seen1)"
    own = scores.table.query("group == 'combo_seen1' and metric == 'mae' and method == 'mine'")["value"].mean()
    assert markers(figure.axes[0])[0][0] == pytest.approx(own)
    _, ax = plt.subplots()
    assert sct.pl.perturbation_benchmark(scores, metrics=["mse"], ax=ax, show=False) is ax
    with pytest.raises(ValueError, match="one metric for the given `ax`"):
        sct.pl.perturbation_benchmark(scores, ax=ax, show=False)
    with pytest.raises(ValueError, match="Did you mean 'mae'"):
        sct.pl.perturbation_benchmark(scores, metrics=["maee"], show=False)
    with pytest.raises(ValueError, match="combo_seen1"):
        sct.pl.perturbation_benchmark(scores, group="combo_seen2", show=False)


def test_conditions_are_called_held_out_where_there_were_others_to_learn_from(scores):
    untrained = ["perturbed_mean", "additive"]
    scores = replace(scores, table=scores.table[~scores.table["method"].isin(untrained)])
    assert sct.pl.perturbation_benchmark(scores, return_fig=True).get_suptitle() == "6 conditions"
    one = replace(scores, table=scores.table[scores.table["condition"] == "C1"])
    assert sct.pl.perturbation_benchmark(one, return_fig=True).get_suptitle() == "1 condition"


def test_the_heatmap_shows_the_genes_that_vary_most(effects):
    ax = sct.pl.perturbation_heatmap(effects, n_genes=4, cluster=False, show=False)
    spread = np.argsort(-effects.layers["effect"].std(axis=0), kind="stable")[:4]
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"G{i}" for i in spread]
    np.testing.assert_array_equal(ax.images[0].get_array(), effects.layers["effect"][:, spread])
    low, high = ax.images[0].get_clim()
    assert low == -high


def test_clusters_only_change_the_order(effects):
    ax = sct.pl.perturbation_heatmap(effects, n_genes=9, show=False)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert sorted(rows) == list(effects.obs_names)
    np.testing.assert_array_equal(ax.images[0].get_array(), effects[rows, columns].layers["effect"])


def test_rows_and_columns_are_chosen(effects):
    figure = sct.pl.perturbation_heatmap(
        effects, genes=["G3", "G1"], perturbations=["B", "A"], cluster=False, limit=2.0, return_fig=True
    )
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), effects[["B", "A"], ["G3", "G1"]].layers["effect"])
    assert ax.images[0].get_clim() == (-2, 2)
    with pytest.raises(KeyError, match="perturbation"):
        sct.pl.perturbation_heatmap(effects, perturbations=["Z"], show=False)
    with pytest.raises(KeyError, match="Did you mean 'effect'"):
        sct.pl.perturbation_heatmap(effects, layer="effects", show=False)


def test_sparse_effects_are_drawn(effects):
    dense = sct.pl.perturbation_heatmap(effects, show=False).images[0].get_array()
    effects.layers["effect"] = sp.csr_matrix(effects.layers["effect"])
    np.testing.assert_array_equal(sct.pl.perturbation_heatmap(effects, show=False).images[0].get_array(), dense)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_effects_that_are_not_finite_are_refused_by_name(effects, value):
    effects.layers["effect"][2, 4] = value
    with pytest.raises(ValueError, match=r"Expected layers\['effect'\] to be finite.*The first is 'C'"):
        sct.pl.perturbation_heatmap(effects, show=False)
    assert sct.pl.perturbation_heatmap(effects, perturbations=["A", "B"], show=False).images


def test_a_screen_without_effects_has_a_colour(effects):
    effects.layers["effect"][:] = 0
    low, high = sct.pl.perturbation_heatmap(effects, show=False).images[0].get_clim()
    assert low < 0 < high
