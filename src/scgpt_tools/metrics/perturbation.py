r"""Scores of predicted mean profiles, one number a condition.

Arrays are C conditions by G genes.  Every score takes ``reference``, which is subtracted from both sides first: with
the control profile, :func:`pearson` is the usual "Pearson delta"; with the mean of the perturbed training profiles it
no longer rewards a prediction that knows nothing of the perturbation.  ``where`` restricts a score to some genes,
``weights`` weighs them; both are (G,) or (C, G).  A correlation with a constant is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_numbers, check_fits, check_integer, check_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Scores: TypeAlias = "NDArray[np.float64]"

# Standard deviation, relative to the mean, up to which a profile counts as constant.
_CONSTANT = 1e-13


def mse(
    predicted: ArrayLike, true: ArrayLike, *, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> Scores:
    """Mean squared error; with ``weights``, the weighted mean."""
    check_arguments(mse, locals())
    error, share = _error(predicted, true, where, weights)
    return (share * error**2).sum(axis=1)


def mae(
    predicted: ArrayLike, true: ArrayLike, *, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> Scores:
    """Mean absolute error; with ``weights``, the weighted mean."""
    check_arguments(mae, locals())
    error, share = _error(predicted, true, where, weights)
    return (share * np.abs(error)).sum(axis=1)


def rmse(predicted: ArrayLike, true: ArrayLike, *, where: ArrayLike | None = None) -> Scores:
    """Square root of the mean squared error."""
    check_arguments(rmse, locals())
    return np.sqrt(mse(predicted, true, where=where))


def l2(predicted: ArrayLike, true: ArrayLike, *, where: ArrayLike | None = None) -> Scores:
    """Euclidean distance, usually on the thousand most expressed genes of the controls (:func:`highest`)."""
    check_arguments(l2, locals())
    p, t, w = _prepare(predicted, true, None, where, None)
    return np.sqrt((w * (p - t) ** 2).sum(axis=1))


def pearson(
    predicted: ArrayLike,
    true: ArrayLike,
    *,
    reference: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Scores:
    """Correlation over genes."""
    check_arguments(pearson, locals())
    p, t, w = _prepare(predicted, true, reference, where, weights)
    return _cosine(_centred(p, w), _centred(t, w), w)


def cosine(
    predicted: ArrayLike,
    true: ArrayLike,
    *,
    reference: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Scores:
    """Cosine of the angle over genes."""
    check_arguments(cosine, locals())
    p, t, w = _prepare(predicted, true, reference, where, weights)
    return _cosine(p, t, w)


def r2(
    predicted: ArrayLike,
    true: ArrayLike,
    *,
    reference: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Scores:
    """Share of the variance over genes that is explained; below 0 where the true mean over genes does better."""
    check_arguments(r2, locals())
    p, t, w = _prepare(predicted, true, reference, where, weights)
    residual, total = (w * (p - t) ** 2).sum(axis=1), (w * _centred(t, w) ** 2).sum(axis=1)
    return 1 - _ratio(residual, total)


def direction_match(
    predicted: ArrayLike, true: ArrayLike, *, reference: ArrayLike, where: ArrayLike | None = None
) -> Scores:
    """Share of genes that move the same way; a gene without change has a direction of its own."""
    check_arguments(direction_match, locals())
    p, t, w = _prepare(predicted, true, reference, where, None)
    return _ratio((w * (np.sign(p) == np.sign(t))).sum(axis=1), w.sum(axis=1))


def spread_ratio(predicted: ArrayLike, true: ArrayLike) -> Scores:
    """Standard deviation over conditions of the predictions, divided by that of the truth, for every gene.

    Far below 1 means that the predictions hardly differ between perturbations.
    """
    check_arguments(spread_ratio, locals())
    sides = _rows("predicted", predicted), _rows("true", true)
    if sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(
            f"Expected `predicted` and `true` of the same genes, found {sides[0].shape[1]} and {sides[1].shape[1]}."
        )
    return _ratio(np.std(sides[0], axis=0), np.std(sides[1], axis=0))


def de_weights(scores: ArrayLike) -> Scores:
    """Weights of genes from signed test scores: the squared share of the way from the smallest to the largest.

    Parameters
    ----------
    scores
        (C, G) scores of each condition against the rest of the perturbed cells.  A score is infinite where a gene has
        two values without any variance; such a gene counts as much as the one with the largest finite score.

    Returns
    -------
    (C, G) weights in [0, 1]; all 1 where a condition has no difference between its scores.

    Raises
    ------
    ValueError
        If a score is NaN.
    """
    check_arguments(de_weights, locals())
    size = np.abs(as_numbers("scores", scores))
    infinite = np.isinf(size)
    size = _rows("scores", np.where(infinite, 0.0, size))
    # Where nothing else differs, being infinite is what tells genes apart.
    largest = np.maximum(size.max(axis=1, keepdims=True, initial=0.0), infinite.any(axis=1, keepdims=True))
    size = np.where(infinite, largest, size)
    low, high = size.min(axis=1, keepdims=True), size.max(axis=1, keepdims=True)
    flat = high == low
    return np.where(flat, 1.0, (size - low) / np.where(flat, 1.0, high - low)) ** 2


def highest(values: ArrayLike, n: int = 1000) -> NDArray[np.bool_]:
    """Mark the ``n`` highest values of each row, ties in the order of the genes.

    ``values`` (G,) or (C, G), for example control means, or absolute scores; ``n``: how many to mark; all where there
    are fewer.
    """
    check_integer("n", n, least=0)
    array = np.asarray(values, dtype=np.float64)
    order = np.argsort(-array, axis=-1, kind="stable")[..., :n]
    mask = np.zeros(array.shape, dtype=bool)
    np.put_along_axis(mask, order, values=True, axis=-1)
    return mask


def mask_of(positions: ArrayLike, n_genes: int) -> NDArray[np.bool_]:
    """Mask (C, G) from gene positions (C, k); negative positions mark nothing."""
    where = np.asarray(positions, dtype=np.int64)
    if where.ndim != 2 or (where >= n_genes).any():
        raise ValueError(
            f"Expected positions below {n_genes}, a row for each condition, found shape {where.shape} and positions up "
            f"to {where.max(initial=-1)}."
        )
    mask = np.zeros((where.shape[0], n_genes), dtype=bool)
    rows, columns = np.nonzero(where >= 0)
    mask[rows, where[rows, columns]] = True
    return mask


def log_fold_change(means: ArrayLike, control: ArrayLike, *, pseudocount: float = 0.1) -> Scores:
    """Difference of ``log2(mean + pseudocount)``, the effect that PerturBench compares."""
    profiles = _rows("means", means)
    base = check_fits("control", check_numbers("control", control), profiles.shape)
    return np.log2(profiles + pseudocount) - np.log2(base + pseudocount)


def _error(
    predicted: ArrayLike, true: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Scores, Scores]:
    p, t, w = _prepare(predicted, true, None, where, weights)
    return p - t, _ratio(w, w.sum(axis=1, keepdims=True))


def _prepare(
    predicted: ArrayLike,
    true: ArrayLike,
    reference: ArrayLike | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Scores, Scores, Scores]:
    """Both sides less the reference, and the weight of every value."""
    p, t = _rows("predicted", predicted), _rows("true", true)
    if p.shape != t.shape:
        raise ValueError(f"Expected `predicted` and `true` to have the same shape, found {p.shape} and {t.shape}.")
    if reference is not None:
        base = check_fits("reference", check_numbers("reference", reference), p.shape)
        p, t = p - base, t - base
    w = np.ones(p.shape)
    if weights is not None:
        w = check_fits("weights", check_numbers("weights", weights), p.shape)
        if (w < 0).any():
            raise ValueError(f"Expected `weights` that are not negative, found {w.min()}.")
    return p, t, w if where is None else w * check_fits("where", np.asarray(where, dtype=bool), p.shape)


def _rows(name: str, values: ArrayLike) -> Scores:
    """Conditions by genes, finite."""
    return check_numbers(name, values, ndim=2)


def _centred(values: Scores, weights: Scores) -> Scores:
    """Values less their mean; exactly 0 in a row that is constant but for rounding."""
    total = weights.sum(axis=1, keepdims=True)
    mean = np.nan_to_num(_ratio((weights * values).sum(axis=1, keepdims=True), total))
    centred = values - mean
    variance = np.nan_to_num(_ratio((weights * centred**2).sum(axis=1, keepdims=True), total))
    return np.where(np.sqrt(variance) <= _CONSTANT * np.abs(mean), 0, centred)


def _cosine(first: Scores, second: Scores, weights: Scores) -> Scores:
    product = (weights * first * second).sum(axis=1)
    norms = np.sqrt((weights * first**2).sum(axis=1)) * np.sqrt((weights * second**2).sum(axis=1))
    return _ratio(product, norms)


def _ratio(above: Scores, below: Scores) -> Scores:
    """Quotient, NaN where nothing is divided by."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)
