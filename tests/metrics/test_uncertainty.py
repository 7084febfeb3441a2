"""Intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.uncertainty import bootstrap_interval, dynamic_range, holm, paired_difference, t_interval


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = [
        low < 1 < high
        for low, high in (bootstrap_interval(rng.normal(1, 1, 40), level=0.9, draws=400) for _ in range(200))
    ]
    assert 0.8 < np.mean(hits) < 0.97


def test_intervals_are_reproducible_and_skip_undefined_scores(rng):
    values = rng.normal(size=20)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval([*values, np.nan]) == bootstrap_interval(values)
    assert np.isnan(bootstrap_interval([np.nan])).all()
    low, high = bootstrap_interval(values, level=0.5)
    wide = bootstrap_interval(values, level=0.99)
    assert wide[0] < low < values.mean() < high < wide[1]


def test_levels_are_checked():
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=1.0)


@pytest.mark.parametrize("better", [True, False])
def test_a_constant_gain_is_certain(rng, better):
    values = rng.normal(size=15)
    gain = 0.1 if better else -0.1
    found = paired_difference(values + gain, values, higher_is_better=better)
    assert (found.n, found.win_rate) == (15, 1)
    assert found.low == pytest.approx(gain) == pytest.approx(found.high)


def test_pairs_need_both_scores():
    found = paired_difference([1.0, np.nan, 3.0, 4.0], [1.0, 2.0, np.nan, 3.0])
    assert (found.n, found.mean, found.win_rate) == (2, 0.5, 0.75)
    assert paired_difference([np.nan], [1.0]).n == 0


@pytest.mark.parametrize(
    ("ceiling", "baseline", "perfect", "share"),
    [(0.9, 0.5, 1, 0.8), (0.2, 1.0, 0, 0.8), (0.1, 0.4, 1, -0.5), (2, 3, 0, 1 / 3)],
)
def test_dynamic_range(ceiling, baseline, perfect, share):
    assert dynamic_range(ceiling, baseline, perfect) == pytest.approx(share)
    assert np.isnan(dynamic_range(0.5, 1.0, 1.0))


@pytest.mark.parametrize("n", [3, 5, 10, 25])
def test_intervals_over_few_conditions_have_their_coverage(n):
    rng = np.random.default_rng(n)
    draws = rng.normal(1, 1, (4000, n))
    covered = [low <= 1 <= high for low, high in (t_interval(values) for values in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)
    # What a bootstrap says of three conditions is not 95 %.
    if n == 3:
        narrow = [low <= 1 <= high for low, high in (bootstrap_interval(values, draws=200) for values in draws[:500])]
        assert np.mean(narrow) < 0.85


def test_paired_differences_of_nothing_are_significant_as_often_as_asked():
    rng = np.random.default_rng(0)
    p = [paired_difference(*rng.normal(size=(2, 6))).p_value for _ in range(2000)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.015)
    # Two equal differences prove nothing, twenty do; rounding makes no difference.
    for start in (1.0, 0.1):
        assert paired_difference(np.full(2, start + 0.7), np.full(2, start)).p_value == 0.5
        assert paired_difference(np.full(20, start + 0.7), np.full(20, start)).p_value == 2**-19
    assert np.isnan(paired_difference([1.0, 1.0], [1.0, 1.0]).p_value)


def test_p_values_are_adjusted_by_holms_steps():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, np.nan]), [0.03, 0.06, 0.06, np.nan])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    rng = np.random.default_rng(1)
    wrong = [(holm(rng.uniform(size=15)) < 0.05).any() for _ in range(2000)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.015)
