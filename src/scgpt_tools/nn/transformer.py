"""The stack of transformer blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch.nn.functional as F
from torch import nn

from scgpt_tools.nn.attention import Attention, Layout, PackedLayout, PaddedLayout, query_key_products
from scgpt_tools.nn.dropout import Dropout
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.parts import in_parts
from scgpt_tools.nn.sockets import Embedded, Encoded, Encoder, EncoderConfig, Sizes, check_least

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch

BlockNorm = Literal["post", "pre", "replace"]
Activation = Literal["relu", "gelu", "silu"]
CountBias = Literal["none", "log1p", "values"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(EncoderConfig):
    """A stack of transformer blocks."""

    hidden: int = 512
    """Width between the two linear maps of the feed-forward part."""
    activation: Activation = "relu"
    """Between them."""
    norm: BlockNorm = "post"
    """Normalise the sum after each branch, or what goes into it (``"pre"``).  ``"replace"`` normalises the residual stream
    itself, as scGPT's fused layers with ``pre_norm`` do."""
    final_norm: bool = False
    """Layer norm after the last block."""
    eps: float = 1e-5
    """Added to variances by the norms; scModelForge's are 1e-12."""
    causal: bool = False
    """Let no token see those after it."""
    both_ways_for_cells: bool = False
    """Let all tokens see each other where a causal encoder embeds cells, and where heads of cells alone are asked, as
    scModelForge does; it was never pre-trained so."""
    sees_hidden: bool = True
    """Encode hidden tokens too.  Without, they are left out, and a head fills them in (masked autoencoder)."""
    sees_zeros: bool = True
    """Encode tokens whose value is 0 too; for tokenizers that keep such genes."""
    padding_mask: bool = True
    """Hide padding.  Without, a cell depends on how long its neighbours are."""
    count_bias: CountBias = "none"
    """Add the logarithms of values to the scores of the tokens that are looked at, so that each counts as often as it was
    seen: ``"log1p"`` of counts, or ``"values"`` that are logarithms already (TranscriptFormer).  Hidden values, whose
    markers are negative, add nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("hidden", self.hidden, 1)
        if not self.eps > 0:
            raise ValueError(f"Expected `eps` above 0, found {self.eps}.")

    def build(self, sizes: Sizes) -> Transformer:
        """Make the stack."""
        return Transformer(self, sizes.dim)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, dim: int, hidden: int, dropout: float, activation: Activation = "relu") -> None:
        super().__init__()
        self.expand, self.contract = Linear(dim, hidden), Linear(hidden, dim)
        self.activation, self.dropout = ACTIVATIONS[activation], Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return self.contract(self.dropout(self.activation(self.expand(x))))


class Block(nn.Module):
    r"""One transformer layer.

    ``norm="post"`` computes :math:`x \leftarrow N_1(x + A(x))`, :math:`x \leftarrow N_2(x + F(x))`; ``norm="pre"``
    computes :math:`x \leftarrow x + A(N_1(x))`, :math:`x \leftarrow x + F(N_2(x))`.  ``norm="replace"`` computes
    :math:`x \leftarrow N_1(x)`, :math:`x \leftarrow x + A(x)`, :math:`x \leftarrow N_2(x)`,
    :math:`x \leftarrow x + F(x)`: the residual stream itself is normalised, not only the branch.  Unusual, but scGPT's
    fused layers with ``pre_norm`` were trained so.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        norm: BlockNorm = "post",
        activation: Activation = "relu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout, activation)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout, *, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the new tokens, of the ``last`` layer those that the layout keeps, and attention weights if the backend has any."""
        seen = self.attended(x)
        if self.norm == "replace":
            x = seen
        attended, weights = self.attention(seen, layout, last=last)
        x = (layout.keep(x) if last else x) + self.dropout(attended)
        if self.norm == "pre":
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights
        if self.norm == "replace":
            x = self.feed_forward_norm(x)
            return x + self.dropout(self.feed_forward(x)), weights
        x = self.attention_norm(x)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x))), weights

    def attended(self, x: Tensor) -> Tensor:
        """What attention sees of the tokens."""
        return x if self.norm == "post" else self.attention_norm(x)


class Transformer(Encoder):
    """Blocks one after another, with a norm at the end if the configuration says so."""

    adapted: ClassVar[dict[str, str]] = {
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "out": "attention.out",
        "expand": "feed_forward.expand",
        "contract": "feed_forward.contract",
    }

    def __init__(self, config: TransformerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.packs = config.padding_mask and not config.causal and config.count_bias == "none"
        self.ordered, self.sees_hidden, self.sees_zeros = config.causal, config.sees_hidden, config.sees_zeros
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.hidden, config.dropout, config.norm, config.activation, config.eps)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim, eps=config.eps) if config.final_norm else nn.Identity()

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, by the name that scripts made for scGPT use."""
        return self.blocks

    @property
    def stages(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def forward(self, embedded: Embedded, batch: TokenBatch | PackedTokens, layout: Layout) -> Encoded:
        """Encode tokens in either layout; the last block computes what it keeps."""
        layout = self._visible(layout, batch)
        weights: list[Tensor] = []

        def layers(x: Tensor, layout: Layout) -> Tensor:
            for block in self.blocks:
                x, own = self.run(block, x, layout, last=block is self.blocks[-1])
                weights.extend([] if own is None else [own])
            return cast("Tensor", self.norm(x))

        def rounded(x: Tensor, layout: PackedLayout) -> Tensor:
            longer = layout.rounded(x)
            return layers(longer.lengthen(x), longer)[: layout.n_kept]

        if isinstance(layout, PackedLayout):
            return Encoded(in_parts(rounded, embedded.tokens, layout, self))
        return Encoded(layers(embedded.tokens, layout), weights=weights or None)

    def products(self, embedded: Embedded, batch: TokenBatch, layout: PaddedLayout, layer: int) -> Tensor:
        """Products of queries and keys (B, H, L, L) in one layer, unscaled."""
        x, visible = embedded.tokens, self._visible(layout, batch)
        for block in self.blocks[:layer]:
            x, _ = block(x, visible)
        block = cast("Block", self.blocks[layer])
        return query_key_products(block.attention, block.attended(x))

    def _visible(self, layout: Layout, batch: TokenBatch | PackedTokens) -> Layout:
        """Which tokens see which, and how much of each, as the configuration has it."""
        if self.packs:
            return layout
        if isinstance(layout, PackedLayout):
            raise ValueError(
                f"Expected 'sdpa' or 'eager' attention for an encoder that sees padding, is causal or has a bias of counts, "
                f"found {layout.backend!r}."
            )
        layout = layout if self.config.padding_mask else layout.unmasked()
        if self.config.count_bias != "none":
            seen = batch.values.clamp(min=0)
            layout = replace(layout, bias=seen.log1p() if self.config.count_bias == "log1p" else seen)
        both_ways = layout.for_cells and self.config.both_ways_for_cells
        return layout.causal() if self.config.causal and not both_ways else layout
