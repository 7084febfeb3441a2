"""Can a prediction be told from those of other perturbations?  Scores that a mean profile cannot win.

Errors and correlations crown predictors that ignore the perturbation; ranks do not.  Ties get the mean of the ranks
they share, so that equal predictions score at chance and not by the order of the conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from scipy.spatial.distance import cdist

from scgpt_tools._arguments import check_arguments
from scgpt_tools._lookup import lookup
from scgpt_tools._validate import check_fits, check_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

Metric: TypeAlias = Literal["l1", "l2", "cosine", "rmse", "mse", "mae", "pearson", "r2"]

# Scores that only share their rounding count as equal.
_RELATIVE = 1e-12


def pairwise(predicted: ArrayLike, true: ArrayLike, metric: Metric = "l2") -> NDArray[np.float64]:
    """Compare every predicted with every true profile.

    Parameters
    ----------
    predicted
        (P, G) profiles or effects.
    true
        (T, G) of the same genes.
    metric
        ``"l1"``, ``"l2"``, ``"rmse"``, ``"mse"`` and ``"mae"`` are distances; ``"cosine"``, ``"pearson"`` and ``"r2"``
        are similarities.

    Returns
    -------
    (P, T)
    """
    check_arguments(pairwise, locals())
    compare = lookup(_PAIRWISE, metric, "metric")
    p, t = check_numbers("predicted", predicted, ndim=2), check_numbers("true", true, ndim=2)
    if p.shape[1] != t.shape[1]:
        raise ValueError(f"Expected `predicted` and `true` of the same genes, found {p.shape[1]} and {t.shape[1]}.")
    return compare(p, t)


def discrimination_score(
    predicted: ArrayLike, true: ArrayLike, *, metric: Metric = "l1", exclude: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Perturbation discrimination score: ``1 - rank / n`` of the right truth among all, nearest to the prediction first.

    cell-eval's score with mid-ranks; chance is 0.5 + 1 / (2 n).

    Parameters
    ----------
    predicted
        (C, G) predicted effects.
    true
        (C, G) true effects of the same conditions.
    metric
        See :func:`pairwise`.
    exclude
        (C, G) genes to leave out for each prediction: the perturbed ones, which would be a free hit.

    Returns
    -------
    One score a condition, 1 at best.
    """
    check_arguments(discrimination_score, locals())
    distances = _excluding(predicted, true, metric, exclude)
    return 1 - _closer(distances) / distances.shape[1]


def centroid_accuracy(
    predicted: ArrayLike, true: ArrayLike, *, metric: Metric = "l2", exclude: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Share of the other true profiles that are farther from the prediction than the right one; chance is 0.5.

    Parameters
    ----------
    predicted
        (C, G) predicted profiles.
    true
        (C, G) true profiles of the same conditions.
    metric
        See :func:`pairwise`.
    exclude
        (C, G) genes to leave out for each prediction.

    Returns
    -------
    One share a condition, NaN where there is one condition only.
    """
    check_arguments(centroid_accuracy, locals())
    distances = _excluding(predicted, true, metric, exclude)
    others = distances.shape[1] - 1
    return 1 - _closer(distances) / others if others else np.full(len(distances), np.nan)


def prediction_rank(predicted: ArrayLike, true: ArrayLike, *, metric: Metric = "rmse") -> NDArray[np.float64]:
    """PerturBench's rank: the share of the other predictions that are closer to each truth than its own.

    It ranks predictions for a truth, where :func:`discrimination_score` ranks truths for a prediction.

    Parameters
    ----------
    predicted
        (C, G) predicted profiles or effects.
    true
        (C, G) of the same conditions.
    metric
        See :func:`pairwise`.

    Returns
    -------
    One rank a condition: 0 at best, about 0.5 by chance.  The divisor is the number of conditions.
    """
    check_arguments(prediction_rank, locals())
    scores = pairwise(predicted, true, metric)
    if len(set(scores.shape)) > 1:
        raise ValueError(f"Expected as many predicted as true profiles, found {scores.shape[0]} and {scores.shape[1]}.")
    return truth_ranks(_as_distance(scores, metric))


def truth_ranks(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of :func:`prediction_rank` from distances (C, C) of predictions (rows) to truths (columns)."""
    return _closer(distances.T) / len(distances)


def _excluding(predicted: ArrayLike, true: ArrayLike, metric: Metric, exclude: ArrayLike | None) -> NDArray[np.float64]:
    p, t = check_numbers("predicted", predicted, ndim=2), check_numbers("true", true, ndim=2)
    if p.shape != t.shape:
        raise ValueError(f"Expected `predicted` and `true` to have the same shape, found {p.shape} and {t.shape}.")
    scores = pairwise(p, t, metric)
    left = [] if exclude is None else check_fits("exclude", np.asarray(exclude, dtype=bool), p.shape)
    for row, left_out in enumerate(left):
        if left_out.any():
            scores[row] = pairwise(p[row : row + 1, ~left_out], t[:, ~left_out], metric)
    return _as_distance(scores, metric)


def _as_distance(scores: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    return -scores if metric in ("cosine", "pearson", "r2") else scores


def _closer(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """For every row: how many columns are closer than the column of the diagonal, ties by half."""
    own = np.diag(distances)[:, None]
    tied = np.abs(distances - own) <= _RELATIVE * np.maximum(np.abs(distances), np.abs(own))
    closer = (distances < own) & ~tied
    rank = closer.sum(axis=1) + (tied.sum(axis=1) - 1) / 2
    # Without a direction (cosine of nothing) there is no rank.
    return np.where(np.isnan(own[:, 0]), np.nan, rank)


def _mean_of(name: str, power: int) -> Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]:
    return lambda p, t: cdist(p, t, name) / p.shape[1] if power == 1 else cdist(p, t, name) ** 2 / p.shape[1]


def _cosine(p: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(p, axis=1)[:, None] * np.linalg.norm(t, axis=1)[None, :]
    product = p @ t.T
    return np.divide(product, norms, out=np.full(product.shape, np.nan), where=norms > 0)


def _pearson(p: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    return _cosine(p - p.mean(axis=1, keepdims=True), t - t.mean(axis=1, keepdims=True))


def _r2(p: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    total = ((t - t.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    residual = cdist(p, t, "sqeuclidean")
    return 1 - np.divide(residual, total[None, :], out=np.full(residual.shape, np.nan), where=total[None, :] > 0)


_PAIRWISE: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]] = {
    "l1": lambda p, t: cdist(p, t, "cityblock"),
    "l2": lambda p, t: cdist(p, t, "euclidean"),
    "mae": _mean_of("cityblock", 1),
    "mse": _mean_of("euclidean", 2),
    "rmse": lambda p, t: np.sqrt(_mean_of("euclidean", 2)(p, t)),
    "cosine": _cosine,
    "pearson": _pearson,
    "r2": _r2,
}
