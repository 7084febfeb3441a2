"""DeepSC's first generation: attention with a sign for each pair of genes, for its checkpoints only.

Shape letters: B cells, L tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from scgpt_tools.nn.attention import Attention, PaddedLayout
from scgpt_tools.nn.dual_stream import DualStreamConfig, DualStreams, ResidualFeedForward, SelfBlock
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.sockets import Embedded, Encoded, Sizes, check_least

if TYPE_CHECKING:
    from typing import Literal  # noqa: F401 - a field of the base names it

    from torch import Tensor

    from scgpt_tools.nn.attention import Layout
    from scgpt_tools.nn.dual_stream import Cross  # noqa: F401 - a field of the base names it
    from scgpt_tools.nn.mixture import MixtureConfig
    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch


@dataclass(frozen=True, kw_only=True)
class EarlierStreamConfig(DualStreamConfig):
    """Two streams as DeepSC's first generations had them.

    Expression is asked by the genes as they came into the layer, without a norm, and is what is read (layout C).
    """

    gates_from: int | None = None
    """First layer of each stack whose attention is gated; ``None`` for no gates at all.

    A gate is -1, 0 or +1 for each pair of tokens, drawn from what both genes are, in evaluation as well."""
    unused_map: bool = True
    """Layers of expression hold a map of both streams that nothing reads, as checkpoints do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gates_from is not None:
            check_least("gates_from", self.gates_from, 0)
        if self.padding_mask or self.streams != "dual" or self.cross != "C":
            raise ValueError("Expected streams='dual', cross='C' and no padding mask for DeepSC's first generations.")

    def build(self, sizes: Sizes) -> EarlierStreams:
        """Make the layers."""
        return EarlierStreams(self, sizes.dim)


class GatedAttention(Attention):
    """Attention whose weights are signed by a matrix of -1, 0 and +1."""

    def gated(self, queries: Tensor, keys: Tensor, values: Tensor, gates: Tensor) -> Tensor:
        """Attend with gates (B, L, L); a token whose gates are all 0 sees nothing."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(queries, keys, values))
        signs = gates.unsqueeze(1)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + torch.where(signs == 0, -1e9, 0.0)
        weights = nn.functional.dropout(scores.softmax(dim=-1), self.dropout, self.training) * signs
        weights = weights / (weights.abs().sum(dim=-1, keepdim=True) + 1e-8)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def attend(self, x: Tensor, layout: Layout, gates: Tensor | None, *, values: Tensor | None = None) -> Tensor:
        """Attend to ``values``, or itself, with gates or without."""
        values = x if values is None else values
        if gates is not None:
            return self.gated(x, values, values, gates)
        return self(x, layout, keys=values, values=values).context


class FusedAttention(GatedAttention):
    """The same with a map of both streams that asks and is asked."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__(dim, heads, dropout)
        self.fuse = Linear(2 * dim, dim)

    def attend_fused(self, genes: Tensor, values: Tensor, layout: Layout, gates: Tensor | None) -> Tensor:
        """Let both streams together ask and be asked, and read expression."""
        both = self.fuse(torch.cat((genes, values), dim=-1))
        if gates is not None:
            return self.gated(both, both, values, gates)
        return self(both, layout, values=values).context


class Gates(nn.Module):
    """Draw -1, 0 or +1 for each pair of tokens."""

    TEMPERATURE = 0.3

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * dim, dim), nn.Linear(dim, 3)
        self.noise: Tensor | None = None
        """(B, L, L, 3) what to add to the logits; ``None`` draws it from torch's generator."""

    def logits(self, genes: Tensor) -> Tensor:
        """(B, L, D) to (B, L, L, 3)."""
        first, second = self.hidden.weight.chunk(2, dim=1)
        pairs = (genes @ first.T).unsqueeze(2) + (genes @ second.T).unsqueeze(1) + self.hidden.bias
        return self.out(pairs.relu())

    def forward(self, genes: Tensor) -> Tensor:
        """(B, L, D) to (B, L, L, 3): 1 for what was drawn, with the gradient of the chances."""
        logits = self.logits(genes)
        noise = -(-torch.rand_like(logits).clamp(1e-10, 1 - 1e-7).log()).log() if self.noise is None else self.noise
        soft = ((logits + noise) / self.TEMPERATURE).softmax(dim=-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
        return hard - soft.detach() + soft


class EarlierSelfBlock(SelfBlock):
    """A layer of expression alone."""

    def __init__(self, config: EarlierStreamConfig, dim: int, mixture: MixtureConfig | None, *, gated: bool) -> None:
        super().__init__(config, dim, mixture)
        make = FusedAttention if config.unused_map else GatedAttention
        self.attention = make(dim, config.heads, self.attention.dropout)
        self.gated = gated

    def forward(self, x: Tensor, layout: Layout, gates: Tensor | None) -> Tensor:  # type: ignore[override]
        """The new stream."""
        attention = cast("GatedAttention", self.attention)
        x = x + self.dropout(attention.attend(self.norm(x), layout, gates if self.gated else None))
        return x + self.dropout(self.feed_forward(self.feed_norm(x)))


class EarlierDualBlock(nn.Module):
    """A layer of both streams, each computed from what came in."""

    def __init__(self, config: EarlierStreamConfig, dim: int, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        dropout = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.gene_attention = GatedAttention(dim, config.heads, dropout)
        self.value_attention = GatedAttention(dim, config.heads, dropout)
        self.gene_norm, self.gene_feed_norm, self.value_norm, self.value_feed_norm = (
            nn.LayerNorm(dim) for _ in range(4)
        )
        self.gene_feed_forward, self.value_feed_forward = (ResidualFeedForward(config, dim) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, genes: Tensor, values: Tensor, layout: Layout, gates: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both streams."""
        gates = gates if self.gated else None
        attended = self.value_attention.attend(genes, layout, gates, values=self.value_norm(values))
        genes = genes + self.dropout(self.gene_attention.attend(self.gene_norm(genes), layout, gates))
        genes = genes + self.dropout(self.gene_feed_forward(self.gene_feed_norm(genes)))
        values = values + self.dropout(attended)
        return genes, values + self.dropout(self.value_feed_forward(self.value_feed_norm(values)))


class EarlierStreams(DualStreams):
    """Layers of DeepSC's first generations."""

    config: EarlierStreamConfig

    def __init__(self, config: EarlierStreamConfig, dim: int) -> None:
        super().__init__(config, dim)
        start = config.layers if config.gates_from is None else config.gates_from
        self.cross_blocks = nn.ModuleList(
            EarlierDualBlock(config, dim, gated=number >= start) for number in range(config.gene_layers)
        )
        plain = config.value_layers - (config.mixture.layers if config.mixture else 0)
        self.value_blocks = nn.ModuleList(
            EarlierSelfBlock(config, dim, config.mixture if number >= plain else None, gated=number >= start)
            for number in range(config.value_layers)
        )
        self.gates = None if config.gates_from is None else Gates(dim)

    def forward(self, embedded: Embedded, batch: TokenBatch | PackedTokens, layout: Layout) -> Encoded:
        """Encode both streams."""
        genes, values = embedded.parts["genes"], embedded.parts["values"]
        layout = cast("PaddedLayout", layout).unmasked()
        signs = None
        if self.gates is not None:
            drawn = self.gates(genes)
            signs = drawn[..., 2] - drawn[..., 0]
        for block in self.cross_blocks:
            genes, values = self.run(block, genes, values, layout, signs)
        for block in self.value_blocks:
            values = self.run(block, values, layout, signs)
        return self._encoded(layout.keep(genes), layout.keep(values), [])
