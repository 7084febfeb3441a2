"""Linear maps, computed by whichever of torch's kernels is fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.nn.processor import blas_is_at_home
from scgpt_tools.nn.products import onednn, product

if TYPE_CHECKING:
    from torch import Tensor

# Below this many rows the detour costs more than it saves.
_FEW_ROWS = 64


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` with the same numbers, sooner on CPUs.

    In fp32 on a CPU a linear map goes to the BLAS library, a convolution to oneDNN.  A convolution of width one *is* a
    linear map, and on processors that the BLAS does not know well it takes half the time (``benchmarks/linear.py``).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Map (..., in) to (..., out) by weights (out, in), as :class:`Linear` does."""
    if not _convolution_pays(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    mapped: Tensor = _Mapped.apply(rows, weight, bias) if torch.is_grad_enabled() else _map(rows, weight, bias)
    return mapped.view(*x.shape[:-1], len(weight))


def _map(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, in) by (out, in) to (N, out), as a convolution of width one."""
    # Channels last, so that the rows stay where they are.  By its own name, because on one thread torch's `conv2d`
    # sends a convolution of width one to the BLAS as well.
    image = rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)
    mapped = torch.mkldnn_convolution(image, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return mapped.permute(0, 2, 3, 1).reshape(-1, len(weight))


class _Mapped(torch.autograd.Function):
    """The same with gradients that are two more products: oneDNN's own for convolutions take the time of the BLAS or longer.

    Torch transposes with one thread, so that of two matrices the narrower is copied and oneDNN reads the other as it lies.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _map(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        gradient, (for_rows, for_weight, for_bias) = gradients[0].contiguous(), ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if for_rows else None,
            _outer(gradient, rows) if for_weight else None,
            gradient.sum(dim=0) if for_bias else None,
        )


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """(N, i) transposed times (N, j), both in fp32."""
    if x.shape[1] <= y.shape[1]:
        return product(x.t().contiguous(), y.t())
    return product(y.t().contiguous(), x.t()).t()


def _convolution_pays(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        # The compiler has kernels of its own and does not know these.
        and not torch.compiler.is_compiling()
        and onednn() is not None
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= _FEW_ROWS * x.shape[-1]
        and not blas_is_at_home()
    )
