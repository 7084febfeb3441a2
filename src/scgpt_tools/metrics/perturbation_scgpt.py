"""The four correlations that scGPT and most tables after it report, number for number.

Known faults of the original, ``compute_perturbation_metrics``: conditions whose true mean is 0 everywhere are left out
in silence; correlations against the control share its part on both sides, so that they reward predictions that know
nothing of the perturbation; perturbed genes are part of the top genes; a constant prediction makes the mean NaN.
:func:`~scgpt_tools.metrics.perturbation.pearson` with the perturbed mean as its reference is the honest variant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_numbers
from scgpt_tools.metrics.perturbation import mask_of, pearson

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def scgpt_metrics(
    predicted: ArrayLike,
    true: ArrayLike,
    control: ArrayLike,
    top: ArrayLike,
    *,
    non_zero_genes: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Correlations of mean profiles and of their change against the control, per condition.

    Parameters
    ----------
    predicted, true
        (C, G) mean profiles.
    control
        (G,) mean of the controls.
    top
        (C, 20) positions of the top genes of each condition: by rank, or the list without dropouts where
        ``non_zero_genes``.
    non_zero_genes
        Correlate over all genes only where the true mean is not 0.

    Returns
    -------
    ``pearson``, ``pearson_de``, ``pearson_delta`` and ``pearson_de_delta``; NaN in all four for a condition whose true
    mean is 0 everywhere.
    """
    check_arguments(scgpt_metrics, locals())
    t = check_numbers("true", true, ndim=2)
    genes = t != 0 if non_zero_genes else np.ones(t.shape, dtype=bool)
    de = mask_of(top, t.shape[1])
    scores = {
        "pearson": pearson(predicted, t, where=genes),
        "pearson_de": pearson(predicted, t, where=de),
        "pearson_delta": pearson(predicted, t, reference=control, where=genes),
        "pearson_de_delta": pearson(predicted, t, reference=control, where=de),
    }
    empty = ~t.any(axis=1)
    return {name: np.where(empty, np.nan, values) for name, values in scores.items()}


def scgpt_means(scores: dict[str, NDArray[np.float64]], true: ArrayLike) -> dict[str, float]:
    """Means over the conditions that scGPT scores."""
    scored = np.asarray(true).any(axis=1)
    return {name: float(np.mean(values[scored])) for name, values in scores.items()}
