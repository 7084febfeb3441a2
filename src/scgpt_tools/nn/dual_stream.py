"""Two streams of vectors, one of genes and one of their expression, where expression looks at genes (DeepSC).

Everything is normalised before it is read (``pre``).  The plain feed-forward part adds its normalised input within
itself and the layer adds the residual stream once more, as the original has it.

Shape letters: ``...`` is (B, L), or (N,) for packed tokens; D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.nn.attention import Attention, Layout, PackedLayout, PaddedLayout, packing_pays
from scgpt_tools.nn.dropout import Dropout
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.mixture import MixtureConfig, MixtureFeedForward
from scgpt_tools.nn.sockets import Embedded, Encoded, Encoder, EncoderConfig, Sizes, check_least

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch

Cross = Literal["A", "B", "C"]

CROSS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "A": lambda genes, values: (values, genes, genes),
    "B": lambda genes, values: (genes, genes, values),
    "C": lambda genes, values: (genes, values, values),
}
"""What asks, what is asked and what is read where expression looks at genes."""

_GENES, _VALUES = ("genes", "perturbation"), ("values", "perturbation")


@dataclass(frozen=True, kw_only=True)
class DualStreamConfig(EncoderConfig):
    """Layers in which expression looks at genes, then layers of expression alone."""

    parts: ClassVar[tuple[str, ...]] = ("genes", "values", "perturbation")
    layers: int = 10
    """All of them."""
    dropout: float = 0.1
    """In feed-forward parts, after each branch and in heads."""
    attention_dropout: float | None = None
    """On attention weights; ``None`` for ``dropout``."""
    gene_layers: int = 3
    """Layers in which genes take part, the first ones."""
    streams: Literal["dual", "single"] = "dual"
    """``"dual"``: genes and expression go on together, layer by layer.  ``"single"``: genes go through all their layers
    first, and every layer of expression looks at the last."""
    cross: Cross = "A"
    """How expression looks at genes: query, key and value are expression, genes, genes (A); genes, genes, expression
    (B); or genes, expression, expression (C)."""
    hidden: int | None = None
    """Width between the maps of a feed-forward part; ``None`` for four times the width of the model."""
    depth: int = 2
    """Linear maps of a feed-forward part, 2 or more."""
    mixture: MixtureConfig | None = None
    """Experts in the last layers of expression alone."""
    padding_mask: bool = False
    """Hide padding.  DeepSC does not, so that a cell depends on how much padding its minibatch has."""
    pooled: Literal["values", "fused"] = "values"
    """What cells are pooled from: the stream of expression, or both streams together, as DeepSC's classifier reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("depth", self.depth, 2)
        if self.hidden is not None:
            check_least("hidden", self.hidden, 1)
        if not 0 <= self.gene_layers <= self.layers:
            raise ValueError(f"Expected `gene_layers` within 0 .. layers={self.layers}, found {self.gene_layers}.")
        if self.attention_dropout is not None and not 0 <= self.attention_dropout < 1:
            raise ValueError(f"Expected `attention_dropout` to be in [0, 1), found {self.attention_dropout}.")

    @property
    def value_layers(self) -> int:
        """Layers of expression alone."""
        return self.layers - self.gene_layers

    def build(self, sizes: Sizes) -> DualStreams:
        """Make the layers."""
        return DualStreams(self, sizes.dim)


class ResidualFeedForward(nn.Module):
    """Two or more maps with GELU between them, added to what goes in."""

    def __init__(self, config: DualStreamConfig, dim: int) -> None:
        super().__init__()
        hidden = config.hidden or 4 * dim
        self.expand, self.contract = Linear(dim, hidden), Linear(hidden, dim)
        self.middle = nn.ModuleList(Linear(hidden, hidden) for _ in range(config.depth - 2))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        hidden = self.dropout(F.gelu(self.expand(x)))
        for layer in self.middle:
            hidden = hidden + self.dropout(F.gelu(layer(hidden)))
        return x + self.dropout(self.contract(hidden))


class SelfBlock(nn.Module):
    """A layer of one stream."""

    def __init__(self, config: DualStreamConfig, dim: int, mixture: MixtureConfig | None = None) -> None:
        super().__init__()
        self.attention = Attention(dim, config.heads, _attention_dropout(config))
        self.norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward: nn.Module = (
            ResidualFeedForward(config, dim) if mixture is None else MixtureFeedForward(dim, mixture)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout, *, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """The new stream, of the ``last`` layer the tokens that the layout keeps, and attention weights if the backend has any."""
        attended, weights = self.attention(self.norm(x), layout, last=last)
        x = (layout.keep(x) if last else x) + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_norm(x))), weights


class CrossBlock(nn.Module):
    """A layer of expression that looks at genes, which stay as they are."""

    def __init__(self, config: DualStreamConfig, dim: int) -> None:
        super().__init__()
        self.cross = CROSS[config.cross]
        self.attention = Attention(dim, config.heads, _attention_dropout(config))
        self.gene_norm, self.norm, self.feed_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.feed_forward = ResidualFeedForward(config, dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, genes: Tensor, values: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both streams, and attention weights if the backend has any."""
        asks, asked, read = self.cross(self.gene_norm(genes), self.norm(values))
        attended, weights = self.attention(asks, layout, keys=asked, values=read)
        values = values + self.dropout(attended)
        return genes, values + self.dropout(self.feed_forward(self.feed_norm(values))), weights


class DualBlock(nn.Module):
    """A layer of both streams: genes among themselves, then expression looking at the new genes."""

    def __init__(self, config: DualStreamConfig, dim: int) -> None:
        super().__init__()
        self.genes = SelfBlock(config, dim)
        self.values = CrossBlock(config, dim)

    def forward(self, genes: Tensor, values: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both streams, and attention weights of expression if the backend has any."""
        return cast("tuple[Tensor, Tensor, Tensor | None]", self.values(self.genes(genes, layout)[0], values, layout))


class DualStreams(Encoder):
    """Layers of genes and expression, and a map that fuses both streams for the heads."""

    parts = DualStreamConfig.parts
    adapted: ClassVar[dict[str, str]] = {
        **{name: f"attention.{name}" for name in ("query", "key", "value", "out")},
        "expand": "feed_forward.expand",
        "contract": "feed_forward.contract",
    }

    def __init__(self, config: DualStreamConfig, dim: int) -> None:
        super().__init__()
        self.config, self.packs = config, config.padding_mask
        dual = config.streams == "dual"
        self.gene_blocks = nn.ModuleList(SelfBlock(config, dim) for _ in range(0 if dual else config.gene_layers))
        make = DualBlock if dual else CrossBlock
        self.cross_blocks = nn.ModuleList(make(config, dim) for _ in range(config.gene_layers))
        plain = config.value_layers - (config.mixture.layers if config.mixture else 0)
        self.value_blocks = nn.ModuleList(
            SelfBlock(config, dim, config.mixture if number >= plain else None) for number in range(config.value_layers)
        )
        self.fuse = Linear(2 * dim, dim)

    @property
    def stages(self) -> list[nn.Module]:
        """All layers."""
        return [*self.gene_blocks, *self.cross_blocks, *self.value_blocks]

    def forward(self, embedded: Embedded, batch: TokenBatch | PackedTokens, layout: Layout) -> Encoded:
        """Encode both streams; the last layer computes what it keeps."""
        genes, values = embedded.total(_GENES), embedded.total(_VALUES)
        if self.packs:
            return self.encode(genes, values, layout)
        layout = cast("PaddedLayout", layout).unmasked()
        dropout = self.training and _attention_dropout(self.config) > 0
        # Where padding is seen all cells are as long as each other, and can lie in a row without being packed.
        if layout.backend != "sdpa" or not packing_pays(torch.ones_like(layout.mask), dropout=dropout):
            return self.encode(genes, values, layout)
        cells, length = layout.mask.shape
        in_a_row = PackedLayout.from_lengths((length,) * cells, layout.mask.device)
        if layout.first_only:
            in_a_row = in_a_row.keeping_first()
        encoded = self.encode(genes.flatten(0, 1), values.flatten(0, 1), in_a_row)
        return encoded.unpacked(lambda stream: stream.unflatten(0, (cells, -1)))

    def encode(self, genes: Tensor, values: Tensor, layout: Layout) -> Encoded:
        """From the two streams at the start to those at the end."""
        if isinstance(layout, PackedLayout) and (longer := layout.rounded(genes)) is not layout:
            encoded = self.encode(longer.lengthen(genes), longer.lengthen(values), longer)
            return encoded.unpacked(lambda stream: stream[: layout.n_kept])
        found: list[Tensor | None] = []
        for block in self.gene_blocks:
            genes, _ = self.run(block, genes, layout)
        for block in self.cross_blocks:
            genes, values, weights = self.run(block, genes, values, layout)
            found.append(weights)
        for block in self.value_blocks:
            values, weights = self.run(block, values, layout, last=block is self.value_blocks[-1])
            found.append(weights)
        values = values if self.value_blocks else layout.keep(values)
        return self._encoded(layout.keep(genes), values, found)

    def _encoded(self, genes: Tensor, values: Tensor, found: list[Tensor | None]) -> Encoded:
        fused = self.fuse(torch.cat((genes, values), dim=-1))
        weights = [each for each in found if each is not None]
        return Encoded(
            fused if self.config.pooled == "fused" else values,
            {"genes": genes, "values": values, "fused": fused},
            weights or None,
        )


def _attention_dropout(config: DualStreamConfig) -> float:
    return config.dropout if config.attention_dropout is None else config.attention_dropout
