"""Which tokens of a cell look at which others: attention of one layer, before and after it is made comparable.

Letters: B cells, H heads, L tokens a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from scgpt_tools.models.formats.base import is_finite
from scgpt_tools.nn.attention import PaddedLayout

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.tokens.batch import TokenBatch

Normalization = Literal["rank", "softmax", "none"]


def attention_products(model: CellModel, batch: TokenBatch, *, layer: int) -> Tensor:
    """Products of queries and keys in one layer, neither scaled nor normalised.

    Returns (B, H, L, L), queries before keys; rows and columns of padding hold nothing of use.
    """
    embedded = model.embedder(batch, without={"generated"})
    products = model.encoder.products(embedded, batch, PaddedLayout.from_mask(batch.mask), layer)
    if not is_finite(products):
        raise ValueError(
            "Expected finite products of queries and keys, found NaN or infinite numbers. The weights may be damaged, or "
            "numbers may have grown too large: load the model anew."
        )
    return products


def normalized(products: Tensor, normalization: Normalization, width: int, *, ties_by_order: bool = False) -> Tensor:
    """Make the attention of one cell comparable with that of others; mean over heads.

    ``products`` (H, L, L) of one cell without padding; ``normalization``: ``"rank"`` ranks the keys of each query and
    then these ranks among the queries of each key, both divided by L, as scGPT's tutorial does; ``"softmax"`` is what
    the network uses; ``"none"`` leaves the products as they are.  Returns (L, L).
    """
    if normalization == "rank":
        # One head after another: ranks are whole numbers, several times as large as the products.
        total = torch.zeros_like(products[0])
        for head in products:
            total += ranks_of_ranks(head, ties_by_order=ties_by_order)
        return total / len(products)
    if normalization == "softmax":
        return (products * width**-0.5).softmax(dim=-1).mean(dim=0)
    return products.mean(dim=0)


def first_ranks(products: Tensor) -> Tensor:
    """Rank of each key within the row of its query, from 0: (..., L, L) int64."""
    return _ranks(products, dim=-1)


def ranks_of_ranks(products: Tensor, *, ties_by_order: bool = False) -> Tensor:
    """Ranks of keys within queries, ranked again within each key, over L.

    Many queries rank a key alike.  They share the mean of their places; the original puts them in the order of the
    tokens or, where its sort is not stable, in any, which ``ties_by_order`` does by a stable sort.
    """
    ranks = first_ranks(products)
    length = ranks.shape[-1]
    if ties_by_order:
        return _ranks(ranks, dim=-2) / length
    ranks = ranks.transpose(-1, -2).contiguous()  # queries beside each other, which is several times faster
    counts = torch.zeros(ranks.shape, dtype=torch.float32, device=ranks.device)
    counts.scatter_add_(-1, ranks, torch.ones((), device=ranks.device).expand(ranks.shape))
    # Of the queries of a key: how many rank it lower, and half of the others that rank it alike.
    place = counts.cumsum(dim=-1) - (counts + 1) / 2
    return (place.gather(-1, ranks) / length).transpose(-1, -2)


def _ranks(values: Tensor, dim: int) -> Tensor:
    """Place of each value along a dimension, from 0; equal ones in their order."""
    values = values.transpose(dim, -1)
    order = _order(values) if values.device.type == "cpu" else values.argsort(dim=-1, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    return torch.empty_like(order).scatter_(-1, order, places).transpose(dim, -1)


def _order(values: Tensor) -> Tensor:
    """What :func:`torch.argsort` gives along the last dimension where it is stable, in a third of the time on a CPU.

    The bits of a number that is not negative are in its order, and those of a negative one in the opposite one.  Behind
    them stands the place, so that plain numbers can be sorted and no two are equal.
    """
    bits = (values.float() + 0.0).contiguous().numpy().view(np.int32)  # no minus zero
    keys = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64) << 32
    keys |= np.arange(values.shape[-1])
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return torch.from_numpy(keys)
