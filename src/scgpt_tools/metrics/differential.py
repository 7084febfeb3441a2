"""Agreement of the genes found differentially expressed in predicted and in true cells.

The scores of cell-eval 0.8, for predictions that are cells.  A Mann-Whitney test on predicted cells depends on how the
cells were made: cells without noise make everything significant.  State it with the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.stats import false_discovery_control, mannwhitneyu, rankdata

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_fraction, check_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CUTS = (50, 100, 200, 500)
# Below this an adjusted p value is as good as 0.
_SMALLEST = 1e-10


@dataclass(frozen=True)
class DifferentialExpression:
    """Test results of C conditions over G genes."""

    conditions: tuple[str, ...]
    log2_fold_change: NDArray[np.float64]
    """(C, G), infinite where one side is not expressed."""
    pvals_adj: NDArray[np.float64]
    """(C, G) by Benjamini and Hochberg within each condition."""


def differential_expression(cells: Any, labels: Sequence[str], *, control: str = "ctrl") -> DifferentialExpression:
    """Compare the cells of every condition with the controls by a Mann-Whitney test.

    Parameters
    ----------
    cells
        (N, G) log-normalised expression, dense or sparse.
    labels
        Condition of each cell.
    control
        Label of the controls.

    Returns
    -------
    Conditions in sorted order.  Fold changes compare geometric means of expression.
    """
    check_arguments(differential_expression, locals())
    groups = np.asarray(labels, dtype=str)
    if len(groups) != cells.shape[0]:
        raise ValueError(f"Expected a label for each of {cells.shape[0]} cells, found {len(groups)}.")
    names = [str(name) for name in np.unique(groups) if name != control]
    if len(names) == np.unique(groups).size:
        raise ValueError(f"Expected cells with the label {control!r} to compare with, found none.")
    reference = _dense(cells[np.flatnonzero(groups == control)])
    fold_changes, adjusted = [], []
    for name in names:
        own = _dense(cells[np.flatnonzero(groups == name)])
        fold_changes.append(_log2_fold_change(own, reference))
        adjusted.append(false_discovery_control(_mann_whitney(own, reference)))
    return DifferentialExpression(tuple(names), np.array(fold_changes), np.array(adjusted))


def de_agreement(
    predicted: DifferentialExpression, true: DifferentialExpression, *, threshold: float = 0.05
) -> dict[str, NDArray[np.float64]]:
    """Scores of every condition.

    Parameters
    ----------
    predicted, true
        Results for the same conditions and genes.
    threshold
        Adjusted p value below which a gene counts.

    Returns
    -------
    ``overlap_at_<k>``, the share of the k strongest true genes that are among the k strongest predicted ones, and
    ``precision_at_<k>`` with the number of predicted genes as the limit (``N`` takes all genes that count; the mean
    over all orders of genes that tie);
    ``de_direction_match`` and ``de_spearman_lfc_sig`` over the true genes; ``de_sig_genes_recall``; their numbers;
    ``pr_auc`` and ``roc_auc`` of the predicted p values.  NaN where a score has no meaning.
    """
    check_arguments(de_agreement, locals())
    check_fraction("threshold", threshold)
    if predicted.conditions != true.conditions or predicted.pvals_adj.shape != true.pvals_adj.shape:
        raise ValueError(
            "Expected the same conditions and genes in `predicted` and `true`, found "
            f"{_size(predicted)} and {_size(true)}, or other names."
        )
    rows = [
        _agreement(*values, threshold)
        for values in zip(
            predicted.log2_fold_change, predicted.pvals_adj, true.log2_fold_change, true.pvals_adj, strict=True
        )
    ]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def count_correlation(
    predicted: DifferentialExpression, true: DifferentialExpression, *, threshold: float = 0.05
) -> float:
    """Spearman correlation over conditions of the numbers of genes that count (cell-eval's ``de_spearman_sig``)."""
    counts = [(side.pvals_adj < threshold).sum(axis=1) for side in (predicted, true)]
    some = counts[1] > 0
    return _spearman(counts[0][some].astype(float), counts[1][some].astype(float)) if some.any() else 1.0


def _size(side: DifferentialExpression) -> str:
    return f"{len(side.conditions)} conditions of {side.pvals_adj.shape[-1]} genes"


def _agreement(
    predicted_change: NDArray[np.float64],
    predicted_p: NDArray[np.float64],
    true_change: NDArray[np.float64],
    true_p: NDArray[np.float64],
    threshold: float,
) -> dict[str, float]:
    found, real = predicted_p < threshold, true_p < threshold
    n_real, n_found = int(real.sum()), int(found.sum())
    scores: dict[str, float] = {}
    for name, limit in (("overlap", n_real), ("precision", n_found)):
        for label, k in {"N": limit, **{str(cut): min(cut, limit) for cut in _CUTS}}.items():
            shared = _among_strongest(predicted_change, found, k) * _among_strongest(true_change, real, k)
            scores[f"{name}_at_{label}"] = float(shared.sum()) / k if k else 0.0
    same = np.sign(predicted_change) == np.sign(true_change)
    return scores | {
        "de_direction_match": float(same[real].mean()) if n_real else np.nan,
        "de_spearman_lfc_sig": _spearman(predicted_change[real], true_change[real]),
        "de_sig_genes_recall": float(found[real].mean()) if n_real else np.nan,
        "de_nsig_counts_real": float(n_real),
        "de_nsig_counts_pred": float(n_found),
        "pr_auc": _average_precision(real, -np.log10(np.clip(predicted_p, _SMALLEST, 1))),
        "roc_auc": _roc_auc(real, -predicted_p.clip(_SMALLEST, 1)),
    }


def _among_strongest(change: NDArray[np.float64], counts: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Whether each gene is among the k largest absolute changes; genes that tie at the end share what is left.

    Where the controls lack a gene the change is infinite, so that ties are common.
    """
    size = np.where(counts, np.abs(change), -1.0)
    if k >= counts.sum():
        return counts.astype(np.float64)
    last = np.partition(size, -k)[-k] if k else np.inf
    tied = counts & (size == last)
    share = (k - (size > last).sum()) / tied.sum() if tied.any() else 0.0
    return np.where(tied, share, (size > last).astype(np.float64))


def _mann_whitney(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    same = (first.min(axis=0) == first.max(axis=0)) & (second == first[0]).all(axis=0)
    pvals = np.ones(first.shape[1])
    if not same.all():
        pvals[~same] = mannwhitneyu(first[:, ~same], second[:, ~same], axis=0, method="asymptotic").pvalue
    return pvals


def _log2_fold_change(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    means = [np.expm1(side.mean(axis=0)) for side in (first, second)]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(means[0] / means[1])
    return np.where(np.isnan(change), 0.0, change)


def _average_precision(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Sum of precisions weighted by the gain in recall, equal scores taken together."""
    if positive.all() or not positive.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), score.size - 1)
    hits = np.cumsum(positive[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def _roc_auc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    n = int(positive.sum())
    if n in (0, positive.size):
        return np.nan
    ranks = rankdata(score)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (positive.size - n)))


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if first.size < 2 or np.ptp(rankdata(first)) == 0 or np.ptp(rankdata(second)) == 0:
        return np.nan
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _dense(matrix: Any) -> NDArray[np.float64]:
    return check_numbers("cells", matrix.toarray() if sparse.issparse(matrix) else matrix, ndim=2)
