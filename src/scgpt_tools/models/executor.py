"""How cells go through a model fastest: which of them together, with or without padding, by which kernel of attention.

Nothing here changes what is computed, but for rounding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch

from scgpt_tools._threads import in_threads
from scgpt_tools.nn.attention import PACKED, PackedLayout, PaddedLayout, has_packed_kernel, packing_pays, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.nn.attention import Layout
    from scgpt_tools.nn.sockets import Embedded, Encoded, Encoder
    from scgpt_tools.tokens.batch import PackedTokens, TokenBatch

# Tokens to compute at once in a thread of a CPU: enough for its products, and what lies between them stays in the caches.
# Narrow models take more, so that threads seldom meet at Python's lock.
_TOKENS = 2048
_NUMBERS = 2**18


Read: TypeAlias = Literal["all", "hidden", "first"]
"""Tokens of which something is read after the encoder: all, the hidden ones and the first, or the first of each cell."""


class Network(Protocol):
    """What of a model is needed here."""

    config: ModelConfig
    encoder: Encoder
    training: bool

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dim(self) -> int:
        """Width of the embeddings."""

    def encode(self, batch: TokenBatch | PackedTokens, layout: Layout) -> tuple[Embedded, Encoded]:
        """From tokens to what the embedder and the encoder make of them."""

    def pool(self, tokens: Tensor, batch: TokenBatch, pooling: str | None = None) -> Tensor:
        """Cells (B, D) from tokens."""


def layout_of(
    model: Network, batch: TokenBatch, attention: str | None, *, for_cells: bool = False, read: Read = "all"
) -> Layout:
    """Where the tokens of a padded batch are for the encoder; ``attention=None`` takes the backend that pays.

    ``for_cells``: no token predicts anything.  ``read``: what the last layer has to keep; it may keep more.
    """
    encoder = model.encoder
    needs_padding = "generated tokens" if batch.generated is not None else None if encoder.packs else "this encoder"
    mask = visible_to(encoder, batch)
    if attention is None:
        dropout = model.training and model.config.encoder.dropout > 0
        attention = "varlen" if needs_padding is None and packing_pays(mask, dropout=dropout) else "sdpa"
    if attention not in PACKED:
        padded = PaddedLayout.from_mask(mask, batch.generated, backend=attention)
        spared = read == "first" and attention != "eager" and batch.generated is None
        return replace(padded, for_cells=for_cells, first_only=spared)
    if needs_padding is not None:
        raise ValueError(f"Expected 'sdpa' or 'eager' attention for {needs_padding}, found {attention!r}.")
    lengths = tuple(mask.sum(dim=1).tolist())
    packed = PackedLayout.from_lengths(lengths, mask.device, backend=attention, mask=mask)
    if read == "hidden" and batch.hidden is not None:
        return packed.keeping(mask & (batch.hidden | (mask.cumsum(dim=1) == 1)))
    return packed.keeping_first() if read == "first" else packed


def visible_to(encoder: Encoder, batch: TokenBatch) -> Tensor:
    """(B, L) True on the tokens that are encoded."""
    seen = batch.mask
    if not encoder.sees_hidden and batch.hidden is not None:
        seen = seen & ~batch.hidden
    return seen if encoder.sees_zeros else seen & (batch.values != 0)


def divisible(model: Network) -> bool:
    """Whether a minibatch is better computed in parts, and the same."""
    # A norm that takes the label of the first cell for all has to see the minibatch as it is.
    return not model.training and model.device.type == "cpu" and model.config.embedder.norm != "domain_of_first"


def divided(model: Network, batch: TokenBatch) -> list[TokenBatch]:
    """Cut a minibatch into parts to compute one by one or beside each other: few cells on a CPU, else all."""
    return list(batch.divided(max(_TOKENS, _NUMBERS // model.dim))) if divisible(model) else [batch]


def embed_cells(model: Network, batch: TokenBatch, *, attention: str | None, pooling: str) -> Tensor:
    """Cells (B, D) of a batch on any device.

    Padding is dropped before the first layer and, with ``cls`` pooling, the last layer computes one row a cell.
    """
    attention = attention or _fastest_attention(model)
    embed = partial(_embed, model, attention=attention, pooling=pooling)
    with in_threads(several=divisible(model)) as run:
        return torch.cat(list(run(embed, divided(model, batch))))


def embed_tokens(model: Network, batch: TokenBatch, *, attention: str | None = None) -> Tensor:
    """What the encoder makes of the real tokens of a batch, (N, D), cell by cell, without padding where it can be."""
    attention = attention or _fastest_attention(model)
    if attention in PACKED and bool(batch.mask.any(dim=1).all()):
        packed = batch.packed().to(model.device, non_blocking=True)
        layout = PackedLayout.from_lengths(packed.lengths, model.device, backend=attention)
        return model.encode(packed, layout)[1].tokens
    batch = batch.to(model.device)
    padded = PaddedLayout.from_mask(batch.mask, backend="sdpa" if attention in PACKED else attention)
    return model.encode(batch, padded)[1].tokens[batch.mask]


def _embed(model: Network, batch: TokenBatch, *, attention: str, pooling: str) -> Tensor:
    shorter = pooling == "cls"
    if batch.generated is not None:
        # Nothing but themselves looks at generated tokens, so a cell is the same without them.
        batch = batch.replace(mask=batch.mask & ~batch.generated, generated=None)
    if not model.encoder.sees_zeros:
        batch = batch.replace(mask=visible_to(model.encoder, batch))
    if attention in PACKED and not bool(batch.mask.any(dim=1).all()):
        attention = "sdpa"  # a cell without tokens has no place among packed ones
    if attention not in PACKED:
        # Asked before the batch moves, so that no GPU has to be waited for.
        full, batch = bool(batch.mask.all()), batch.to(model.device)
        padded = PaddedLayout.from_mask(batch.mask, full=full, backend=attention)
        padded = replace(padded, for_cells=True, first_only=shorter)
        return model.pool(model.encode(batch, padded)[1].tokens, batch, pooling)
    packed = batch.packed().to(model.device, non_blocking=True)
    layout = PackedLayout.from_lengths(packed.lengths, model.device, backend=attention)
    tokens = model.encode(packed, layout.keeping_first() if shorter else layout)[1].tokens
    if shorter:
        return tokens
    batch = batch.to(model.device)
    return model.pool(unpack(tokens, batch.mask), batch, pooling)


def _fastest_attention(model: Network) -> str:
    device, width = model.device, model.dim // model.config.encoder.heads
    if not model.encoder.packs:
        return "sdpa"
    if device.type == "cuda":
        return "varlen" if torch.is_autocast_enabled("cuda") and has_packed_kernel(device, width) else "sdpa"
    return "varlen" if device.type == "cpu" else "sdpa"
