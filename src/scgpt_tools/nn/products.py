"""Attention within one cell on a CPU, without gradients, as matrix products whose scores stay in the cache.

Torch's fused attention on CPUs multiplies by the BLAS library, which is slow on processors that it was not made for.  Here both formats
go to oneDNN, and the softmax costs one exponential and one sum: keys are moved so that their mean is zero, which changes
no weight and keeps the largest score of every query above zero, and the division comes after the product with the values.

Shape letters: n tokens, H heads, D width, E = D / H.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch

from scgpt_tools.nn.processor import blas_is_at_home

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Bytes of scores for each thread at a time, measured: fewer split the products too finely, more leave the caches.
_CACHE = 2**22

# Tokens from which on fp32 is worth one call a head.
_LONG = 192

# Sums above this are not trusted: what they are made of, or its product with the values, may be infinite.
_LARGEST = 2.0**100


def products_pay(q: Tensor, k: Tensor) -> bool:
    """Whether this way is possible, on a CPU with oneDNN and uncompiled, and faster: in bf16, or for long cells."""
    if not has_products(q) or blas_is_at_home():
        return False
    return q.dtype == torch.bfloat16 or (q.dtype == torch.float32 and min(len(q), len(k)) >= _LONG)


def has_products(q: Tensor) -> bool:
    """Whether oneDNN's products are there: on a CPU, uncompiled."""
    return (
        q.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and bool(torch.backends.mkldnn.enabled)
        and onednn() is not None
    )


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor | None:
    """Attend within one cell.

    ``q``, ``k``, ``v`` (n, D) each, fp32 or bf16.  Returns (n, D), or ``None`` if scores are too far apart for this
    way, by more than a hundred powers of two.
    """
    width = q.shape[-1] // heads
    # Powers of two are cheaper than powers of e.  The factor goes to the keys, which are rounded here anyway.
    factor = math.log2(math.e) * width**-0.5
    centred = (k.float() - k.mean(dim=0, dtype=torch.float32)) * factor
    queries = q.unflatten(-1, (heads, width)).transpose(0, 1).contiguous()
    keys = centred.to(k.dtype).unflatten(-1, (heads, width)).transpose(0, 1).contiguous()
    values = v.t().contiguous().unflatten(0, (heads, width))
    context = q.new_empty(len(q), heads, width)
    several, rows = block_of(heads, len(q), len(k), q.dtype)
    largest = []
    for head in range(0, heads, several):
        part = slice(head, head + several)
        for start in range(0, len(q), rows):
            weights = _product(queries[part, start : start + rows], keys[part]).exp2_()
            # Added up in fp32 and rounded at the end; asked for a sum in fp32, torch would convert all weights first.
            sums = weights.sum(dim=-1, keepdim=True)
            largest.append(sums.amax())
            block = context[start : start + rows, part].transpose(0, 1)
            torch.div(_product(weights, values[part]), sums, out=block)
    return context.flatten(1) if bool(torch.stack(largest).amax() < _LARGEST) else None


def block_of(heads: int, queries: int, keys: int, dtype: torch.dtype) -> tuple[int, int]:
    """Heads and queries to compute at a time: several heads of a short cell, or some of the queries of a long one."""
    room = max(1, _CACHE * torch.get_num_threads() // dtype.itemsize)
    several = max(1, min(heads, room // (queries * keys))) if dtype == torch.bfloat16 else 1
    # Blocks of like size, none of them a small rest.
    blocks = min(queries, -(-queries * keys * several // room))
    return several, -(-queries // blocks)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """(H, n, i) times (H, m, i) transposed."""
    if x.dtype == torch.bfloat16:
        # Of a batch of one, the batched product copies its inputs: a third of the time.
        return x @ y.mT if len(x) > 1 else (x[0] @ y[0].T).unsqueeze(0)
    return product(x[0], y[0]).unsqueeze(0)


def product(x: Tensor, y: Tensor) -> Tensor:
    """(n, i) times (m, i) transposed, in fp32."""
    linear = onednn()
    assert linear is not None  # noqa: S101 - asked before
    result: Tensor = linear(x, y, None, "none", [], "")
    return result


@cache
def onednn() -> Callable[..., Tensor] | None:
    """Linear map of oneDNN, which torch keeps for its compiler; ``None`` where torch has been built without."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
