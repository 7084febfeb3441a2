"""Distances between two samples of cells, for models that predict cells and not only means.

Scale them by the distance between controls and true cells before comparing conditions.  pertpy has many more; these are
the three that the tables of perturbation prediction report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_number, check_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_BANDWIDTHS = (0.5, 1.0, 2.0)


def energy_distance(first: ArrayLike, second: ArrayLike, *, unbiased: bool = True) -> float:
    """Twice the mean distance between the samples less the mean distances within them (Euclidean).

    Parameters
    ----------
    first, second
        (n, G) and (m, G), for example in the space of principal components.
    unbiased
        Leave the distance of a cell to itself out of the means within.  cell-eval and pertpy 1.0 count it, which makes
        small samples look farther apart.

    Returns
    -------
    0 for equal distributions; slightly negative values are possible where ``unbiased``.
    """
    check_arguments(energy_distance, locals())
    x, y = _samples(first, second)
    within = [_within_mean(cdist(side, side), unbiased=unbiased) for side in (x, y)]
    return float(2 * cdist(x, y).mean() - sum(within))


def mmd(first: ArrayLike, second: ArrayLike, *, bandwidths: tuple[float, ...] = _BANDWIDTHS) -> float:
    """Unbiased squared maximum mean discrepancy with a sum of Gaussian kernels.

    Parameters
    ----------
    first, second
        (n, G) and (m, G).
    bandwidths
        Width of each kernel as a multiple of the median distance over all cells.

    Returns
    -------
    0 on average for equal distributions.
    """
    check_arguments(mmd, locals())
    for width in bandwidths:
        check_number("bandwidths", width, above=0)
    x, y = _samples(first, second)
    both = np.concatenate([x, y])
    squares = cdist(both, both, "sqeuclidean")
    median = np.median(squares[np.triu_indices(len(both), 1)])
    if median == 0:
        median = squares.mean() or 1.0
    kernel = np.mean([np.exp(-squares / (2 * width**2 * median)) for width in bandwidths], axis=0)
    n = len(x)
    within = _within_mean(kernel[:n, :n], unbiased=True, own=1.0) + _within_mean(kernel[n:, n:], unbiased=True, own=1.0)
    return float(within - 2 * kernel[:n, n:].mean())


def wasserstein(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Wasserstein-1 distance between the values of every gene.

    Parameters
    ----------
    first, second
        (n, G) and (m, G).

    Returns
    -------
    (G,)
    """
    check_arguments(wasserstein, locals())
    x, y = _samples(first, second)
    both = np.concatenate([x, y])
    order = np.argsort(both, axis=0, kind="stable")
    gaps = np.diff(np.take_along_axis(both, order, axis=0), axis=0)
    below = [np.cumsum(side, axis=0)[:-1] for side in (order < len(x), order >= len(x))]
    return (np.abs(below[0] / len(x) - below[1] / len(y)) * gaps).sum(axis=0)


def _samples(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = check_numbers("first", first), check_numbers("second", second)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"Expected two samples of cells with the same genes, found shapes {x.shape} and {y.shape}.")
    return x, y


def _within_mean(matrix: NDArray[np.float64], *, unbiased: bool, own: float = 0.0) -> float:
    """Mean over pairs of one sample; ``own`` is the value of a cell with itself."""
    n = len(matrix)
    if not unbiased:
        return float(matrix.mean())
    return float((matrix.sum() - n * own) / (n * (n - 1))) if n > 1 else own
