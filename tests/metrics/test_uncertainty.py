"""Intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.uncertainty import bootstrap_interval, dynamic_range, paired_difference


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
