"""Attention within one cell on a CPU with gradients and dropout, head by head, so that scores stay in the caches.

Nothing of the size of the scores is kept for the gradient but what was drawn for dropout: weights are computed again from
the logarithm of their sums, as FlashAttention does.  Products are those of :mod:`scgpt_tools.nn.products`.

Shape letters: n tokens, H heads, D width, E = D / H, r rows of queries at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from scgpt_tools.nn.dropout import draw_bits, kept_of
from scgpt_tools.nn.products import block_of, has_products, product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Tokens from which on this is sooner than all heads at once with dropout, and than torch's kernel without.
_DROPPED, _PLAIN = 256, 512


def learning_pays(q: Tensor, k: Tensor, *, dropout: float) -> bool:
    """Whether this way is possible and faster: in fp32 on a CPU, for long cells."""
    least = _DROPPED if dropout else _PLAIN
    return has_products(q) and q.dtype == torch.float32 and min(len(q), len(k)) >= least


def attend_and_learn(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """Attend within one cell: ``q``, ``k``, ``v`` (n, D) each, fp32, to (n, D)."""
    context: Tensor = _Attend.apply(q, k, v, heads, dropout)
    return context


class _Attend(torch.autograd.Function):
    """Softmax of products, dropout of weights, and products with the values."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
        queries, keys, values = _scaled(q, heads), _heads(k, heads), _heads(v, heads)
        columns = values.mT.contiguous()
        context, logs = torch.empty_like(queries), q.new_empty(heads, len(q), 1)
        bits = []
        for head, rows in _blocks(heads, len(q), len(k), q.dtype):
            scores = product(queries[head, rows], keys[head])
            largest = scores.amax(dim=-1, keepdim=True)
            weights = scores.sub_(largest).exp2_()
            sums = weights.sum(dim=-1, keepdim=True)
            torch.add(largest, sums.log2(), out=logs[head, rows])
            if dropout:
                bits.append(draw_bits(weights.shape))
                weights.mul_(kept_of(bits[-1], dropout, weights.dtype))
            torch.div(product(weights, columns[head]), sums.mul_(1 - dropout), out=context[head, rows])
        result = _merged(context)
        ctx.save_for_backward(q, k, v, result, logs, *bits)
        ctx.heads, ctx.dropout = heads, dropout
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, result, logs, *bits = ctx.saved_tensors
        heads, dropout = ctx.heads, ctx.dropout
        queries, keys, values = _scaled(q, heads), _heads(k, heads), _heads(v, heads)
        asked = _heads(gradients[0], heads)
        # What the weights of a query lose together, because their sum is one.
        shared = (asked * _heads(result, heads)).sum(dim=-1, keepdim=True)
        # Gradients of weights before dropout, which divides those that it keeps.
        through = asked / (1 - dropout)
        key_columns = keys.mT.contiguous()
        for_q, for_k, for_v = (torch.zeros_like(part) for part in (queries, key_columns, key_columns))
        drawn = iter(bits)
        kept: Tensor | None = None
        for head, rows in _blocks(heads, len(q), len(k), q.dtype):
            query, given = queries[head, rows], through[head, rows]
            weights = product(query, keys[head]).sub_(logs[head, rows]).exp2_()
            change = product(given, values[head])
            seen = weights
            if dropout:
                kept = kept_of(next(drawn), dropout, weights.dtype)
                change.mul_(kept)
                seen = kept.mul_(weights)
            for_v[head] += product(given.mT.contiguous(), seen.mT)
            change.sub_(shared[head, rows]).mul_(weights)
            for_q[head, rows] = product(change, key_columns[head])
            for_k[head] += product(query.mT.contiguous(), change.mT)
        # The queries carry the factor of the scores and that of powers of two, whose gradient brings the latter back.
        return (
            _merged(for_q).mul_((q.shape[-1] // heads) ** -0.5),
            _merged(for_k.mT).mul_(math.log(2)),
            _merged(for_v.mT),
            None,
            None,
        )


def _heads(x: Tensor, heads: int) -> Tensor:
    """(n, D) to (H, n, E), each head in a row."""
    return x.unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()


def _merged(x: Tensor) -> Tensor:
    """(H, n, E) to (n, D)."""
    return x.transpose(0, 1).flatten(1)


def _scaled(q: Tensor, heads: int) -> Tensor:
    """Queries whose products are scores as powers of two, which are cheaper than powers of e."""
    return _heads(q * (math.log2(math.e) * (q.shape[-1] // heads) ** -0.5), heads)


def _blocks(heads: int, queries: int, keys: int, dtype: torch.dtype) -> Iterator[tuple[int, slice]]:
    """Head and rows of each part of the scores."""
    _, rows = block_of(heads, queries, keys, dtype)
    for head in range(heads):
        for start in range(0, queries, rows):
            yield head, slice(start, start + rows)
