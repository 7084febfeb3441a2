from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from scgpt_tools.metrics.mapping import vote


def test_majority_is_the_share_of_neighbours(rng):
    neighbours = rng.integers(0, 4, size=(50, 7))
    ballot = vote(neighbours, 5)
    for row, winner, shares in zip(neighbours, *ballot, strict=True):
        counts = Counter(row.tolist())
        assert counts[winner] == max(counts.values())
        assert shares.tolist() == [counts[name] / 7 for name in range(5)]


@pytest.mark.parametrize(
    ("neighbours", "winner"), [([2, 0, 0, 2], 2), ([0, 2, 2, 0], 0), ([1, 0, 2], 1), ([3, 0, 0, 1, 1, 3, 2], 3)]
)
def test_of_equals_the_nearer_wins(neighbours, winner):
    assert vote([neighbours], 4).winner.tolist() == [winner]
    assert vote([neighbours], 4, how="weighted", proportions=[0.25] * 4).winner.tolist() == [winner]


def test_weighted_vote_by_hand():
    ballot = vote([[0, 0, 0, 1]], 3, how="weighted", proportions=[0.8, 0.1, 0.1])
    scores = np.array([(3 - 0.04) / 0.8, (1 - 0.04) / 0.1, 0])
    np.testing.assert_allclose(ballot.shares[0], scores / scores.sum())
    assert ballot.winner.tolist() == [1]
    np.testing.assert_allclose(ballot.confidence, scores[1] / scores.sum())


def test_one_neighbour_in_a_hundred_is_noise():
    ballot = vote([[0] * 99 + [1]], 2, how="weighted", proportions=[0.999, 0.001])
    assert ballot.shares[0].tolist() == [1.0, 0.0]


def test_where_everything_is_noise_the_numbers_count():
    neighbours = np.arange(200)[None]
    ballot = vote(neighbours, 200, how="weighted", proportions=np.full(200, 1 / 200))
    np.testing.assert_allclose(ballot.shares, 1 / 200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": np.empty((3, 0), dtype=int)}, "at least one neighbour"),
        ({"classes": [0, 1]}, r"found shape \(2,\)"),
        ({"classes": [[0, 1]], "how": "weighted"}, "`proportions` of the classes"),
        ({"classes": [[0, 1]], "how": "weighted", "proportions": [1.0, 0.0]}, "proportion above 0"),
        ({"classes": [[0, 1]], "how": "loudest"}, "`how` to be one of"),
    ],
)
def test_what_cannot_be_voted_on_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vote(n_classes=2, **arguments)
