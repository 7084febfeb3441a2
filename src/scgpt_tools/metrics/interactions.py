r"""Genetic interactions: what a double perturbation does beyond the sum of its singles.

After Norman et al. (2019), as GEARS computes it: the change of a double is fitted by those of its singles,
:math:`\delta_{AB} \approx c_1 \delta_A + c_2 \delta_B`, robustly and without intercept.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._validate import as_seed, check_integer, check_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike

_ITERATIONS = 300


@renamed(seed="rng")
def genetic_interactions(
    first: ArrayLike, second: ArrayLike, double: ArrayLike, *, max_pairs: int = 100_000, rng: RngLike = 1000
) -> dict[str, NDArray[np.float64]]:
    """Interaction scores of doubles.

    Parameters
    ----------
    first, second, double
        (D, G) changes against the control, in the same order of doubles.
    max_pairs
        Pairs of genes to fit; drawn where there are more.
    rng
        For that draw, the same for each double: a whole number, a generator, or ``None`` for fresh entropy.

    Returns
    -------
    ``c1`` and ``c2``; ``mag``, their length; ``dominance``, the absolute log10 of their ratio, NaN where one is not
    positive while the other is; ``corr_fit``, the correlation of fit and double; distance correlations
    ``dcor`` (both singles and the double), ``dcor_singles``, ``dcor_first``, ``dcor_second``; ``eq_contr``, the smaller
    of the latter two over the larger.
    """
    check_arguments(genetic_interactions, locals())
    check_integer("max_pairs", max_pairs)
    given = {"first": first, "second": second, "double": double}
    sides = [np.atleast_2d(check_numbers(name, side)) for name, side in given.items()]
    if len({side.shape for side in sides}) > 1:
        raise ValueError(f"Expected three arrays of one shape, found {[side.shape for side in sides]}.")
    seed = as_seed(rng)
    rows = [_interaction(a, b, ab, max_pairs, seed) for a, b, ab in zip(*sides, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _interaction(
    first: NDArray[np.float64], second: NDArray[np.float64], double: NDArray[np.float64], max_pairs: int, seed: int
) -> dict[str, float]:
    singles = np.stack([first, second], axis=1)
    c1, c2 = theil_sen(singles, double, max_pairs=max_pairs, seed=seed)
    centred = [_centred_distances(values) for values in (first[:, None], second[:, None], singles, double[:, None])]
    a, b, both, ab = centred
    by_first, by_second = _correlation(a, ab), _correlation(b, ab)
    fit = singles @ np.array([c1, c2])
    constant = np.ptp(fit) == 0 or np.ptp(double) == 0
    larger = max(by_first, by_second)
    return {
        "c1": c1,
        "c2": c2,
        "mag": float(np.hypot(c1, c2)),
        "dcor": _correlation(both, ab),
        "dcor_singles": _correlation(a, b),
        "dcor_first": by_first,
        "dcor_second": by_second,
        "corr_fit": np.nan if constant else float(np.corrcoef(fit, double)[0, 1]),
        "dominance": abs(float(np.log10(c1 / c2))) if c1 * c2 > 0 else np.nan,
        "eq_contr": min(by_first, by_second) / larger if larger > 0 else np.nan,
    }


def theil_sen(
    inputs: NDArray[np.float64],
    outcome: NDArray[np.float64],
    *,
    max_pairs: int = 100_000,
    seed: int = 1000,
    tolerance: float = 1e-3,
) -> tuple[float, float]:
    """Spatial median of the exact fits through pairs of points, without intercept.

    The estimate of scikit-learn's ``TheilSenRegressor``, with all pairs solved at once.

    ``inputs`` (n, 2); ``outcome`` (n,); ``max_pairs``: pairs of points to use; drawn without replacement of points
    within a pair where there are more; ``tolerance``: step of the coefficients below which the median is found;
    scikit-learn's default.
    """
    n = len(outcome)
    if comb(n, 2) <= max_pairs:
        pairs = np.array(list(combinations(range(n), 2)))
    else:
        rng = np.random.default_rng(seed)
        pairs = rng.integers(0, (n, n - 1), size=(max_pairs, 2))
        pairs[:, 1] += pairs[:, 1] >= pairs[:, 0]
    # The smallest solution where two points do not determine the coefficients, as least squares gives.
    inverse = np.linalg.pinv(inputs[pairs], rcond=np.finfo(np.float64).eps)
    fits = np.einsum("pij,pj->pi", inverse, outcome[pairs])
    c1, c2 = _spatial_median(fits, tolerance)
    return float(c1), float(c2)


def distance_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Distance correlation of n observations of two (possibly multivariate) variables; 0 if one is constant.

    ``x``, ``y`` (n,) or (n, dimensions).
    """
    sides = [check_numbers("x", x), check_numbers("y", y)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"Expected as many observations of both, found {len(sides[0])} and {len(sides[1])}.")
    first, second = (_centred_distances(side if side.ndim == 2 else side[:, None]) for side in sides)
    return _correlation(first, second)


def _centred_distances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    distances = cdist(values, values)
    means = distances.mean(axis=0)
    return distances - means[None, :] - means[:, None] + means.mean()


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    scale = np.sqrt(np.vdot(first, first) * np.vdot(second, second))
    return float(np.sqrt(max(np.vdot(first, second), 0) / scale)) if scale > 0 else 0.0


def _spatial_median(points: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Weiszfeld's iteration as modified by Vardi and Zhang (2000) for medians that are points."""
    smallest = np.finfo(np.float64).eps
    median = points.mean(axis=0)
    for _ in range(_ITERATIONS):
        away = points - median
        distance = np.linalg.norm(away, axis=1)
        other = distance >= smallest
        weight = 1 / distance[other]
        pull = np.linalg.norm((away[other] * weight[:, None]).sum(axis=0))
        held = 1.0 if not other.all() else 0.0
        if pull <= smallest:
            return median
        target = (points[other] * weight[:, None]).sum(axis=0) / weight.sum()
        moved = max(0.0, 1 - held / pull) * target + min(1.0, held / pull) * median
        step = np.sum((moved - median) ** 2)
        median = moved
        if step < tolerance**2:
            break
    return median
