"""The table of predictions, and what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scgpt_tools.metrics.evaluation import (
    common_conditions,
    compare_methods,
    dynamic_ranges,
    evaluation_table,
    summarise_scores,
    verdict,
)
from scgpt_tools.metrics.panel import METRICS, Truth

N, G = 12, 40


@pytest.fixture
def truth(rng):
    control, mean = rng.random(G) + 1, rng.normal(0, 0.5, G)
    true = control + mean + rng.normal(0, 0.5, (N, G))
    targets = np.zeros((N, G), dtype=bool)
    targets[np.arange(N), np.arange(N)] = True
    return Truth(
        conditions=tuple(f"c{i}" for i in range(N)),
        true=true,
        control=control,
        perturbed_mean=control + mean,
        scores=true - control,
        weights=np.abs(true - control - mean),
        targets=targets,
        additive=true + rng.normal(0, 0.3, true.shape),
    )


@pytest.fixture
def predictions(truth, rng):
    return {
        "good": truth.true + rng.normal(0, 0.2, truth.true.shape),
        "mean": np.broadcast_to(truth.perturbed_mean, truth.true.shape),
        "control": np.broadcast_to(truth.control, truth.true.shape),
    }


def test_one_row_a_condition_method_and_metric(truth, predictions):
    table = evaluation_table(predictions, truth, groups={"c0": "unseen_single"})
    assert len(table) == N * 3 * len(METRICS)
    assert not table.duplicated(["condition", "method", "metric"]).any()
    assert set(table.loc[table["group"] == "unseen_single", "condition"]) == {"c0"}


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_prediction_is_perfect(name, truth):
    table = evaluation_table({"truth": truth.true}, truth, metrics=[name])
    np.testing.assert_allclose(table["value"], METRICS[name].perfect, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_perturbed_genes_never_count(name, truth, predictions):
    # cell-eval's rank leaves out the genes of the prediction's own condition; those of other truths are free to differ.
    changed = (
        truth if name == "discrimination_celleval" else replace(truth, true=np.where(truth.targets, 1e3, truth.true))
    )
    guess = np.where(truth.targets, -1e3, predictions["good"])
    one = evaluation_table({"good": predictions["good"]}, truth, metrics=[name])["value"]
    other = evaluation_table({"good": guess}, changed, metrics=[name])["value"]
    np.testing.assert_allclose(one, other)


def test_metrics_that_lack_their_input_are_left_out(truth, predictions):
    bare = replace(truth, scores=None, weights=None, additive=None)
    shown = set(evaluation_table(predictions, bare)["metric"])
    missing = {"mse_de", "pearson_control_de", "direction_de", "mse_weighted", "r2_weighted", "interaction"}
    assert shown == set(METRICS) - missing
    nowhere = replace(truth, additive=np.full(truth.true.shape, np.nan))
    assert "interaction" not in set(evaluation_table(predictions, nowhere)["metric"])


def test_the_mean_wins_nothing_that_asks_for_the_perturbation(truth, predictions):
    table = summarise_scores(evaluation_table(predictions, truth)).set_index(["metric", "method"])["mean"]
    assert table["pearson_control", "mean"] > 0.5
    assert np.isnan(table["pearson_perturbed_mean", "mean"])
    assert table["centroid_accuracy", "mean"] == pytest.approx(0.5, abs=0.1)
    assert table["centroid_accuracy", "good"] > 0.95


def test_contexts_are_compared_within(truth, predictions):
    contexts = ("x",) * (N // 2) + ("y",) * (N // 2)
    table = evaluation_table(
        {"mean": predictions["mean"]}, replace(truth, contexts=contexts), metrics=["discrimination_l1"]
    )
    for rows in (slice(0, N // 2), slice(N // 2, N)):
        part = replace(
            truth,
            conditions=truth.conditions[rows],
            true=truth.true[rows],
            scores=None,
            weights=None,
            additive=None,
            targets=truth.targets[rows],
        )
        alone = evaluation_table({"mean": predictions["mean"][rows]}, part, metrics=["discrimination_l1"])
        np.testing.assert_allclose(table["value"].iloc[rows], alone["value"])


def test_summaries(truth, predictions):
    groups = {name: "a" if i < 5 else "b" for i, name in enumerate(truth.conditions)}
    table = evaluation_table(predictions, truth, groups=groups, metrics=["mse"])
    summary = summarise_scores(table).set_index("method")
    assert summary.loc["good", "n"] == N
    assert summary.loc["good", "low"] < summary.loc["good", "mean"] < summary.loc["good", "high"]
    by_group = summarise_scores(table, by_group=True)
    assert by_group.groupby("group")["n"].first().to_dict() == {"a": 5, "b": 7}
    assert summarise_scores(table).equals(summarise_scores(table))


def test_comparisons_know_which_way_is_better(truth, predictions):
    table = evaluation_table(predictions, truth)
    found = compare_methods(table, "good", ["mean", "control"]).set_index(["metric", "other"])
    assert found.loc[("mse", "mean"), "verdict"] == "better"
    assert found.loc[("mse", "mean"), "difference"] < 0
    assert found.loc[("discrimination_l1", "mean"), "verdict"] == "better"
    assert found.loc[("pearson_perturbed_mean", "mean"), "n"] == 0
    backwards = compare_methods(table, "mean", ["good"]).set_index("metric")
    assert backwards.loc["mse", "verdict"] == "worse"
    assert backwards.loc["mse", "win_rate"] == 0


def test_the_verdict_names_losses_first(truth, predictions):
    table = evaluation_table(predictions, truth, metrics=["mse", "centroid_accuracy"])
    text = verdict(compare_methods(table, "mean", ["good", "control"]), "mean")
    first, second = text.splitlines()
    assert first.startswith("mean against good: worse in mse, centroid_accuracy")
    assert second.startswith("mean against control: better in mse")


def test_dynamic_ranges(truth, predictions):
    table = evaluation_table(predictions, truth, metrics=["mse", "centroid_accuracy"])
    found = dynamic_ranges(table, ceiling="good", baseline="mean")
    assert 0.5 < found["mse"] < 1
    assert found["centroid_accuracy"] > 0.8


def test_names_and_shapes_are_checked(truth, predictions):
    with pytest.raises(ValueError, match="Found no metric 'mes'"):
        evaluation_table(predictions, truth, metrics=["mes"])
    with pytest.raises(ValueError, match="'short' of shape"):
        evaluation_table({"short": truth.true[:3]}, truth)
    with pytest.raises(ValueError, match="Found no method 'godo'"):
        compare_methods(evaluation_table(predictions, truth), "godo", ["mean"])
    with pytest.raises(ValueError, match="Expected `weights` of shape"):
        replace(truth, weights=np.ones(G))
    with pytest.raises(ValueError, match="one profile for each"):
        replace(truth, conditions=("a",))


NULLS = {
    "pearson_control": 0.0,
    "pearson_control_de": 0.0,
    "cosine_control": 0.0,
    "pearson_perturbed_mean": 0.0,
    "discrimination_l1": 0.5,
    "discrimination_cosine": 0.5,
    "centroid_accuracy": 0.5,
    "direction_de": 0.5,
}
"""What a prediction without skill has, where the truth has no effect in common."""


@pytest.fixture
def unrelated():
    """Many conditions with effects that share nothing, each with its own perturbed gene, which falls much."""
    rng = np.random.default_rng(0)
    n, genes = 60, 200
    control = rng.random(genes) + 3
    true = control + rng.normal(0, 0.5, (n, genes)) * rng.uniform(0.2, 2, (n, 1))
    targets = np.zeros((n, genes), dtype=bool)
    targets[np.arange(n), np.arange(n)] = True
    true[targets] -= 3
    names = tuple(f"c{i}" for i in range(n))
    scores, weights = true - control, np.abs(true - control)
    return Truth(names, true, control, control, scores=scores, weights=weights, targets=targets)


@pytest.mark.parametrize("kind", ["permuted", "noise", "constant", "none"])
def test_without_skill_scores_are_at_chance(unrelated, kind):
    rng = np.random.default_rng(1)
    changes = unrelated.true - unrelated.control
    guess = {
        "permuted": np.roll(changes, 1, axis=0),
        "noise": rng.normal(0, 0.5, changes.shape),
        "constant": np.tile(rng.normal(0, 0.5, changes.shape[1]), (len(changes), 1)),
        "none": np.zeros(changes.shape),
    }[kind]
    table = evaluation_table({kind: unrelated.control + guess}, unrelated)
    means = table.groupby("metric")["value"].mean()
    for name, chance in NULLS.items():
        if kind == "none" and not name.startswith(("discrimination_l1", "centroid")):
            # Without a change there is no direction.
            assert np.isnan(means[name]) or means[name] == 0, name
        elif name != "pearson_perturbed_mean" or kind != "none":
            assert means[name] == pytest.approx(chance, abs=0.06), name
    for name in ("mse", "mae", "l2_expressed", "mse_de", "mse_weighted"):
        assert means[name] > 0.05
    assert means["r2_weighted"] <= 0.01


def test_cell_evals_discrimination_rewards_the_prediction_of_no_change(unrelated):
    """Its own gene is left out of a condition's truth, and those of the others are not."""
    small = replace(unrelated, true=unrelated.control + 0.1 * (unrelated.true - unrelated.control))
    small.true[small.targets] = 0
    table = evaluation_table({"none": np.tile(small.control, (60, 1))}, small)
    means = table.groupby("metric")["value"].mean()
    assert means["discrimination_celleval"] > 0.65
    assert means["discrimination_l1"] == pytest.approx(0.5)


def test_means_are_over_conditions_that_every_method_has(truth, predictions):
    table = evaluation_table(predictions, truth, metrics=["mse", "pearson_control"])
    hidden = (table["method"] == "good") & (table["metric"] == "mse") & table["condition"].isin(["c0", "c1"])
    table.loc[hidden, "value"] = np.nan
    common = common_conditions(table)
    counts = common.groupby(["metric", "method"])["condition"].nunique()
    assert counts["mse"].tolist() == [N - 2] * 3
    # Predictions of the control have no correlation at all, which is no reason to leave others out.
    assert counts["pearson_control"].tolist() == [N] * 3


def test_verdicts_allow_for_the_number_of_metrics(truth, predictions):
    table = evaluation_table(predictions, truth)
    found = compare_methods(table, "good", ["mean"])
    assert (found["p_adjusted"].dropna() >= found["p_value"].dropna()).all()
    weak = found.loc[found["verdict"] == "undecided", "p_adjusted"].dropna()
    assert (weak >= 0.05).all()
