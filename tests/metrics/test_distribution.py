"""Distances between samples of cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from scgpt_tools.metrics.distribution import energy_distance, mmd, wasserstein


@pytest.fixture
def samples(rng):
    return rng.normal(size=(40, 6)), rng.normal(0.7, 1, (55, 6))


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_distances_are_symmetric_and_grow_with_the_shift(distance, samples):
    x, y = samples
    assert distance(x, y) == pytest.approx(distance(y, x))
    assert distance(x, x + 2) > distance(x, x + 1) > distance(x, x + 0.5) > 0


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_equal_distributions_are_at_zero_on_average(distance):
    rng = np.random.default_rng(0)
    draws = [distance(rng.normal(size=(8, 3)), rng.normal(size=(8, 3))) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))


def test_counting_a_cell_with_itself_makes_small_samples_differ():
    rng = np.random.default_rng(0)
    draws = [energy_distance(rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), unbiased=False) for _ in range(50)]
    assert np.mean(draws) > 0.3
    x = rng.normal(size=(5, 3))
    assert energy_distance(x, x, unbiased=False) == pytest.approx(0)


def test_energy_distance_by_hand():
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    # Between: 1, 5, 1, 3; within: 2 and 4.
    assert energy_distance(x, y) == pytest.approx(2 * 2.5 - 2 - 4)
    assert energy_distance(x, y, unbiased=False) == pytest.approx(2 * 2.5 - 1 - 2)


def test_wasserstein_is_that_of_scipy(samples):
    x, y = samples
    x[:10] = 0
    y[5:15] = 0
    expected = [wasserstein_distance(x[:, gene], y[:, gene]) for gene in range(6)]
    np.testing.assert_allclose(wasserstein(x, y), expected)


def test_constant_samples():
    x = np.ones((4, 2))
    assert mmd(x, x) == pytest.approx(0)
    assert wasserstein(x, x).tolist() == [0, 0]


@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((0, 2), (3, 2)), ((3,), (3,))])
def test_samples_are_checked(shapes):
    with pytest.raises(ValueError, match="two samples of cells"):
        energy_distance(*(np.zeros(shape) for shape in shapes))
