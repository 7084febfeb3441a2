"""What confidences and distances of new cells are worth, from cells whose class is known.

Both functions take m cells whose class is known but that were treated as if it were not, the held-out ones, and N new
ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.isotonic import IsotonicRegression

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_fits, check_integer, check_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def calibrated_confidence(
    confidence: ArrayLike, *, held_out: ArrayLike, correct: ArrayLike, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    """How often answers of some confidence are right, by isotonic regression :cite:p:`Zadrozny2002`.

    Parameters
    ----------
    confidence
        (N,) confidences to calibrate, on any scale; more is surer.
    held_out
        (m,) confidences of the held-out cells.
    correct
        (m,) whether their answers are right.
    weights
        (m,) how many cells each held-out one stands for; ``None`` takes all alike.

    Returns
    -------
    (N,) probabilities that the answers are right; they rise with the confidence.  None is nearer to 0 or 1 than one case
    among ``m + 2``.

    Raises
    ------
    ValueError
        If lengths differ, a number is not finite, or there is no held-out cell.
    """
    check_arguments(calibrated_confidence, locals())
    new, known = check_numbers("confidence", confidence, ndim=1), check_numbers("held_out", held_out, ndim=1)
    if not known.size:
        raise ValueError("Expected at least one held-out cell, found none.")
    right = np.asarray(check_fits("correct", correct, known.shape), dtype=np.float64)
    shares = None if weights is None else np.asarray(check_fits("weights", weights, known.shape), dtype=np.float64)
    least = 1 / (known.size + 2)
    curve = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    return curve.fit(known, right, sample_weight=shares).predict(new)


def conformal_p_values(
    scores: ArrayLike,
    classes: ArrayLike,
    *,
    held_out: ArrayLike,
    held_out_classes: ArrayLike,
    min_cells: int = 20,
) -> NDArray[np.float64]:
    r"""Conformal p-value of each cell for being of the class that it was given :cite:p:`Vovk2005`.

    With :math:`m_c` held-out cells of class c, of which r have a score of at least that of the new cell, the p-value is
    :math:`(r + 1) / (m_c + 1)`.  If a new cell of class c comes from where the held-out ones do, it has a p-value of at
    most :math:`\alpha` with a probability of at most :math:`\alpha`, whatever the distribution of the scores.

    Parameters
    ----------
    scores
        (N,) how strange each cell is, such as its distance to the reference; more is stranger.
    classes
        (N,) number of the class of each.
    held_out
        (m,) scores of the held-out cells.
    held_out_classes
        (m,) numbers of their classes.
    min_cells
        Classes with fewer held-out cells are compared with those of all classes.

    Returns
    -------
    (N,) p-values.

    Raises
    ------
    ValueError
        If lengths differ, a number is not finite, or there is no held-out cell.
    """
    check_arguments(conformal_p_values, locals())
    check_integer("min_cells", min_cells)
    new, known = check_numbers("scores", scores, ndim=1), check_numbers("held_out", held_out, ndim=1)
    if not known.size:
        raise ValueError("Expected at least one held-out cell, found none.")
    given = np.asarray(check_fits("classes", classes, new.shape))
    own = np.asarray(check_fits("held_out_classes", held_out_classes, known.shape))
    result = np.empty(len(new))
    for number in np.unique(given):
        peers = known[own == number]
        ascending = np.sort(peers if len(peers) >= min_cells else known)
        some = given == number
        as_strange = len(ascending) - np.searchsorted(ascending, new[some], side="left")
        result[some] = (as_strange + 1) / (len(ascending) + 1)
    return result
