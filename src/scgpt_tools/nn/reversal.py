"""Gradient reversal: the identity whose gradient is negated, and perhaps scaled, for adversarial training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (-gradient if ctx.factor == 1.0 else -ctx.factor * gradient), None


def reverse_gradient(x: Tensor, factor: float = 1.0) -> Tensor:
    """Return ``x``; in the backward pass its gradient is multiplied by ``-factor`` :cite:p:`Ganin2016`."""
    return _Reverse.apply(x, factor)
