"""The decoder of a masked autoencoder: values of tokens that the encoder left out, from those that it saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.attention import layout_that_pays
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.sockets import Embedded, HeadConfig, HeadInput, Sizes, check_least
from scgpt_tools.nn.transformer import Activation, TransformerConfig

if TYPE_CHECKING:
    from torch import Tensor


class DecoderHead(nn.Module):
    """A transformer of its own over all tokens, with one vector in the place of those that were left out."""

    def __init__(self, config: DecoderConfig, dim: int) -> None:
        super().__init__()
        width = dim // 2 if config.dim is None else config.dim
        self.narrow = Linear(dim, width)
        self.missing = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.zero = nn.Parameter(torch.empty(width).normal_(std=0.02)) if config.zeros else None
        self.genes = Linear(dim, width) if config.genes else None
        self.positions = nn.Embedding(config.positions, width) if config.positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = config.dropout
        self.transformer = config.transformer(width).build(Sizes(dim=width))
        self.dense, self.out = Linear(width, width), nn.Linear(width, 1)

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return the expression (B, L)."""
        batch = inputs.batch
        seen = batch.mask if batch.hidden is None else batch.mask & ~batch.hidden
        narrow = self.narrow(inputs.tokens)
        x = torch.where(seen.unsqueeze(-1), narrow, self.missing.to(narrow.dtype))
        if self.zero is not None:
            zeros = seen & (batch.values == 0)
            x = torch.where(zeros.unsqueeze(-1), self.zero.to(narrow.dtype), x)
        if self.genes is not None:
            x = x + self.genes(inputs.genes)
        if self.positions is not None:
            x = x + self.positions(batch.require("positions"))
        layout = layout_that_pays(batch.mask, dropout=self.training and self.dropout > 0)
        decoded = self.transformer(Embedded(layout.pack(x), {}), batch, layout).tokens
        return {"": layout.unpack(self.out(F.gelu(self.dense(decoded)))).squeeze(-1)}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(HeadConfig):
    """Predict values of hidden tokens by a transformer over all tokens, the decoder of a masked autoencoder.

    Goes with an encoder that leaves hidden tokens out (``sees_hidden=False``).
    """

    dim: int | None = None
    """Width; ``None`` for half of the encoder's."""
    layers: int = 4
    heads: int = 8
    hidden: int | None = None
    """Width between the two linear maps of the feed-forward part; ``None`` for four times the width."""
    dropout: float = 0.1
    activation: Activation = "gelu"
    eps: float = 1e-5
    """Added to variances by the norms of its blocks."""
    genes: bool = True
    """Let it know which gene each hidden token is of.  scModelForge's does not, and predicts one number for all."""
    positions: int | None = None
    """Rows of a table of positions; ``None`` for none."""
    zeros: bool = False
    """Have one vector for values of 0, which goes with an encoder that leaves them out (``sees_zeros=False``)."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("dim", "hidden", "positions"):
            if getattr(self, name) is not None:
                check_least(name, getattr(self, name), 1)
        self.transformer(self.dim or self.heads)

    def transformer(self, width: int) -> TransformerConfig:
        """Describe its blocks."""
        return TransformerConfig(
            layers=self.layers,
            heads=self.heads,
            hidden=4 * width if self.hidden is None else self.hidden,
            dropout=self.dropout,
            activation=self.activation,
            norm="pre",
            eps=self.eps,
        )

    def check(self, sizes: Sizes) -> None:
        """Refuse a width that the heads do not divide."""
        width = sizes.dim // 2 if self.dim is None else self.dim
        self.transformer(width).check(Sizes(dim=width))

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the decoder."""
        return DecoderHead(self, sizes.dim)
