"""Genetic interactions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import TheilSenRegressor

from scgpt_tools.metrics.interactions import distance_correlation, genetic_interactions, theil_sen


@pytest.fixture
def singles(rng):
    return rng.normal(size=(2, 80))


def test_additive_doubles(singles):
    scores = genetic_interactions(singles[:1], singles[1:], singles.sum(axis=0)[None])
    for name in ("c1", "c2", "corr_fit"):
        assert scores[name][0] == pytest.approx(1)
    assert scores["mag"][0] == pytest.approx(np.sqrt(2))
    assert scores["dominance"][0] == pytest.approx(0, abs=1e-9)


def test_singles_can_be_swapped(singles, rng):
    double = 0.3 * singles[0] + 1.2 * singles[1] + rng.normal(0, 0.1, 80)
    one, other = genetic_interactions(*singles, double), genetic_interactions(*singles[::-1], double)
    for name, twin in (("c1", "c2"), ("dcor_first", "dcor_second")):
        assert one[name][0] == pytest.approx(other[twin][0])
    for name in ("mag", "dominance", "dcor", "dcor_singles", "eq_contr", "corr_fit"):
        assert one[name][0] == pytest.approx(other[name][0])


def test_the_fit_is_that_of_scikit_learn(singles, rng):
    outcome = 0.8 * singles[0] - 0.4 * singles[1] + rng.standard_t(2, 80) * 0.3
    fit = TheilSenRegressor(fit_intercept=False, max_subpopulation=1e5, random_state=1000).fit(singles.T, outcome)
    np.testing.assert_allclose(theil_sen(singles.T, outcome), fit.coef_, rtol=1e-6)


def test_drawn_pairs_come_close_to_all_pairs(singles, rng):
    outcome = 0.8 * singles[0] - 0.4 * singles[1] + rng.normal(0, 0.1, 80)
    np.testing.assert_allclose(theil_sen(singles.T, outcome, max_pairs=2000), theil_sen(singles.T, outcome), atol=0.03)


def test_outliers_hardly_matter(singles):
    outcome = 0.5 * singles[0] + 0.5 * singles[1]
    outcome[:5] += 50
    np.testing.assert_allclose(theil_sen(singles.T, outcome), [0.5, 0.5], atol=0.1)


def test_distance_correlation(rng):
    x = rng.normal(size=300)
    assert distance_correlation(x, -3 * x + 1) == pytest.approx(1)
    assert distance_correlation(x, x**2) > 0.3
    assert distance_correlation(x, rng.normal(size=300)) < 0.2
    assert distance_correlation(x, np.ones(300)) == 0
    both = np.stack([x, x], axis=1)
    assert distance_correlation(both, x) == pytest.approx(1)


def test_opposite_signs_have_no_dominance(singles):
    assert np.isnan(genetic_interactions(*singles, singles[0] - singles[1])["dominance"][0])


def test_rows_are_doubles(singles, rng):
    doubles = rng.normal(size=(3, 80))
    first, second = np.tile(singles[0], (3, 1)), np.tile(singles[1], (3, 1))
    together = genetic_interactions(first, second, doubles)
    assert together["mag"][2] == pytest.approx(genetic_interactions(*singles, doubles[2])["mag"][0])
    with pytest.raises(ValueError, match="one shape"):
        genetic_interactions(first, second, doubles[:2])
