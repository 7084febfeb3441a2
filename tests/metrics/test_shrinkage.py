"""Shrinkage of noisy effects."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.combining import scaled_additive
from scgpt_tools.metrics.effects import TrainingEffects
from scgpt_tools.metrics.shrinkage import shrink_effects, shrunken_mean

GENES = tuple(f"G{i}" for i in range(400))


def test_shrunken_effects_are_nearer_to_the_true_ones(rng):
    """Of conditions that change all genes, a few of them, and none."""
    true = np.zeros((3, 400))
    true[0] = rng.normal(size=400)
    true[1, :20] = rng.normal(size=20) * 4
    errors = np.tile(rng.uniform(0.3, 1.0, size=400), (3, 1))
    measured = true + rng.normal(size=true.shape) * errors
    found = shrink_effects(measured, errors)
    before, after = np.mean((measured - true) ** 2, axis=1), np.mean((found - true) ** 2, axis=1)
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.4 * before[1]
    assert after[2] < 0.05 * before[2]
    assert (np.abs(found) <= np.abs(measured)).all()
    assert (found * measured >= 0).all()


def test_the_posterior_mean_is_that_of_a_normal_prior_where_effects_are_normal(rng):
    true = rng.normal(size=(1, 400)) * 2
    measured = true + rng.normal(size=true.shape)
    np.testing.assert_allclose(shrink_effects(measured, np.ones(true.shape)), measured * 4 / 5, atol=0.5)


def test_large_effects_stay_and_effects_without_noise_too():
    effects = np.array([[100.0, *[0.0] * 50, 3.0]])
    errors = np.array([[1.0] * 51 + [0.0]])
    found = shrink_effects(effects, errors)
    assert found[0, 0] == pytest.approx(100, rel=0.01)
    assert found[0, -1] == 3
    np.testing.assert_array_equal(shrink_effects(effects, np.zeros((1, 52))), effects)
    # Effects within their noise are noise.
    assert not shrink_effects(np.full((1, 5), 0.1), np.ones((1, 5))).any()
    assert shrink_effects(np.empty((0, 3)), np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("effects", "errors", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), r"`errors` of shape \(2, 3\)"),
        (np.zeros((2, 3)), np.full((2, 3), -1.0), "not negative"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), "finite"),
        (np.zeros(3), np.zeros(3), "2"),
    ],
)
def test_refusals(effects, errors, message):
    with pytest.raises(ValueError, match=message):
        shrink_effects(effects, errors)


def test_seen_conditions_have_their_own_effect_and_others_the_sum(rng):
    perturbed = (("G0",), ("G1",), ("G2",), ("G1", "G0"))
    effects, errors = rng.normal(size=(4, 400)), np.full((4, 400), 0.5)
    train = TrainingEffects(GENES, np.zeros(400), perturbed, effects, errors=errors)
    found = shrunken_mean(train, [("G0",), ("G0", "G1"), ("G1", "G2"), ("G9",)])
    shrunken = shrink_effects(effects, errors)
    np.testing.assert_allclose(found.effects[:2], shrunken[[0, 3]])
    others = TrainingEffects(GENES, np.zeros(400), perturbed, shrunken)
    np.testing.assert_allclose(found.effects[2:], scaled_additive(others, [("G1", "G2"), ("G9",)]).effects)
    assert found.informed.tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="Expected training effects with `errors`"):
        shrunken_mean(TrainingEffects(GENES, np.zeros(400), perturbed, effects), [("G0",)])


def test_conditions_of_two_contexts_count_as_one_with_the_error_of_their_mean(rng):
    effects = rng.normal(size=(2, 400))
    train = TrainingEffects(
        GENES,
        np.zeros(400),
        (("G0", "G1"), ("G1", "G0")),
        effects,
        n_cells=np.array([10, 30]),
        errors=np.array([[2.0] * 400, [1.0] * 400]),
    )
    merged = train.by_genes()
    assert merged.perturbed == (("G0", "G1"),)
    np.testing.assert_allclose(merged.effects[0], 0.25 * effects[0] + 0.75 * effects[1])
    np.testing.assert_allclose(merged.errors[0], np.sqrt(0.25**2 * 4 + 0.75**2))
    assert merged.n_cells.tolist() == [40]
