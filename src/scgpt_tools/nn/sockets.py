"""What the parts of a network plug into: the parts of the embedder, the encoder and the heads, and what passes between.

A part is described by a configuration that builds its module; ``nn/tables.py`` lists those of each socket by the kind
that files call them.  A part of one's own is a configuration with a module, and a row there.

Shape letters: B cells, L tokens, D width.  ``...`` is (B, L), or (N,) where tokens of all cells are in a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scgpt_tools._lookup import lookup
from scgpt_tools.config import OneOf, settle_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from scgpt_tools.nn.attention import Layout, PaddedLayout
    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What all parts of one model are built to."""

    dim: int
    n_tokens: int = 0
    """Rows of tables that are read by token ids."""
    pad_id: int | None = None
    """Token id of padding, whose row is never trained."""
    dropout: float = 0.0
    """Of the encoder."""
    domains: int = 0
    """Batch labels with statistics of their own."""
    context: bool = False
    """Whether heads are given batch label or modality beside tokens and cells."""

    @property
    def width(self) -> int:
        """Width of tokens and cells together with their context."""
        return 2 * self.dim if self.context else self.dim


def check_least(name: str, value: int, least: int) -> None:
    """Refuse a size that is too small."""
    if value < least:
        raise ValueError(f"Expected `{name}` to be at least {least}, found {value}.")


def check_row(name: str, row: int | None, rows: int) -> None:
    """Refuse a row that its table does not have."""
    if row is not None and not 0 <= row < rows:
        raise ValueError(f"Expected `{name}` to be None or a row of its table of {rows}, found {row}.")


# Parts of the embedder ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PartConfig(OneOf):
    """What a token's vector is made of: its module turns fields of the batch, (...) each, into vectors (..., D)."""

    operation: ClassVar[Literal["add", "multiply", "replace"]] = "add"
    """How the vectors join those of the parts before; ``"replace"`` takes the place of another part's, see ``of``."""
    optional: ClassVar[bool] = False
    """Whether a batch may lack what the part reads; the part is then left out."""
    by_task: ClassVar[bool] = False
    """Whether a task brings the part with it, so that it is trained where the pre-trained parts are held."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields of the batch, in the order in which the module takes them."""
        raise NotImplementedError

    def check(self, sizes: Sizes) -> None:
        """Refuse sizes that the part does not fit."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the module."""
        raise NotImplementedError


class Embedded(NamedTuple):
    """Vectors of the tokens, before the encoder."""

    tokens: Tensor
    """(..., D) all parts together."""
    parts: dict[str, Tensor]
    """(..., D) each part by its name, for encoders that read several streams and for heads."""

    @property
    def genes(self) -> Tensor:
        """(..., D) the part ``genes`` alone."""
        return lookup(self.parts, "genes", "part of the embedder")

    def total(self, names: Iterable[str]) -> Tensor:
        """(..., D) sum of the parts of these names that are there: one stream of several."""
        found = [self.parts[name] for name in names if name in self.parts]
        if not found:
            raise ValueError(f"Expected parts of the embedder among {list(self.parts)}, found {list(names)}.")
        return sum(found[1:], start=found[0])

    def packed(self, pack: Callable[[Tensor], Tensor], parts: Iterable[str]) -> Embedded:
        """The tokens and some parts, those that are there, as a layout has them."""
        return Embedded(pack(self.tokens), {name: pack(self.parts[name]) for name in parts if name in self.parts})

    def with_first(self, cell: Tensor) -> Embedded:
        """Put (B, D) vectors at position 0 of the tokens (B, L, D)."""
        return self._replace(tokens=torch.cat((cell.unsqueeze(1).to(self.tokens.dtype), self.tokens[:, 1:]), dim=1))


# Encoders -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(OneOf):
    """How tokens come to see each other."""

    parts: ClassVar[tuple[str, ...]] = ()
    """Parts of the embedder that are read one by one, in place of all together."""
    layers: int = 12
    heads: int = 8
    dropout: float = 0.2
    """Probability used in the value embedding, on attention weights and after each branch."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("layers", "heads"):
            check_least(name, getattr(self, name), 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected `dropout` to be in [0, 1), found {self.dropout}.")

    def check(self, sizes: Sizes) -> None:
        """Refuse sizes that the encoder does not fit."""
        if sizes.dim % self.heads:
            raise ValueError(
                f"Expected `dim` to be a multiple of the number of heads, found {sizes.dim} and {self.heads}."
            )

    def build(self, sizes: Sizes) -> Encoder:
        """Make the module."""
        raise NotImplementedError


class Encoded(NamedTuple):
    """What an encoder returns."""

    tokens: Tensor
    """(..., D), what cells are pooled from; of the tokens that the layout keeps."""
    streams: dict[str, Tensor] = {}
    """Further tensors (..., D) by name, for heads that read them."""
    weights: list[Tensor] | None = None
    """Attention weights (B, H, L, L) of every layer, from the ``eager`` backend only."""

    def unpacked(self, unpack: Callable[[Tensor], Tensor]) -> Encoded:
        """The tokens and streams without the layout."""
        return self._replace(
            tokens=unpack(self.tokens), streams={name: unpack(stream) for name, stream in self.streams.items()}
        )


class Encoder(nn.Module):
    """An encoder, and what training has to know of it."""

    packs: bool = True
    """Whether it reads cells without padding too; ``False`` for one that needs (B, L, D)."""
    ordered: bool = False
    """Whether the places of the tokens in a batch matter to it, as to a causal one."""
    sees_hidden: bool = True
    """Whether it encodes hidden tokens."""
    sees_zeros: bool = True
    """Whether it encodes tokens whose value is 0."""
    parts: tuple[str, ...] = ()
    """Names of the embedder's parts that it reads beside their sum."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each stage and compute the rest again for the gradients; see :meth:`run`."""
    adapted: ClassVar[dict[str, str]] = {}
    """Linear maps that can be given adapters: what to call them, and the ends of their names within a stage."""

    @property
    def stages(self) -> list[nn.Module]:
        """Layers in the order of the computation, each a piece to freeze, to shard and to set a learning rate for."""
        raise NotImplementedError

    def forward(self, embedded: Embedded, batch: TokenBatch | PackedTokens, layout: Layout) -> Encoded:
        """Encode tokens and return those that ``layout.keep`` keeps, of all streams: the last layer can spare the others.

        ``embedded`` is as the layout has it; fields of ``batch`` become so by ``layout.pack``.
        """
        raise NotImplementedError

    def run(self, stage: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Compute a stage; every encoder calls its stages by this."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False, **options)
        return stage(*inputs, **options)

    def products(self, embedded: Embedded, batch: TokenBatch, layout: PaddedLayout, layer: int) -> Tensor:
        """Products of queries and keys (B, H, L, L) in one layer, unscaled."""
        raise NotImplementedError(f"{type(self).__name__} does not show its attention.")

    def maps(self, targets: Iterable[str]) -> list[str]:
        """Names within the encoder of the linear maps to adapt.

        Raises
        ------
        ValueError
            If the encoder has no such map.
        """
        ends = tuple(f".{lookup(self.adapted, target, 'linear map of the encoder')}" for target in targets)
        staged = {id(part) for stage in self.stages for part in stage.modules()}
        return [name for name, part in self.named_modules() if id(part) in staged and f".{name}".endswith(ends)]


# Heads ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeadConfig(OneOf):
    """What a model predicts: its module turns a :class:`HeadInput` into tensors by what to add to the head's name."""

    of_cells: ClassVar[bool] = False
    """Whether it reads the embedding of the cell and no token."""
    of_its_own: ClassVar[bool] = False
    """Whether what it predicts of a token comes from the embedding of that token or the cell alone, not from other tokens'."""

    def check(self, sizes: Sizes) -> None:
        """Refuse sizes that the head does not fit."""

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the module."""
        raise NotImplementedError


@dataclass(frozen=True)
class HeadInput:
    """What heads may read."""

    batch: TokenBatch
    """What went in."""
    tokens: Tensor
    """(B, L, D) encoder output, 0 at padding."""
    cell: Tensor
    """(B, D) pooled embedding."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, L, D) parts of the embedder by name."""
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    """(B, L, D) further streams of the encoder by name."""
    token_context: Tensor | None = None
    """(B, L, D) batch label and modality."""
    cell_context: Tensor | None = None
    """(B, D)."""

    @property
    def genes(self) -> Tensor:
        """(B, L, D) gene embeddings."""
        return lookup(self.parts, "genes", "part of the embedder")

    @property
    def values(self) -> Tensor:
        """(B, L) input values."""
        return self.batch.values

    @property
    def mask(self) -> Tensor:
        """(B, L) True on real tokens."""
        return self.batch.mask

    @property
    def tokens_in_context(self) -> Tensor:
        """(B, L, D or 2 D): token part first."""
        return self.tokens if self.token_context is None else torch.cat((self.tokens, self.token_context), dim=-1)

    @property
    def cell_in_context(self) -> Tensor:
        """(B, D or 2 D): cell part first."""
        return self.cell if self.cell_context is None else torch.cat((self.cell, self.cell_context), dim=-1)

    @property
    def genes_in_context(self) -> Tensor:
        """(B, L, D or 2 D): gene part first."""
        return self.genes if self.token_context is None else torch.cat((self.genes, self.token_context), dim=-1)
