"""Scores of bins."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from scgpt_tools.metrics import bin_scores, vote


def test_scores_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    predicted, true = random.integers(1, 6, 80), random.integers(1, 6, 80)
    scores = bin_scores(predicted, true, 5)
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, labels=range(1, 6))
    for found, expected in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
        np.testing.assert_allclose(found[1:], expected)
    assert scores.macro_f1 == pytest.approx(f1.mean())
    assert sum(share for _, share in scores.most_predicted(6)) == pytest.approx(1)


def test_absent_bins_count_as_zero():
    scores = bin_scores([1, 1], [1, 1], 2)
    assert scores.f1.tolist() == [0, 1, 0]
    assert scores.mean_recall == scores.mean_precision == 0.5


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [([1], [1, 2], "as many predictions"), ([], [], "as many predictions"), ([3], [1], "`predicted` within 0 .. 2")],
)
def test_what_cannot_be_scored_is_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        bin_scores(predicted, true, 2)


def test_ties_go_to_the_nearer_neighbour_or_to_the_first_class():
    neighbours = [[1, 0, 0, 1]]
    assert vote(neighbours, 2).winner.tolist() == [1]
    assert vote(neighbours, 2, ties="first").winner.tolist() == [0]
