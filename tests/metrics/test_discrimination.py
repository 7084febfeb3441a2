"""Ranks of predictions among perturbations."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.discrimination import (
    centroid_accuracy,
    discrimination_score,
    pairwise,
    prediction_rank,
)
from scgpt_tools.metrics.perturbation import cosine, mae, mse, pearson, r2, rmse

METRICS = ("l1", "l2", "cosine", "rmse", "mse", "mae", "pearson", "r2")


@pytest.fixture
def effects(rng):
    return rng.normal(size=(9, 25))


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_prediction_is_told_apart(metric, effects):
    np.testing.assert_allclose(discrimination_score(effects, effects, metric=metric), 1)
    np.testing.assert_allclose(centroid_accuracy(effects, effects, metric=metric), 1)
    np.testing.assert_allclose(prediction_rank(effects, effects, metric=metric), 0)


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "pearson"])
def test_one_profile_for_all_scores_at_chance(metric, effects):
    mean = np.broadcast_to(effects.mean(axis=0), effects.shape)
    n = len(effects)
    # Ranks of one prediction among all truths are 0 to n - 1, each once.
    assert discrimination_score(mean, effects, metric=metric).mean() == pytest.approx(0.5 + 1 / (2 * n))
    assert centroid_accuracy(mean, effects, metric=metric).mean() == pytest.approx(0.5)
    np.testing.assert_allclose(prediction_rank(mean, effects, metric=metric), (n - 1) / 2 / n)


def test_ties_do_not_depend_on_the_order(effects):
    tied = np.repeat(effects[:3], 3, axis=0)
    score = discrimination_score(tied, tied)
    np.testing.assert_allclose(score, 1 - 1 / 9)
    np.testing.assert_allclose(score[::-1], discrimination_score(tied[::-1], tied[::-1]))


@pytest.mark.parametrize(
    ("metric", "score"),
    [("mse", mse), ("mae", mae), ("rmse", rmse), ("cosine", cosine), ("pearson", pearson), ("r2", r2)],
)
def test_pairs_are_scored_like_rows(metric, score, effects, rng):
    predicted = effects + rng.normal(size=effects.shape)
    matrix = pairwise(predicted, effects, metric)
    for shift in range(3):
        np.testing.assert_allclose(
            np.diag(np.roll(matrix, -shift, axis=1)), score(predicted, np.roll(effects, -shift, axis=0))
        )


def test_left_out_genes_do_not_count(effects, rng):
    predicted = effects + rng.normal(0, 2, effects.shape)
    exclude = np.zeros(effects.shape, dtype=bool)
    exclude[:, :4] = True
    np.testing.assert_allclose(
        discrimination_score(predicted, effects, exclude=exclude),
        discrimination_score(predicted[:, 4:], effects[:, 4:]),
    )
    changed = predicted.copy()
    changed[:, :4] += 100
    for score in (discrimination_score, centroid_accuracy):
        np.testing.assert_allclose(score(changed, effects, exclude=exclude), score(predicted, effects, exclude=exclude))


def test_no_direction_has_no_rank(effects):
    predicted = effects.copy()
    predicted[2] = 0
    score = discrimination_score(predicted, effects, metric="cosine")
    assert np.flatnonzero(np.isnan(score)).tolist() == [2]


def test_one_condition_cannot_be_told_apart(effects):
    assert np.isnan(centroid_accuracy(effects[:1], effects[:1])).all()


def test_arguments_are_checked(effects):
    with pytest.raises(ValueError, match="Found no metric 'L1'"):
        pairwise(effects, effects, "L1")
    with pytest.raises(ValueError, match="same shape"):
        discrimination_score(effects, effects[:3])
