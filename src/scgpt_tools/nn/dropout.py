"""Dropout of large matrices on a CPU, where drawing random numbers is most of its work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Probabilities are multiples of 2 to the minus this.
_BITS = 16


def drop(x: Tensor, probability: float) -> Tensor:
    """Set numbers to zero at random, without scaling the others.

    Takes half the time of :func:`torch.nn.functional.dropout`, because four numbers share one draw from torch's
    generator.

    ``probability``: of becoming zero; rounded to 16 bits.
    """
    dropped: Tensor = _Drop.apply(x, probability)
    return dropped


def draw_bits(shape: Sequence[int]) -> Tensor:
    """Whole numbers of 16 bits from torch's generator, each as likely as any other."""
    size = math.prod(shape)
    draws = torch.empty(-(-size * _BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[:size].view(*shape)


def threshold_of(probability: float) -> int:
    """Number of 16 bits from which on a draw is kept."""
    return round((probability - 0.5) * 2**_BITS)


class _Drop(torch.autograd.Function):
    """Keeps one byte a number for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept = draw_bits(x.shape) >= threshold_of(probability)
        ctx.save_for_backward(kept)
        return x * kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept, None
