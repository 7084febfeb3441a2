"""Bins between the smallest and the largest value of each cell, and what they choose (DeepSC).

Numbers are divided in the precision of the values: in float32 the largest value of most cells lands in the last bin, in
float64 in the one below, as in the original.  Shape letters: B cells, L tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgpt_tools._validate import check_integer

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch

SMALL = 1e-8
THREE = (2.0, 5.5)
"""Edges of the bins of :func:`three_bins`."""


def linear_bins(values: Tensor, counted: Tensor, bins: int) -> Tensor:
    """Bin values by equal widths between the least and the largest counted one of each row.

    Parameters
    ----------
    values
        (B, L) expression.
    counted
        (B, L) True on values to bin.
    bins
        Number of bins, 1 to ``bins``.

    Returns
    -------
    (B, L) int64, 0 where nothing is counted.  All are 1 where all values are equal.
    """
    check_integer("bins", bins)
    least = values.masked_fill(~counted, torch.inf).amin(dim=1, keepdim=True)
    most = values.masked_fill(~counted, -torch.inf).amax(dim=1, keepdim=True)
    part = (values - least) / (most - least + SMALL)
    found = (part * (bins - 1)).floor().clamp(0, bins - 1) + 1
    return torch.where(counted, found.nan_to_num(), 0.0).long()


def log_bins(values: Tensor, bins: int) -> Tensor:
    """Bin one cell (L,) by equal widths of the logarithm: 1 below a value of 2, and 2 to ``bins`` from there on."""
    check_integer("bins", bins, least=2)
    large = values >= 2
    found = torch.ones_like(values, dtype=torch.int64)
    if not large.any():
        return found
    # Limits are of single precision whatever the values are, as in the original.
    low, high = torch.tensor(2.0).log(), (values.max().float() + SMALL).log()
    part = (values.clamp(min=2).log() - low) / (high - low + SMALL)
    by_log = ((part * (bins - 2)).floor() + 2).clamp(2, bins).long()
    return torch.where(large, torch.full_like(found, 2) if values.max() <= 2 else by_log, found)


def three_bins(values: Tensor) -> Tensor:
    """Bin values (...) by fixed edges: 1 up to 2, 2 below 5.5, 3 from there on."""
    low, high = THREE
    return 1 + (values > low).long() + (values >= high).long()


def with_bins(batch: TokenBatch, bins: int, *, zeros: bool, cls: bool) -> TokenBatch:
    """Add the bins of the values of a batch.

    Parameters
    ----------
    batch
        Cells.
    bins
        Number of bins.
    zeros
        Bin values of 0 as well; otherwise their bin is that of padding, 0.
    cls
        Whether a cell token comes first; its bin is ``bins + 1``.
    """
    counted = batch.mask & ((batch.values > 0) | zeros)
    if cls:
        counted[:, 0] = False
    found = linear_bins(batch.values, counted, bins) if counted.shape[1] else torch.zeros_like(batch.genes)
    if cls:
        found[:, 0] = bins + 1
    return batch.replace(bins=found)


def highest(batch: TokenBatch, length: int, *, keep_first: int) -> TokenBatch:
    """Keep the tokens of highest bins, or highest values where there are no bins; equal ones by their token ids.

    Parameters
    ----------
    batch
        Cells.
    length
        Most tokens of a cell.
    keep_first
        Leading tokens that are always kept, such as the cell token.
    """
    if batch.genes.shape[1] <= length:
        return batch
    rank = batch.values if batch.bins is None else batch.bins
    rank = rank.double().masked_fill(~batch.mask, -torch.inf)
    rank[:, :keep_first] = torch.inf
    by_gene = batch.genes.argsort(dim=1, stable=True)
    order = by_gene.gather(1, rank.gather(1, by_gene).argsort(dim=1, descending=True, stable=True))
    # Those of the first places, in the order of the columns again.
    return batch.gathered(order[:, :length].sort(dim=1).values)
