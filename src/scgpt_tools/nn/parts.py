"""Layers in training on CPUs, computed for some of the cells at a time, each part in a thread of its own, with gradients.

Torch shares each product, sum and exponential among its threads, which wait for each other at its end.  A few layers have
thousands of such ends, and two threads that sleep while they wait take as long as one.  Parts meet at the end of all layers
only.  Where they are cut depends on the cells alone, and so does what their dropout draws: results do not depend on the
number of threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from scgpt_tools._threads import in_training
from scgpt_tools.nn.dropout import Dropout, draw_seed, drawing_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scgpt_tools._threads import Run
    from scgpt_tools.nn.attention import PackedLayout

    Layers = Callable[[Tensor, PackedLayout], Tensor]

# Tokens of a part, and numbers in a narrow model: enough for its products, few enough for the caches.
_TOKENS, _NUMBERS = 2048, 2**18


def in_parts(layers: Layers, x: Tensor, layout: PackedLayout, module: nn.Module) -> Tensor:
    """Compute layers, in parts where :func:`scgpt_tools._threads.training_threads` lets them.

    ``layers``: from tokens (N, D) of whole cells to results (M, D) of tokens or cells; ``module``: has their parameters.
    """
    run = in_training()
    if run is None or not torch.is_grad_enabled() or x.device.type != "cpu" or not _divisible(module):
        return layers(x, layout)
    parts = _parts(layout, x.shape[-1])
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if len(parts) == 1 or not (learnt or x.requires_grad):
        return layers(x, layout)
    return cast("Tensor", _Parts.apply(run, layers, parts, x, *learnt))


def _divisible(module: nn.Module) -> bool:
    """Whether what its parts draw can be theirs, and nothing waits for gradients on their way."""
    draws = any(isinstance(part, nn.Dropout) and not isinstance(part, Dropout) and part.p for part in module.modules())
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not (draws or shared or getattr(module, "gradient_checkpointing", False))


def _parts(layout: PackedLayout, dim: int) -> list[PackedLayout]:
    """Cut into parts of like size: powers of two of them, which as many threads share evenly."""
    total = sum(layout.lengths)
    number = 1 << max(1, round(total / max(_TOKENS, _NUMBERS // dim))).bit_length() - 1
    ends = torch.tensor(layout.lengths).cumsum(0)
    # Where a cell ends nearest to each share of the tokens.
    shares = torch.arange(1, number) * total / number
    cuts = (ends[:, None] - shares).abs().argmin(dim=0) + 1
    bounds = [0, *cuts.unique().tolist(), len(ends)]
    return layout.divided([b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True) if b > a])


class _Parts(torch.autograd.Function):
    """Keeps the graph of each part, and follows it back when gradients come."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, layers: Layers, parts: list[PackedLayout], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[3]

        def compute(part: tuple[Tensor, PackedLayout, int]) -> tuple[Tensor, Tensor]:
            own, layout, seed = part
            with torch.enable_grad(), drawing_from(seed):
                given = own.detach().requires_grad_(wanted)
                return given, layers(given, layout)

        pieces = x.split([sum(part.lengths) for part in parts])
        seeds = [draw_seed() for _ in parts]
        ctx.run, ctx.parameters = run, parameters
        ctx.graphs = list(run(compute, zip(pieces, parts, seeds, strict=True)))
        return torch.cat([result.detach() for _, result in ctx.graphs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        graphs, parameters, wanted = ctx.graphs, ctx.parameters, ctx.needs_input_grad[3]
        ctx.graphs = None
        pieces = gradients[0].split([len(result) for _, result in graphs])

        def learn(part: tuple[tuple[Tensor, Tensor], Tensor]) -> tuple[Tensor | None, ...]:
            (given, result), gradient = part
            inputs = (given, *parameters) if wanted else parameters
            return torch.autograd.grad(result, inputs, gradient, allow_unused=True)

        for_x: list[Tensor] = []
        sums: list[Tensor | None] = [None] * len(parameters)
        for found in ctx.run(learn, zip(graphs, pieces, strict=True)):
            own = list(found)
            if wanted:
                for_x.append(cast("Tensor", own.pop(0)))
            sums = [_sum(before, new) for before, new in zip(sums, own, strict=True)]
        return (None, None, None, torch.cat(for_x) if wanted else None, *sums)


def _sum(before: Tensor | None, new: Tensor | None) -> Tensor | None:
    if before is None or new is None:
        return new if before is None else before
    return before.add_(new)
