"""How well bins of expression are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class BinScores(NamedTuple):
    """Scores of each bin, from that of padding on, whose scores are 0 and which no mean counts."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]
    predicted: NDArray[np.float64]
    """Share of the predictions that are of each bin."""

    @property
    def macro_f1(self) -> float:
        """Mean over bins of their F1."""
        return float(self.f1[1:].mean())

    @property
    def mean_recall(self) -> float:
        """Mean over bins of their recall."""
        return float(self.recall[1:].mean())

    @property
    def mean_precision(self) -> float:
        """Mean over bins of their precision."""
        return float(self.precision[1:].mean())

    def most_predicted(self, n: int = 3) -> list[tuple[int, float]]:
        """The bins that are predicted most often, with their shares."""
        order = np.argsort(-self.predicted, kind="stable")[:n]
        return [(int(number), float(self.predicted[number])) for number in order]


def bin_scores(predicted: ArrayLike, true: ArrayLike, bins: int) -> BinScores:
    """Recall, precision and F1 of each bin of hidden values.

    Parameters
    ----------
    predicted, true
        (N,) bins, from 1 to ``bins``; 0 is that of padding.
    bins
        Number of bins.

    Returns
    -------
    Scores of the bins 0 to ``bins``; 0 where nothing is of a bin.

    Raises
    ------
    ValueError
        If lengths differ, there is nothing, or a number is no bin.

    Examples
    --------
    >>> from scgpt_tools import metrics
    >>> metrics.bin_scores([1, 2, 2], [1, 2, 1], bins=2).macro_f1
    0.6666666666666666
    """
    check_arguments(bin_scores, locals())
    found, known = (np.asarray(side, dtype=np.int64).ravel() for side in (predicted, true))
    size = check_integer("bins", bins) + 1
    if found.size != known.size or not found.size:
        raise ValueError(f"Expected as many predictions as bins, found {found.size} and {known.size}.")
    for name, side in (("predicted", found), ("true", known)):
        if side.min() < 0 or side.max() >= size:
            raise ValueError(f"Expected `{name}` within 0 .. {bins}, found {side.min()} .. {side.max()}.")
    right = np.bincount(known[found == known], minlength=size).astype(np.float64)
    recall = right / np.maximum(np.bincount(known, minlength=size), 1)
    precision = right / np.maximum(np.bincount(found, minlength=size), 1)
    recall[0] = precision[0] = 0.0
    f1 = 2 * recall * precision / np.maximum(recall + precision, np.finfo(np.float64).tiny)
    return BinScores(recall, precision, f1, np.bincount(found, minlength=size) / found.size)
