"""Attention within cells on a CPU with gradients and dropout, a few heads at a time, so that scores stay in the caches.

Nothing of the size of the scores is kept for the gradient: weights are computed again from the logarithm of their sums, as
FlashAttention does, and what dropout drew is drawn again from its seed.  Products are those of
:mod:`scgpt_tools.nn.products`.

Shape letters: N tokens of all cells, n of one, M and m those that are asked for, H heads, D width, E = D / H, h heads and r rows of queries at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from scgpt_tools.nn.dropout import draw_kept, draw_seed, drawing_from
from scgpt_tools.nn.products import block_of, has_products, product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Scores of all heads of a cell up to which they are computed together.
_TOGETHER = 2**19
# What numbers of tokens are rounded up to in half precision, where oneDNN compiles a product for each number that it meets.
_STEP = 16
# Logarithms of sums of powers of two, within which none of them is infinite, and what is 0 would not count.
_LEAST, _MOST = -40, 100
# Tokens from which on this is sooner than all heads at once with dropout, and than torch's kernel without.
_DROPPED, _PLAIN = 64, 512


def learning_pays(q: Tensor, longest: int, *, dropout: float) -> bool:
    """Whether this way is possible and faster, on a CPU and in a precision that it does not lower."""
    return (
        has_products(q) and q.dtype in (torch.float32, torch.bfloat16) and longest >= (_DROPPED if dropout else _PLAIN)
    )


def attend_and_learn(
    q: Tensor, k: Tensor, v: Tensor, queries: tuple[int, ...], lengths: tuple[int, ...], heads: int, dropout: float
) -> Tensor:
    """Attend within each cell, computed in fp32: ``q`` (M, D) and ``k``, ``v`` (N, D) to (M, D).

    ``queries`` and ``lengths``: how many of each cell.
    """
    context: Tensor = _Attend.apply(q, k, v, queries, lengths, heads, dropout)
    return context


class _Attend(torch.autograd.Function):
    """Softmax of products, dropout of weights, and products with the values."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        counts: tuple[int, ...],
        lengths: tuple[int, ...],
        heads: int,
        dropout: float,
    ) -> Tensor:
        seed = draw_seed() if dropout else 0
        result, logs = _attended(q, k, v, counts, lengths, heads, dropout, seed)
        least, most = logs.aminmax()
        if not bool((least > _LEAST) & (most < _MOST)):
            result, logs = _attended(q, k, v, counts, lengths, heads, dropout, seed, shifted=True)
        ctx.save_for_backward(q, k, v, result, logs)
        ctx.counts, ctx.lengths, ctx.heads, ctx.dropout, ctx.seed = counts, lengths, heads, dropout, seed
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, result, logs = ctx.saved_tensors
        heads, dropout = ctx.heads, ctx.dropout
        queries, keys, values = (_heads(_longer(x, q), heads) for x in (_scaled(q, heads), k, v))
        # What the weights of a query lose together, because their sum is one.
        shared = _heads(_longer(gradients[0] * result, q), heads).sum(dim=-1, keepdim=True, dtype=torch.float32)
        # Gradients of weights before dropout, which divides those that it keeps.
        asked = _heads(_longer(gradients[0] / (1 - dropout), q), heads)
        logs = _longer(logs, q)
        found = [torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v)]
        for_q, for_k, for_v = (_heads(x, heads) for x in found)
        with drawing_from(ctx.seed):
            for part, rows, cell in _blocks(ctx.counts, ctx.lengths, heads):
                (wide, m), (long, n) = _rounded(rows, q), _rounded(cell, q)
                query, given = queries[part, wide], asked[part, wide]
                weights = _product(query, keys[part, long]).float().sub_(logs[part, wide]).exp2_()
                weights[:, m:] = 0
                weights[:, :, n:] = 0
                change = _product(given, values[part, long]).float()
                seen = weights
                if dropout:
                    kept = draw_kept(weights.shape, dropout, weights.dtype)
                    change.mul_(kept)
                    seen = kept.mul_(weights)
                for_v[part, cell] += _outer(seen.to(q.dtype), given)[:, :n]
                change = change.sub_(shared[part, wide]).mul_(weights).to(q.dtype)
                for_q[part, rows] = _product(change, keys[part, long].mT)[:, :m]
                for_k[part, cell] += _outer(change, query)[:, :n]
        # The queries carry the factor of the scores and that of powers of two, whose gradient brings the latter back.
        found[0].mul_((q.shape[-1] // heads) ** -0.5)
        found[1].mul_(math.log(2))
        return (*(x.to(q.dtype) for x in found), None, None, None, None)


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: tuple[int, ...],
    lengths: tuple[int, ...],
    heads: int,
    dropout: float,
    seed: int,
    *,
    shifted: bool = False,
) -> tuple[Tensor, Tensor]:
    """What queries see (M, D), and the logarithms of the sums of their powers of two (H, M, 1).

    ``shifted``: take the largest score of each query from its others first, which scores that lie far apart need.
    """
    queries, keys, values = (_heads(_longer(x, q), heads) for x in (_scaled(q, heads), k, v))
    result, logs = torch.empty_like(q), torch.empty(heads, len(q), 1)
    context = _heads(result, heads)
    with drawing_from(seed):
        for part, rows, cell in _blocks(counts, lengths, heads):
            (wide, m), (long, n) = _rounded(rows, q), _rounded(cell, q)
            weights = _product(queries[part, wide], keys[part, long]).float()
            if shifted:
                largest = weights[:, :, :n].amax(dim=-1, keepdim=True)
                weights.sub_(largest)
            weights.exp2_()[:, :, n:] = 0
            sums = weights.sum(dim=-1, keepdim=True)
            log = sums.log2()
            logs[part, rows] = (log.add_(largest) if shifted else log)[:, :m]
            if dropout:
                weights.mul_(draw_kept(weights.shape, dropout, weights.dtype))
            seen = _product(weights.to(q.dtype), values[part, long].mT)
            context[part, rows] = (seen / sums.mul_(1 - dropout))[:, :m]
    return result, logs


def _longer(x: Tensor, like: Tensor) -> Tensor:
    """Rows of zeros after the last, in half precision, which the last block may reach into: (..., N, E) to (..., N', E)."""
    return x if like.dtype == torch.float32 else F.pad(x, (0, 0, 0, _STEP - 1))


def _rounded(rows: slice, like: Tensor) -> tuple[slice, int]:
    """Rows and others after them, as many as in :data:`_STEP`, and how many are meant."""
    count = rows.stop - rows.start
    if like.dtype == torch.float32:
        return rows, count
    return slice(rows.start, rows.start + -(-count // _STEP) * _STEP), count


def _product(x: Tensor, y: Tensor) -> Tensor:
    """(h, n, i) times (h, m, i) transposed."""
    if len(x) > 1:
        return x @ y.mT
    if x.dtype != torch.float32:
        return (x[0] @ y[0].T).unsqueeze(0)
    return product(_in_rows(x[0]), _in_rows(y[0])).unsqueeze(0)


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """(h, n, m) transposed times (h, n, i)."""
    if len(x) > 1:
        return x.mT @ y
    if x.dtype != torch.float32:
        return (x[0].T @ y[0]).unsqueeze(0)
    return product(y[0].T.contiguous(), x[0].T).T.unsqueeze(0)


def _in_rows(x: Tensor) -> Tensor:
    """Rows or columns without gaps: with gaps oneDNN takes a thousand times as long."""
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()


def _heads(x: Tensor, heads: int) -> Tensor:
    """(N, D) to (H, N, E), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(0, 1)


def _scaled(q: Tensor, heads: int) -> Tensor:
    """Queries whose products are scores as powers of two, which are cheaper than powers of e."""
    return q * (math.log2(math.e) * (q.shape[-1] // heads) ** -0.5)


def _blocks(queries: tuple[int, ...], lengths: tuple[int, ...], heads: int) -> Iterator[tuple[slice, slice, slice]]:
    """Heads, queries and cell of each part of the scores."""
    last = end = 0
    for m, n in zip(queries, lengths, strict=True):
        first, last = last, last + m
        start, end = end, end + n
        cell = slice(start, end)
        if heads * m * n <= _TOGETHER:
            if m:
                yield slice(None), slice(first, last), cell
            continue
        _, rows = block_of(heads, m, n, torch.float32)
        for head in range(heads):
            for row in range(first, last, rows):
                yield slice(head, head + 1), slice(row, min(row + rows, last)), cell
