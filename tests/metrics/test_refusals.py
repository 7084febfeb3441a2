"""Scores of what has no score: refused in the same words everywhere, and what holds of every score."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest

from scgpt_tools import metrics

C, G = 4, 30


def profiles(seed=0):
    return np.random.default_rng(seed).normal(size=(C, G))


PAIRS = {
    name: getattr(metrics, name)
    for name in ("mse", "mae", "rmse", "l2", "pearson", "cosine", "r2", "spread_ratio", "pairwise")
    + ("discrimination_score", "centroid_accuracy", "prediction_rank")
} | {
    "direction_match": lambda p, t, **options: metrics.direction_match(p, t, reference=np.zeros(G), **options),
    "energy_distance": metrics.energy_distance,
    "mmd": metrics.mmd,
    "wasserstein": metrics.wasserstein,
    "genetic_interactions": lambda p, t: metrics.genetic_interactions(p, t, t),
    "scgpt_metrics": lambda p, t: metrics.scgpt_metrics(p, t, np.zeros(G), np.tile(np.arange(20), (C, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_not_finite_are_refused(name, value):
    for side in range(2):
        sides = [profiles(0), profiles(1)]
        sides[side][2, 5] = value
        with pytest.raises(
            ValueError, match=r"to be finite, found NaN or infinite numbers in 1 of 4 rows \(first: row 2"
        ):
            PAIRS[name](*sides)


@pytest.mark.parametrize("name", PAIRS)
def test_shapes_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match="Expected"):
        PAIRS[name](profiles(), profiles()[:, :-1])
    with pytest.raises((ValueError, TypeError), match="Expected"):
        PAIRS[name](profiles(), "profiles")
    with pytest.raises((ValueError, TypeError), match="Expected"):
        PAIRS[name](profiles(), np.full((C, G), "1.x", dtype=object))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": np.ones(G - 1, dtype=bool)}, "Expected `where` of shape"),
        ({"reference": np.zeros(G + 1)}, "Expected `reference` of shape"),
        ({"reference": np.full(G, np.nan)}, "Expected `reference` to be finite"),
        ({"weights": np.zeros((C, 2))}, "Expected `weights` of shape"),
        ({"weights": -np.ones(G)}, "not negative"),
        ({"exclude": np.ones(3, dtype=bool)}, "Expected `exclude` of shape"),
    ],
    ids=str,
)
def test_what_narrows_a_score_has_its_shape(options, message):
    (option,) = options
    takers = [f for n, f in PAIRS.items() if hasattr(metrics, n) and option in inspect.signature(f).parameters]
    assert takers
    for score in takers:
        with pytest.raises(ValueError, match=message):
            score(profiles(), profiles(1), **options)


def table():
    rows = [(f"C{i}", "all", method, "mse", float(i)) for i in range(3) for method in ("a", "b")]
    return pd.DataFrame(rows, columns=["condition", "group", "method", "metric", "value"])


def truth():
    return metrics.Truth(tuple("abcd"), profiles(), np.zeros(G), np.zeros(G))


CALLS = {
    "no predictions": (lambda: metrics.evaluation_table({}, truth()), ValueError, "at least one method"),
    "metrics as text": (
        lambda: metrics.evaluation_table({"a": profiles()}, truth(), metrics="mse"), TypeError, "list of texts",
    ),
    "no metric": (lambda: metrics.evaluation_table({"a": profiles()}, truth(), metrics=[]), ValueError, "at least 1"),
    "truth with NaN": (lambda: metrics.Truth(("a",), np.full((1, 3), np.nan), np.zeros(3), np.zeros(3)), ValueError,
                       "`true` to be finite"),
    "controls of other genes": (
        lambda: metrics.Truth(tuple("abcd"), profiles(), np.zeros(G - 1), np.zeros(G)), ValueError, "`control` of shape",
    ),
    "no table": (lambda: metrics.summarise_scores([1, 2]), TypeError, "to be a data frame"),
    "table without values": (lambda: metrics.summarise_scores(table().drop(columns="value")), KeyError, "'value'"),
    "others as text": (lambda: metrics.compare_methods(table(), "a", "b"), TypeError, "list of texts"),
    "unknown method": (lambda: metrics.compare_methods(table(), "a", ["c"]), ValueError, "no method 'c'"),
    "unknown ceiling": (lambda: metrics.dynamic_ranges(table(), ceiling="c", baseline="a"), ValueError, "no method 'c'"),
    "ranking without states": (lambda: metrics.top_k_accuracy(table()), KeyError, "'state'"),
    "one k": (
        lambda: metrics.top_k_accuracy(
            pd.DataFrame({"state": ["a"], "rank": [1], "exact": [True], "relevant": [True]}), k=1
        ), TypeError, "list of whole numbers",
    ),
    "infinite score": (lambda: metrics.bootstrap_interval([1.0, np.inf]), ValueError, "to be finite"),
    "no draw": (lambda: metrics.bootstrap_interval([1.0, 2.0], draws=0), ValueError, "at least 1"),
    "other conditions": (lambda: metrics.paired_difference([1.0, 2.0], [1.0]), ValueError, "same conditions"),
    "NaN among scores": (lambda: metrics.de_weights([[0.0, np.nan]]), ValueError, "`scores` to be finite"),
    "position of no gene": (
        lambda: metrics.scgpt_metrics(profiles(), profiles(1), np.zeros(G), np.full((C, 20), G)), ValueError,
        "positions below 30",
    ),
    "labels of other cells": (
        lambda: metrics.differential_expression(profiles(), ["ctrl", "A"]), ValueError, "each of 4 cells",
    ),
    "effects with NaN": (
        lambda: metrics.TrainingEffects(("a",), np.zeros(1), (("a",),), np.full((1, 1), np.nan)), ValueError, "finite",
    ),
    "width of no kernel": (lambda: metrics.mmd(profiles(), profiles(1), bandwidths=(0.0,)), ValueError, "larger than 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_other_arguments_are_refused(case):
    call, error, message = CALLS[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("seed", range(5))
def test_weights_of_any_scores_are_shares(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(C, G))
    scores[rng.random((C, G)) < 0.1] = np.inf
    scores[rng.random((C, G)) < 0.1] = -np.inf
    scores[0] = np.inf
    scores[1] = np.where(np.arange(G) == 3, np.inf, 0.0)
    weights = metrics.de_weights(scores)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[np.isinf(scores)] == 1).all()
    assert weights[0].all()
    assert weights[1].sum() == 1


@pytest.mark.parametrize("seed", range(5))
def test_scores_do_not_depend_on_the_order_of_genes_and_are_best_for_the_truth(seed):
    rng = np.random.default_rng(seed)
    p, t, order = profiles(seed), profiles(seed + 10), rng.permutation(G)
    for name, score in PAIRS.items():
        if name in ("genetic_interactions", "scgpt_metrics", "wasserstein", "spread_ratio"):
            continue
        np.testing.assert_allclose(score(p[:, order], t[:, order]), score(p, t), atol=1e-12)
        best = score(t, t)
        if name in ("mse", "mae", "rmse", "l2", "prediction_rank"):
            np.testing.assert_allclose(best, 0, atol=1e-12)
        elif name in ("pearson", "cosine", "r2", "direction_match", "discrimination_score", "centroid_accuracy"):
            np.testing.assert_allclose(best, 1, atol=1e-12)
            assert (score(p, t) <= 1 + 1e-12).all()
