"""Bins by edges that are the same for all cells: of equal width, or with as many values of a sample in each.

A value has the bin of how many inner edges lie below it; one on an edge belongs to the bin on its left, so that small values
share bin 0 with zero.  Edges are compared in float32, as scModelForge does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgpt_tools._validate import check_finite, check_integer, check_number

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


def uniform_edges(bins: int, largest: float = 10.0) -> tuple[float, ...]:
    """Make edges of equal distance between 0 and the largest value.

    Parameters
    ----------
    bins
        Number of bins.
    largest
        Last edge; values above it have the last bin.

    Returns
    -------
    ``bins + 1`` ascending edges, for :class:`~scgpt_tools.tokens.TokenizerConfig`.
    """
    check_integer("bins", bins)
    check_number("largest", largest, above=0)
    return tuple(np.linspace(0.0, largest, bins + 1).tolist())


def quantile_edges(values: ArrayLike, bins: int) -> tuple[float, ...]:
    """Fit edges to a sample, so that each bin has as many of its positive values.

    Parameters
    ----------
    values
        Expression of training cells, in the unit that the tokenizer gives; zeros do not count.
    bins
        Most bins; ties make them fewer, since equal edges are one.

    Returns
    -------
    Ascending edges, for :class:`~scgpt_tools.tokens.TokenizerConfig`.

    Raises
    ------
    ValueError
        If no value is positive, or the positive ones are all equal.
    """
    check_integer("bins", bins)
    sample = np.asarray(values).ravel()
    check_finite("`values`", sample, "Leave out cells without a measurement.")
    positive = sample[sample > 0]
    if not positive.size:
        raise ValueError(f"Expected positive values to fit bins to, found none among {sample.size}.")
    edges = np.unique(np.quantile(positive, np.linspace(0, 1, bins + 1)))
    if len(edges) < 2:
        raise ValueError(f"Expected different positive values to fit bins to, found only {edges[0]}.")
    return tuple(edges.astype(np.float64).tolist())


def bins_of(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Bin values (...) by edges; int64 of the same shape."""
    inner = torch.tensor(edges[1:-1], dtype=torch.float32, device=values.device)
    return torch.searchsorted(inner, values.float().contiguous(), right=False)
