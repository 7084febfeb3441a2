"""The stack of transformer blocks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from scgpt_tools.nn.attention import Attention, Layout
from scgpt_tools.nn.linear import Linear

if TYPE_CHECKING:
    from torch import Tensor


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.contract = Linear(dim, hidden), Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return self.contract(self.dropout(F.relu(self.expand(x))))


class Block(nn.Module):
    r"""One transformer layer.

    ``norm="post"`` computes :math:`x \leftarrow N_1(x + A(x))`, :math:`x \leftarrow N_2(x + F(x))`.  ``norm="replace"``
    computes :math:`x \leftarrow N_1(x)`, :math:`x \leftarrow x + A(x)`, :math:`x \leftarrow N_2(x)`,
    :math:`x \leftarrow x + F(x)`: the residual stream itself is normalised, not only the branch.  Unusual, but scGPT's
    fused layers with ``pre_norm`` were trained so.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float, norm: Literal["post", "replace"] = "post"
    ) -> None:
        super().__init__()
        self.norm_first = norm == "replace"
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, layout: Layout, backend: str, *, first_only: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the new tokens and the attention weights, if the backend has any."""
        if self.norm_first:
            x = self.attention_norm(x)
        attended, weights = self.attention(x, layout, backend, first_only=first_only)
        x = (layout.first(x) if first_only else x) + self.dropout(attended)
        if self.norm_first:
            x = self.feed_forward_norm(x)
            return x + self.dropout(self.feed_forward(x)), weights
        x = self.attention_norm(x)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x))), weights


class Transformer(nn.Module):
    """Blocks one after another, without a norm at the end."""

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float,
        norm: Literal["post", "replace"] = "post",
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout, norm) for _ in range(layers))
        self.gradient_checkpointing = False
        """Keep only what goes into each block and compute the rest again for the gradients."""

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, by the name that scripts made for scGPT use."""
        return self.blocks

    def forward(
        self, x: Tensor, layout: Layout, backend: str, *, first_only: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Encode tokens in either layout.

        ``first_only`` returns the first token of each cell and spares the last block the others.
        """
        weights: list[Tensor] = []
        last = len(self.blocks) - 1
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            x, layer_weights = run(x, layout, backend, first_only=first_only and number == last)
            if layer_weights is not None:
                weights.append(layer_weights)
        return x, weights or None
