"""Scores of mean profiles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import r2_score

from scgpt_tools.metrics.perturbation import (
    cosine,
    de_weights,
    direction_match,
    highest,
    l2,
    log_fold_change,
    mae,
    mask_of,
    mse,
    pearson,
    r2,
    rmse,
    spread_ratio,
)

SCORES = [mse, mae, rmse, l2, pearson, cosine, r2]


@pytest.fixture
def profiles(rng):
    true = rng.normal(1, 1, (5, 30))
    return true + rng.normal(0, 0.3, true.shape), true


@pytest.mark.parametrize("score", SCORES)
def test_conditions_do_not_feel_each_other(score, profiles):
    together = score(*profiles)
    alone = [score(*(side[i : i + 1] for side in profiles))[0] for i in range(5)]
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize("score", SCORES)
def test_a_mask_is_the_same_as_leaving_genes_out(score, profiles, rng):
    where = rng.random(30) < 0.5
    np.testing.assert_allclose(score(*profiles, where=where), score(*(side[:, where] for side in profiles)))


@pytest.mark.parametrize("score", [mse, mae, pearson, cosine, r2])
def test_whole_weights_are_repeated_genes(score, profiles, rng):
    times = rng.integers(0, 4, 30)
    repeated = score(*(np.repeat(side, times, axis=1) for side in profiles))
    np.testing.assert_allclose(score(*profiles, weights=times), repeated)


@pytest.mark.parametrize("score", [pearson, cosine, r2])
def test_a_reference_is_subtracted_from_both(score, profiles, rng):
    reference = rng.normal(size=30)
    np.testing.assert_allclose(score(*profiles, reference=reference), score(*(side - reference for side in profiles)))


def test_scores_are_the_usual_ones(profiles):
    predicted, true = profiles
    for row in range(5):
        assert pearson(*profiles)[row] == pytest.approx(pearsonr(predicted[row], true[row]).statistic)
        assert r2(*profiles)[row] == pytest.approx(r2_score(true[row], predicted[row]))
    weights = np.abs(true[0])
    assert r2(*profiles, weights=weights)[0] == pytest.approx(r2_score(true[0], predicted[0], sample_weight=weights))
    np.testing.assert_allclose(rmse(*profiles) ** 2, mse(*profiles))
    np.testing.assert_allclose(l2(*profiles), rmse(*profiles) * np.sqrt(30))


def test_correlation_with_a_constant_is_undefined(profiles):
    _, true = profiles
    for value in (0.0, 0.1, 1e6):
        assert np.isnan(pearson(np.full(true.shape, value), true)).all()
    assert np.isnan(cosine(np.zeros(true.shape), true)).all()
    assert np.isnan(pearson(true, true, where=np.zeros(30, dtype=bool))).all()


def test_the_control_as_reference_rewards_knowing_nothing(profiles):
    """The fault of the usual delta correlation, and that the perturbed mean as its reference has it not."""
    _, true = profiles
    control = np.linspace(0, 5, 30)
    constant = np.ones(true.shape)
    assert pearson(constant, true + control / 2, reference=control).mean() > 0.5
    mean = np.broadcast_to(true.mean(axis=0), true.shape)
    assert np.isnan(pearson(mean, true, reference=true.mean(axis=0))).all()


def test_directions():
    reference = np.array([1.0, 1, 1, 1])
    predicted, true = np.array([[2.0, 0, 1, 2]]), np.array([[3.0, 0, 1, 0]])
    assert direction_match(predicted, true, reference=reference).tolist() == [0.75]
    assert direction_match(predicted, true, reference=reference, where=[False, True, False, True]).tolist() == [0.5]


def test_collapsed_predictions_have_no_spread(profiles):
    _, true = profiles
    np.testing.assert_allclose(spread_ratio(true / 2, true), 0.5)
    np.testing.assert_allclose(spread_ratio(np.broadcast_to(true.mean(axis=0), true.shape), true), 0, atol=1e-12)


def test_weights_of_genes():
    weights = de_weights([[-4.0, 0, 2], [1, 1, -1]])
    np.testing.assert_allclose(weights, [[1, 0, 0.25], [1, 1, 1]])


def test_highest_values():
    np.testing.assert_array_equal(highest([1, 5, 5, 3], 2), [False, True, True, False])
    np.testing.assert_array_equal(highest([[1, 5, 5, 3], [4, 0, 4, 4]], 2), [[0, 1, 1, 0], [1, 0, 1, 0]])
    assert highest([1, 2], 10).all()


def test_masks_from_positions():
    np.testing.assert_array_equal(mask_of([[0, 2], [1, -1], [-1, -1]], 3), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


def test_log_fold_change_of_no_change_is_zero():
    assert log_fold_change([[1.0, 0.0]], [1.0, 0.0]).tolist() == [[0.0, 0.0]]
    assert log_fold_change([[0.9]], [0.4], pseudocount=0.1)[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(("shapes", "message"), [(((2, 3), (2, 4)), "same shape"), (((3,), (3,)), "2 dimensions")])
def test_shapes_are_checked(shapes, message):
    with pytest.raises(ValueError, match=message):
        mse(*(np.zeros(shape) for shape in shapes))
