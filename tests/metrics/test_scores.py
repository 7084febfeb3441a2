"""What a table of scores says when it is printed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.metrics import PerturbationScores, top_k_accuracy
from scgpt_tools.metrics.scores import collapsed, overall_spread

VALUES = {
    "model": {"mse": [2.0, 2.0, 2.1], "pearson_control": [0.9, 0.8, 0.9]},
    "no_change": {"mse": [1.0, 1.0, 1.5], "pearson_control": [np.nan] * 3},
    "perturbed_mean": {"mse": [3.0, 3.0, 3.0], "pearson_control": [0.5, 0.4, 0.3]},
    "ceiling": {"mse": [0.1, 0.1, 0.1], "pearson_control": [1.0, 1.0, 1.0]},
}


@pytest.fixture
def scores() -> PerturbationScores:
    roles = {"model": "model", "ceiling": "ceiling"}
    rows = [
        (condition, "unseen_single", method, roles.get(method, "baseline"), metric, value)
        for method, metrics in VALUES.items()
        for metric, values in metrics.items()
        for condition, value in zip("ABC", values, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["condition", "group", "method", "role", "metric", "value"])
    return PerturbationScores(table, table.iloc[:0], pd.Series({"model": 0.05}), "abcdef0123456789xyz")


def test_a_winning_baseline_is_named_first(scores):
    lines = str(scores).splitlines()
    assert lines[0] == "3 held-out conditions (3 unseen_single), hash abcdef0123456789; means:"
    assert "A baseline has the better mean: no_change in mse." in lines
    assert "model against no_change: worse in mse." in lines, "nothing can be said of a metric without values"
    assert "model against perturbed_mean: better in mse, pearson_control." in lines
    assert any("nearly the same for every perturbation: they differ 5.0%" in line for line in lines)


def test_each_model_is_compared_with_baselines_alone():
    """A better model beside it does not hide that a baseline beats a model."""
    roles = {"A": "model", "B": "model", "ceiling": "ceiling"}
    means = {"A": 0.1, "B": 0.9, "perturbed_mean": 0.4, "no_change": 1.0, "ceiling": 0.05}
    rows = [
        (condition, "unseen_single", method, roles.get(method, "baseline"), "mse", value)
        for method, value in means.items()
        for condition in "KLM"
    ]
    table = pd.DataFrame(rows, columns=["condition", "group", "method", "role", "metric", "value"])
    scores = PerturbationScores(table, table.iloc[:0], pd.Series({"A": 1.0, "B": 1.0}), "abc")
    lines = str(scores).splitlines()
    assert "No baseline has a better mean than A." in lines
    assert "A baseline has a better mean than B: perturbed_mean in mse." in lines
    assert "No baseline has a better mean than B." not in lines
    assert scores.winners().to_dict() == {"mse": "A"}
    assert "; a baseline has the better mean than that of B in 1 of 1 metrics." in scores.headline()


def test_a_metric_that_a_model_has_no_value_of_is_not_lost(scores):
    table = scores.table
    table.loc[(table["method"] == "model") & (table["metric"] == "pearson_control"), "value"] = np.nan
    assert "a baseline has the better mean than that of model in 1 of 1 metrics" in scores.headline()
    assert "A baseline has the better mean: no_change in mse." in str(scores).splitlines()


def test_metrics_of_the_originals_stand_in_the_same_table(in_contexts):
    originals = in_contexts.table.query("method == 'model'").drop(columns=["role", "perturbation"])
    originals = originals.assign(metric="gears_mse", value=[1.0, 2.0, 3.0, 6.0, np.nan])
    originals["group"] = originals["condition"].str[0]
    scores = replace(in_contexts, originals=originals)
    assert list(scores.means().columns) == ["mse"]
    means = scores.means(originals=True)
    assert list(means.columns) == ["mse", "gears_mse"]
    # The mean over perturbations of means over contexts.
    assert means.loc["model", "gears_mse"] == 4
    assert means.drop(index="model")["gears_mse"].isna().all()
    pd.testing.assert_series_equal(means["mse"], scores.means()["mse"])
    groups = scores.summary(originals=True, by_group=True).query("metric == 'gears_mse'").set_index("group")
    assert groups.loc["K", ["mean", "n", "n_rows"]].tolist() == [2, 1, 3]
    assert groups.loc["L", ["mean", "n", "n_rows"]].tolist() == [6, 1, 1]


def test_whatever_is_above_the_ceiling_is_flagged(scores):
    """Models and baselines, surely or within the noise; a lower error and a higher correlation."""
    assert scores.above_ceiling().empty
    for method, metric, values in [
        ("model", "mse", [0.05, 0.06, 0.05]),
        ("model", "pearson_control", [1.1, 0.95, 1.05]),
        ("no_change", "mse", [0.1, 0.1, 0.05]),
    ]:
        scores.table.loc[(scores.table["method"] == method) & (scores.table["metric"] == metric), "value"] = values
    found = scores.above_ceiling().set_index(["method", "metric"])["verdict"]
    assert found.to_dict() == {
        ("model", "mse"): "significant",
        ("model", "pearson_control"): "within the noise",
        ("no_change", "mse"): "within the noise",
    }
    lines = str(scores).splitlines()
    assert any(line.startswith("model is above the ceiling in mse: what it predicts shares") for line in lines)
    assert "Above the ceiling within the noise: model in pearson_control; no_change in mse." in lines


def test_numbers_of_perturbations_and_of_scores_are_printed(scores, in_contexts):
    assert "Perturbations and their scores: n = 3, n_rows = 3." in str(scores).splitlines()
    assert "Perturbations and their scores: n = 2, n_rows = 4." in str(in_contexts).splitlines()
    lacking = (scores.table["metric"] == "pearson_control") & (scores.table["condition"] == "A")
    scores.table.loc[lacking, "value"] = np.nan
    expected = "n = 3, n_rows = 3 in mse; n = 2, n_rows = 2 in pearson_control."
    assert f"Perturbations and their scores: {expected}" in str(scores).splitlines()


def test_the_spread_of_models_of_a_recipe_is_printed(scores):
    values = {("mse", 0): 2.0, ("mse", 1): 1.5, ("pearson_control", 0): 0.81, ("pearson_control", 1): 0.9}
    rows = [("model", seed, metric, value) for (metric, seed), value in values.items()]
    by_seed = pd.DataFrame(rows, columns=["method", "seed", "metric", "value"])
    lines = str(replace(scores, by_seed=by_seed)).splitlines()
    assert "model, 2 models: mse 1.5 to 2, pearson_control 0.81 to 0.9." in lines
    assert not any(
        " models: " in line for line in str(replace(scores, by_seed=by_seed[by_seed["seed"] == 0])).splitlines()
    )


@pytest.mark.parametrize(("values", "said"), [([0.5, 0.6, 0.45], True), ([0.8, 0.9, 0.85], False)])
def test_directions_are_held_against_chance(scores, values, said):
    """No change has 0 by definition, so that everything is better."""
    rows = scores.table["metric"] == "pearson_control"
    scores.table.loc[rows, "metric"] = "direction_de"
    scores.table.loc[rows & (scores.table["method"] == "no_change"), "value"] = 0.0
    scores.table.loc[rows & (scores.table["method"] == "model"), "value"] = values
    line = "In direction_de, chance is 0.5 and no change has 0: model has 0.52, not surely above chance."
    assert (line in str(scores).splitlines()) == said


def test_winners_leave_the_ceiling_out(scores):
    assert scores.winners().to_dict() == {"mse": "no_change", "pearson_control": "model"}


def test_means_have_a_row_for_every_method(scores):
    means = scores.means()
    assert list(means.index) == list(VALUES)
    assert means.loc["no_change", "mse"] == pytest.approx(3.5 / 3)
    assert np.isnan(means.loc["no_change", "pearson_control"])


def test_spread_counts_what_is_scored(rng):
    true = rng.normal(size=(5, 7))
    assert overall_spread(true, true) == pytest.approx(1)
    assert overall_spread(0.2 * true + 3, true) == pytest.approx(0.2)
    scored = np.ones(true.shape, dtype=bool)
    scored[2, 4] = False
    changed = true.copy()
    changed[2, 4] = 100
    assert overall_spread(changed, true, scored) == pytest.approx(1)
    assert np.isnan(overall_spread(true[:1], true[:1]))
    assert collapsed({"a": 0.05, "b": 0.5, "c": np.nan}) == {"a": 0.05}


def test_top_k_counts_states():
    ranking = pd.DataFrame(
        {
            "state": ["A+B"] * 3 + ["C+ctrl"] * 3,
            "perturbation": ["A", "A+B", "C"] * 2,
            "rank": [1, 2, 3] * 2,
            "exact": [False, True, False, False, False, True],
            "relevant": [True, True, False, False, False, True],
        }
    )
    found = top_k_accuracy(ranking, k=(1, 2, 3))
    assert found["exact"].tolist() == [0, 0.5, 1]
    assert found["relevant"].tolist() == [0.5, 0.5, 1]
    np.testing.assert_allclose(found["exact_by_chance"], [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(found["relevant_by_chance"], [(2 / 3 + 1 / 3) / 2, (1 + 2 / 3) / 2, 1])
    with pytest.raises(ValueError, match="at least 1"):
        top_k_accuracy(ranking, k=(0,))


@pytest.fixture
def in_contexts() -> PerturbationScores:
    """Perturbation K in three contexts, L in one; M in one, which a baseline has no score of."""
    values = {
        "model": [1.0, 1.0, 1.0, 5.0, 9.0],
        "no_change": [2.0, 2.0, 2.0, 4.0, np.nan],
        "perturbed_mean": [2.0, 2.0, 2.0, 4.0, 2.0],
        "ceiling": [0.0, 0.0, 0.0, 2.0, 0.0],
    }
    roles = {"model": "model", "ceiling": "ceiling"}
    rows = [
        (condition, "seen_single", condition[0], method, roles.get(method, "baseline"), "mse", value)
        for method, own in values.items()
        for condition, value in zip(["K1", "K2", "K3", "L1", "M1"], own, strict=True)
    ]
    columns = ["condition", "group", "perturbation", "method", "role", "metric", "value"]
    table = pd.DataFrame(rows, columns=columns)
    return PerturbationScores(table, table.iloc[:0], pd.Series({"model": 1.0}), "abc")


def test_a_perturbation_counts_once_however_many_contexts_it_has(in_contexts):
    assert in_contexts.means()["mse"].to_dict() == {
        "model": 3.0,
        "no_change": 3.0,
        "perturbed_mean": 3.0,
        "ceiling": 1.0,
    }
    summary = in_contexts.summary().set_index("method")
    assert summary["mean"].to_dict() == in_contexts.means()["mse"].to_dict()
    assert summary["n"].tolist() == [2, 2, 2, 2]
    assert str(in_contexts).startswith("5 held-out conditions of 3 perturbations (5 seen_single)")
    assert in_contexts.headline().startswith("Scored 5 held-out conditions of 3 perturbations. Print")


def test_ranges_are_of_the_conditions_of_the_means(in_contexts):
    assert in_contexts.ranges()["mse"] == pytest.approx(1 - 1.0 / 3.0)
