"""Means, sums and scaled sums of single effects."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from scgpt_tools.metrics.combining import (
    SCALED_SUM,
    additive,
    left_out_scaled_additive,
    matching_mean,
    scaled_additive,
)
from scgpt_tools.metrics.effects import TrainingEffects

GENES = tuple(f"G{i}" for i in range(25))
TARGETS = [("G0",), ("G1", "G2"), ("G1", "G9"), ("G8", "G9"), ("G0", "G1", "G2")]


@pytest.fixture
def train(rng):
    perturbed = (*((gene,) for gene in GENES[:6]), ("G0", "G1"))
    return TrainingEffects(GENES, rng.random(25), perturbed, rng.normal(size=(7, 25)))


def test_singles_are_combined(train):
    e, mean = train.effects, train.effects.mean(axis=0)
    added, matched = additive(train, TARGETS), matching_mean(train, TARGETS)
    np.testing.assert_allclose(added.effects, [e[0], e[1] + e[2], e[1] + mean, 2 * mean, e[0] + e[1] + e[2]])
    np.testing.assert_allclose(matched.effects[1:4], [(e[1] + e[2]) / 2, (e[1] + mean) / 2, mean])
    assert added.informed.tolist() == matched.informed.tolist() == [True, True, False, False, True]


def test_doubles_do_not_count_as_singles(train):
    only = TrainingEffects(GENES, train.control, (("G0", "G1"),), train.effects[6:])
    assert not additive(only, [("G0",)]).informed.any()


def test_the_share_of_pairs_is_learnt(train):
    e = train.effects
    pairs = (("G2", "G3"), ("G4", "G5"))
    effects = np.stack([0.8 * (e[2] + e[3]), 0.8 * (e[4] + e[5])])
    seen = TrainingEffects(GENES, train.control, (*train.perturbed[:6], *pairs), np.concatenate([e[:6], effects]))
    found = scaled_additive(seen, TARGETS)
    assert found.informed.tolist() == [True, True, False, False, True]
    # One gene as it is, two with the share, and three with the share of two and a little less.
    np.testing.assert_allclose(found.effects[0], e[0])
    np.testing.assert_allclose(found.effects[1], 0.8 * (e[1] + e[2]))
    np.testing.assert_allclose(found.effects[4], 3 ** np.log2(0.8) * (e[0] + e[1] + e[2]))


def test_the_share_of_pairs_is_a_usual_one_where_nothing_tells(train):
    singles = TrainingEffects(GENES, train.control, train.perturbed[:6], train.effects[:6])
    np.testing.assert_allclose(
        scaled_additive(singles, TARGETS[1:2]).effects, SCALED_SUM * additive(singles, TARGETS[1:2]).effects
    )
    still = TrainingEffects(GENES, train.control, train.perturbed, np.zeros((7, 25)))
    assert not scaled_additive(still, TARGETS).effects.any()


def test_opposite_pairs_have_next_to_nothing(train):
    e = train.effects
    against = TrainingEffects(GENES, train.control, train.perturbed, np.concatenate([e[:6], -(e[:1] + e[1:2])]))
    found = scaled_additive(against, [("G0", "G1")]).effects
    np.testing.assert_allclose(found, 0.01 * (e[:1] + e[1:2]))


@pytest.mark.parametrize("n_pairs", [1, 6])
def test_a_combination_is_left_out_of_what_predicts_it(rng, n_pairs):
    pairs = [*list(combinations(GENES[:4], 2))[:n_pairs], ("G0", "G9"), ("G0", "G1", "G2")]
    perturbed = (*((gene,) for gene in GENES[:4]), *pairs)
    train = TrainingEffects(GENES, np.zeros(25), perturbed, rng.normal(size=(len(perturbed), 25)))
    rows = range(4, len(perturbed))
    for row, found in zip(rows, left_out_scaled_additive(train, rows), strict=True):
        others = (*perturbed[:row], *perturbed[row + 1 :])
        without = TrainingEffects(GENES, np.zeros(25), others, np.delete(train.effects, row, axis=0))
        np.testing.assert_allclose(found, scaled_additive(without, [perturbed[row]]).effects[0])
