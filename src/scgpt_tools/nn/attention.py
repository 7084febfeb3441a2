"""Attention among the tokens of each cell, with exchangeable backends that share one set of weights.

A *layout* says where the real tokens are and which backend computes.  Padded backends (``sdpa``, ``eager``) work on (B, L, D) with a mask; packed
backends (``varlen``, ``flash``) on (N, D), the real tokens of all cells in a row, and never touch padding.  It also says which
tokens the last layer has to keep: those that something reads.

Shape letters: B cells, L tokens (padded), N real tokens of all cells, M those that are kept, H heads, D width, E = D / H.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional
from scgpt_tools.nn.dropout import drop
from scgpt_tools.nn.learning_products import attend_and_learn, learning_pays
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.processor import blas_is_at_home
from scgpt_tools.nn.products import attend_by_products, has_products, products_pay

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Scores that may stand in memory at once where attention is written out: 64 MiB in bf16.
_SCORES = 2**25

# What numbers of tokens are rounded up to.
_STEP = 64

# Tokens of a cell below which a call of attention for each costs more than padding.
_LONG = 128


@dataclass(frozen=True)
class PaddedLayout:
    """Tokens in a (B, L) rectangle."""

    mask: Tensor
    """(B, L) True on real tokens."""
    visible: Tensor | None
    """(B, 1, 1 or L, L) True where a query may look at a key; None if everything is visible."""
    generated: Tensor | None = None
    """(B, L) True on tokens to be generated."""
    backend: str = "sdpa"
    for_cells: bool = False
    """Whether cells alone are asked for: no token predicts anything."""
    bias: Tensor | None = None
    """(B, L) what is added to the scores of each key."""
    first_only: bool = False
    """Whether the last layer keeps the first token of each cell alone."""

    @classmethod
    def from_mask(
        cls, mask: Tensor, generated: Tensor | None = None, *, full: bool | None = None, backend: str = "sdpa"
    ) -> PaddedLayout:
        """Let every token see the real tokens; generated ones are seen by themselves only.

        ``full`` says whether all tokens are real; on a GPU, which would have to be waited for, who knows should say so.
        """
        # A cell without any real token would be a softmax over nothing; its output is set to zero anyway.
        keys = mask | ~mask.any(dim=1, keepdim=True)
        if generated is None:
            full = bool(mask.all()) if full is None else full
            return cls(mask, None if full else keys[:, None, None, :], backend=backend)
        itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        visible = (keys & ~generated)[:, None, None, :] | itself[None, None]
        return cls(mask, visible, generated, backend)

    def causal(self) -> PaddedLayout:
        """Let no token see those after it."""
        length = self.mask.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=self.mask.device).tril()[None, None]
        # Padding at the front of a cell would see nothing but what is hidden from it.
        itself = torch.eye(length, dtype=torch.bool, device=self.mask.device)[None, None]
        return replace(self, visible=before if self.visible is None else (self.visible & before) | itself)

    def unmasked(self) -> PaddedLayout:
        """Let every token see all others, padding included."""
        return replace(self, visible=None)

    def added(self, queries: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of the first queries: (B, 1, 1 or L, L) True or a number, or nothing."""
        visible = self.visible
        if visible is not None and visible.shape[2] not in (1, queries):
            visible = visible[:, :, :queries]
        if self.bias is None:
            return visible
        bias = self.bias[:, None, None, :].to(dtype)
        return bias if visible is None else bias.masked_fill(~visible, float("-inf"))

    def pack(self, x: Tensor) -> Tensor:
        """Leave (B, L, D) as they are."""
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """Set (B, L or 1, D) to zero at padding."""
        return x * self.mask[:, : x.shape[1], None]

    @property
    def keeps_all(self) -> bool:
        """Whether the last layer keeps all tokens."""
        return not self.first_only

    def keeping_first(self) -> PaddedLayout:
        """Let the last layer keep the first token of each cell."""
        return replace(self, first_only=True)

    def keep(self, x: Tensor) -> Tensor:
        """What the last layer keeps: (B, L, D) to (B, 1 or L, D)."""
        return x[:, :1] if self.first_only else x


class Kept(NamedTuple):
    """Tokens of a packed layout that are kept by the last layer."""

    places: Tensor
    """(M,) ascending, among the N tokens."""
    lengths: tuple[int, ...]
    """How many of each cell."""
    mask: Tensor | None = None
    """(B, L) True on them, for a batch that is padded around the encoder."""


@dataclass(frozen=True)
class PackedLayout:
    """Real tokens of all cells one after another."""

    offsets: Tensor
    """(B + 1,) int32 start of each cell among the N tokens."""
    lengths: tuple[int, ...]
    """Number of tokens of each cell."""
    generated: None = None
    backend: str = "varlen"
    mask: Tensor | None = None
    """(B, L) True on real tokens, for a batch that is padded around the encoder."""
    kept: Kept | None = None
    """What the last layer keeps; ``None`` for all tokens."""

    @classmethod
    def from_lengths(
        cls,
        lengths: tuple[int, ...],
        device: torch.device | str,
        *,
        backend: str = "varlen",
        mask: Tensor | None = None,
    ) -> PackedLayout:
        """Lay out cells of known lengths, each at least 1."""
        offsets = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(offsets.to(device, non_blocking=True), lengths, backend=backend, mask=mask)

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, ...) to (N, ...), unless the batch is packed already."""
        return x if self.mask is None else x[self.mask]

    def unpack(self, x: Tensor) -> Tensor:
        """Undo :meth:`pack`, with zeros at padding and at what is not kept."""
        mask = self.mask if self.kept is None else self.kept.mask
        return x if mask is None else unpack(x, mask)

    @property
    def keeps_all(self) -> bool:
        """Whether the last layer keeps all tokens."""
        return self.kept is None

    def keeping(self, mask: Tensor) -> PackedLayout:
        """Let the last layer keep the tokens that are True in (B, L) of a batch that is padded around the encoder."""
        places = mask[self.mask].nonzero().squeeze(1)
        return replace(self, kept=Kept(places, tuple(mask.sum(dim=1).tolist()), mask))

    def keeping_first(self) -> PackedLayout:
        """Let the last layer keep the first token of each cell."""
        mask = None
        if self.mask is not None:
            mask = self.mask & (self.mask.cumsum(dim=1) == 1)
        return replace(self, kept=Kept(self.offsets[:-1], (1,) * len(self.lengths), mask))

    def keep(self, x: Tensor) -> Tensor:
        """What the last layer keeps: (N, D) to (M, D)."""
        return x if self.kept is None else x[self.kept.places]

    def queries(self, q: Tensor) -> tuple[int, ...]:
        """How many queries each cell has: all of its tokens, or those that are kept."""
        return self.lengths if self.kept is None or len(q) == sum(self.lengths) else self.kept.lengths

    def rounded(self, like: Tensor) -> PackedLayout:
        """Add a cell of nothing, so that numbers of tokens and of those that are kept are often met.

        For each number that it meets, oneDNN compiles products, and keeps the last thousand of them.  Where tokens ``like`` are
        computed by others, the layout stays as it is.
        """
        tokens = sum(self.lengths)
        room, more = -tokens % _STEP, -self.n_kept % _STEP
        if not (room or more) or not has_products(like):
            return self
        if self.kept is None:
            return PackedLayout.from_lengths((*self.lengths, room), self.offsets.device, backend=self.backend)
        # No cell is without a query.
        more = more or _STEP
        room = room if room >= more else room + _STEP
        longer = PackedLayout.from_lengths((*self.lengths, room), self.offsets.device, backend=self.backend)
        places = torch.arange(tokens, tokens + more, device=self.offsets.device)
        return replace(longer, kept=Kept(torch.cat((self.kept.places, places)), (*self.kept.lengths, more)))

    def lengthen(self, x: Tensor) -> Tensor:
        """Add tokens of zeros to (fewer, D), as many as there are here."""
        return F.pad(x, (0, 0, 0, sum(self.lengths) - len(x)))

    @property
    def n_kept(self) -> int:
        """How many tokens the last layer keeps."""
        return sum(self.lengths if self.kept is None else self.kept.lengths)

    def divided(self, cells: list[int]) -> list[PackedLayout]:
        """Cut into layouts of so many cells each, which know nothing of padding."""
        parts: list[PackedLayout] = []
        first = offset = place = 0
        for count in cells:
            own = slice(first, first + count)
            part = PackedLayout.from_lengths(self.lengths[own], self.offsets.device, backend=self.backend)
            if self.kept is not None:
                lengths = self.kept.lengths[own]
                part = replace(part, kept=Kept(self.kept.places[place : place + sum(lengths)] - offset, lengths))
                place += sum(lengths)
            parts.append(part)
            first, offset = first + count, offset + sum(part.lengths)
        return parts


Layout = PaddedLayout | PackedLayout


def packing_pays(mask: Tensor, *, dropout: bool) -> bool:
    """Whether to go cell by cell without padding, for which its place has to be known at once: on a CPU it is.

    ``mask`` (B, L) True on real tokens.
    """
    if mask.device.type != "cpu" or mask.shape[1] < _LONG:
        return False
    lengths = mask.sum(dim=1)
    padded = bool((lengths < mask.shape[1]).any())
    # Without gradients attention within one cell is faster than torch's.
    return bool((lengths > 0).all()) and (padded or dropout or not torch.is_grad_enabled())


def layout_that_pays(mask: Tensor, *, dropout: bool) -> Layout:
    """Where real tokens that all see each other are: cell by cell without padding, or beside it."""
    if torch.compiler.is_compiling() or not packing_pays(mask, dropout=dropout):
        return PaddedLayout.from_mask(mask)
    return PackedLayout.from_lengths(tuple(mask.sum(dim=1).tolist()), mask.device, mask=mask)


def unpack(x: Tensor, mask: Tensor) -> Tensor:
    """(N, D) back to (B, L, D) with zeros at padding."""
    padded = x.new_zeros(*mask.shape, x.shape[-1])
    padded[mask] = x
    return padded


class Attended(NamedTuple):
    """Result of a backend."""

    context: Tensor
    """Same shape as the queries."""
    weights: Tensor | None = None
    """(B, H, L, L), from ``eager`` only."""


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, H, L, E), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    """(B, H, L, E) to (B, L, D)."""
    return x.transpose(1, 2).flatten(2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: PaddedLayout, heads: int, dropout: float) -> Attended:
    """Torch's fused attention on padded cells, on any device."""
    context = F.scaled_dot_product_attention(
        _heads_first(q, heads),
        _heads_first(k, heads),
        _heads_first(v, heads),
        attn_mask=layout.added(q.shape[1], q.dtype),
        dropout_p=dropout,
    )
    return Attended(_merge_heads(context))


def eager(q: Tensor, k: Tensor, v: Tensor, layout: PaddedLayout, heads: int, dropout: float) -> Attended:
    """The formula written out; the only backend that returns its weights."""
    q, k, v = (_heads_first(x, heads) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    added = layout.added(q.shape[2], scores.dtype)
    if added is not None:
        scores = scores.masked_fill(~added, float("-inf")) if added.dtype == torch.bool else scores + added
    weights = scores.softmax(dim=-1)
    return Attended(_merge_heads(F.dropout(weights, dropout) @ v), weights)


def _fused_cells(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, heads: int) -> Tensor:
    """Torch's fused attention, one call a cell, with as little as possible around each: what is short waits for Python."""
    queries, lengths = layout.queries(q), layout.lengths
    q, k, v = (_heads_first(x.unsqueeze(0), heads) for x in (q, k, v))
    cells = zip(q.split(queries, dim=2), k.split(lengths, dim=2), v.split(lengths, dim=2), strict=True)
    return _merge_heads(torch.cat([F.scaled_dot_product_attention(*cell) for cell in cells], dim=2)).squeeze(0)


def _one_cell(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """Attention within one cell, (n, D) each."""
    if not dropout and not _needs_gradients(q, k, v) and products_pay(q, k):
        context = attend_by_products(q, k, v, heads)
        if context is not None:
            return context
    if q.device.type == "cpu" and (dropout or q.dtype == torch.bfloat16):
        return _by_products(q, k, v, heads, dropout)
    q, k, v = (_heads_first(x.unsqueeze(0), heads) for x in (q, k, v))
    return _merge_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)).squeeze(0)


def _torch_pays(q: Tensor, k: Tensor) -> bool:
    """Whether torch's fused attention is fastest for a cell, without gradients."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not blas_is_at_home():
        return False
    return not products_pay(q, k)


def _needs_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _by_products(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """Attention within one cell as two matrix products around a softmax, with gradients.

    Sooner than torch's own on CPUs in bf16, for which they have units that its kernel ignores, and with dropout.
    """
    q = q * (q.shape[-1] // heads) ** -0.5
    v = v / (1 - dropout)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    parts = []
    for part in q.split(max(1, _SCORES // (heads * k.shape[1])), dim=1):
        weights = (part @ k.transpose(1, 2)).softmax(dim=-1)
        parts.append((drop(weights, dropout) if dropout else weights) @ v)
    return torch.cat(parts, dim=1).transpose(0, 1).flatten(1)


def has_packed_kernel(device: torch.device, width: int) -> bool:
    """Whether torch has packed attention for heads of a width on a CUDA device."""
    # The kernel is FlashAttention 2: Ampere and later, heads of 8, 16, ... 256.
    fits = width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)
    return fits and find_spec("torch.nn.attention.varlen") is not None


def varlen(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, heads: int, dropout: float) -> Attended:
    """Packed attention: torch's ``varlen_attn`` on CUDA in half precision, elsewhere one SDPA call a cell."""
    if dropout and q.is_cuda:
        raise ValueError(
            f"On CUDA the 'varlen' backend has no attention dropout, found {dropout}; train with 'sdpa' or 'flash'."
        )
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and has_packed_kernel(q.device, q.shape[-1] // heads):
        # Only where it is used: older torch has no such module.
        from torch.nn.attention.varlen import varlen_attn

        return Attended(_call_packed(varlen_attn, q, k, v, layout, heads))
    longest = max(layout.lengths)
    if not dropout and not _needs_gradients(q, k, v) and _torch_pays(q[:longest], k[:longest]):
        return Attended(_fused_cells(q, k, v, layout, heads))
    queries = layout.queries(q)
    if (dropout or _needs_gradients(q, k, v)) and learning_pays(q, longest, dropout=dropout):
        return Attended(attend_and_learn(q, k, v, queries, layout.lengths, heads, dropout))
    cells = zip(q.split(queries), k.split(layout.lengths), v.split(layout.lengths), strict=True)
    return Attended(torch.cat([_one_cell(*cell, heads, dropout) for cell in cells]))


def flash(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, heads: int, dropout: float) -> Attended:
    """Packed attention by the flash-attn package (extra ``flash``): CUDA, half precision, dropout allowed."""
    kernel = optional("flash_attn", extra="flash").flash_attn_varlen_func
    return Attended(_call_packed(kernel, q, k, v, layout, heads, dropout_p=dropout))


def _call_packed(
    kernel: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, heads: int, **options: float
) -> Tensor:
    """Call a packed kernel, with a query of each token or of those that are kept."""
    queries, offsets = layout.queries(q), layout.offsets
    asked = offsets if queries == layout.lengths else PackedLayout.from_lengths(queries, q.device).offsets
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
    context: Tensor = kernel(q, k, v, asked, offsets, max(queries), max(layout.lengths), **options)
    return context.flatten(1)


PADDED: dict[str, Callable[..., Attended]] = {"sdpa": sdpa, "eager": eager}
PACKED: dict[str, Callable[..., Attended]] = {"varlen": varlen, "flash": flash}
BACKENDS = PADDED | PACKED


class Attention(nn.Module):
    """Multi-head attention with separate query, key and value maps: of tokens to themselves, or to others.

    Separate maps let the last layer compute queries for the rows that are read only, and let adapters reach each map.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (Linear(dim, dim) for _ in range(3))
        self.out = Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        backend: str | None = None,
        *,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        last: bool = False,
    ) -> Attended:
        """Attend.

        ``backend``: ``None`` takes the layout's; ``keys``: tokens to attend to, as many, ``None`` for ``x``; ``values``: what is
        read of them, ``None`` for ``keys``; ``last``: compute the tokens that the layout keeps.
        """
        attend = lookup(BACKENDS, backend or layout.backend, "attention backend")
        dropout = self.dropout if self.training else 0.0
        x = _lowered(x)
        keys = x if keys is None else _lowered(keys)
        q, k, v = self.project(layout.keep(x) if last else x, keys, keys if values is None else _lowered(values))
        context, weights = attend(q, k, v, layout, self.heads, dropout)
        projected = self.out(context)
        if layout.generated is not None:
            # scGPT's pre-training form uses the raw attention result for generated tokens; its checkpoints expect it.
            projected = torch.where(layout.generated.unsqueeze(-1), context, projected)
        return Attended(projected, weights)

    def project(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens to queries, keys and values."""
        return self.query(queries), self.key(keys), self.value(values)


def _lowered(x: Tensor) -> Tensor:
    """Tokens in the precision of autocast, once for all maps that read them."""
    if not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def query_key_products(attention: Attention, x: Tensor) -> Tensor:
    """Products of queries and keys, (B, L, D) to (B, H, L, L), unscaled."""
    q, k = (_heads_first(part, attention.heads) for part in attention.project(x, x, x)[:2])
    return q @ k.transpose(-1, -2)
