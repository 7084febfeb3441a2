"""How sure a mean over conditions is, and whether it beats another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_generator, as_numbers, check_fraction, check_integer, check_numbers, check_type

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike

_DRAWS = 2000
# Scores that differ by less than this share of their mean differ by how sums are rounded.
_EQUAL = 1e-9


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, draws: int = _DRAWS, rng: RngLike = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over conditions.

    Parameters
    ----------
    values
        One score a condition; NaN does not count.
    level
        Coverage.
    draws
        Bootstrap samples.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the samples.

    Returns
    -------
    Lower and upper end; NaN with less than two scores, which say nothing about the spread.
    """
    check_arguments(bootstrap_interval, locals())
    check_fraction("level", level, zero=False, one=False)
    check_integer("draws", draws)
    scores = _finite(values)
    if scores.size < 2:
        return np.nan, np.nan
    means = scores[as_generator(rng).integers(0, scores.size, (draws, scores.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, which keeps its coverage where scores are few and a bootstrap's is too narrow.

    Parameters
    ----------
    values
        Scores; NaN does not count.
    level
        Coverage, if scores are independent and normal.  Those of divisions of the same cells overlap, and vary more from
        one set of cells to another than the interval says.

    Returns
    -------
    Lower and upper end; NaN with less than two scores.
    """
    check_arguments(t_interval, locals())
    check_fraction("level", level, zero=False, one=False)
    scores = _finite(values)
    if scores.size < 2:
        return np.nan, np.nan
    half = student.ppf((1 + level) / 2, scores.size - 1) * scores.std(ddof=1) / np.sqrt(scores.size)
    return float(scores.mean() - half), float(scores.mean() + half)


def t_test(values: ArrayLike) -> float:
    """P-value of Student's test that a mean is 0; NaN with less than two scores, or equal ones of 0.

    Equal scores, of metrics with few values, have no spread to judge the mean by; they get the p-value of the sign test.
    """
    scores = _finite(values)
    if scores.size < 2:
        return np.nan
    if np.ptp(scores) <= _EQUAL * abs(scores.mean()):
        return np.nan if scores.mean() == 0 else 2.0 ** (1 - scores.size)
    error = scores.std(ddof=1) / np.sqrt(scores.size)
    return float(2 * student.sf(abs(scores.mean() / error), scores.size - 1))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted for their number, so that one below a level is wrong with at most that probability (Holm 1979).

    ``p_values`` (n,); NaN is no test and stays.
    """
    values = np.asarray(p_values, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(values))
    adjusted = np.full(values.shape, np.nan)
    order = tests[np.argsort(values[tests], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted


@dataclass(frozen=True)
class PairedDifference:
    """One method less another, over the conditions that both have a score for."""

    n: int
    mean: float
    low: float
    high: float
    win_rate: float
    """Share of conditions in which the first is better; ties count half."""
    p_value: float
    """Of Student's paired test; of the sign test if all differences are equal."""


def paired_difference(
    values: ArrayLike, other: ArrayLike, *, higher_is_better: bool = True, level: float = 0.95
) -> PairedDifference:
    """Compare two methods condition by condition.

    Parameters
    ----------
    values, other
        Scores of the same conditions.
    higher_is_better
        Which sign of a difference wins.
    level
        Coverage of the interval, see :func:`t_interval`.

    Returns
    -------
    The difference with its interval and p-value.
    """
    check_arguments(paired_difference, locals())
    if np.shape(values) != np.shape(other):
        raise ValueError(
            f"Expected scores of the same conditions, found shapes {np.shape(values)} and {np.shape(other)}."
        )
    difference = _finite(np.asarray(values, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    if difference.size == 0:
        return PairedDifference(0, np.nan, np.nan, np.nan, np.nan, np.nan)
    low, high = t_interval(difference, level=level)
    gain = difference if higher_is_better else -difference
    wins = float((gain > 0).mean() + (gain == 0).mean() / 2)
    return PairedDifference(difference.size, float(difference.mean()), low, high, wins, t_test(difference))


def dynamic_range(ceiling: float, baseline: float, perfect: float) -> float:
    """Share of the way from an uninformed baseline to a perfect score that real data cover.

    Parameters
    ----------
    ceiling
        Score of a perfect prediction against a measurement with as much noise as there is.
    baseline
        Score of a predictor that knows nothing of the perturbation.
    perfect
        Best possible score.

    Returns
    -------
    Between -1 and 1; where it is small, even a perfect prediction is hardly better than the baseline on these data.
    """
    for name, value in {"ceiling": ceiling, "baseline": baseline, "perfect": perfect}.items():
        check_type(name, value, (int, float, np.number))
    return float(np.clip((ceiling - baseline) / (perfect - baseline), -1, 1)) if perfect != baseline else np.nan


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    scores = as_numbers("values", values)
    return check_numbers("values", scores[~np.isnan(scores)])
