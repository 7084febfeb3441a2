"""The one thing a network sees: a minibatch of tokenised cells.

AnnData ends before this file and ``torch.nn`` begins after it.  What a batch may hold is declared once, at the fields of
:class:`Tokens`; packing, padding, selecting, stacking and moving follow from it, so a new field is one line.  Shape
letters: B cells, L tokens a cell (padded), N real tokens of all cells (packed).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self


class Declared(NamedTuple):
    """What is known of a field, whatever batch it is in."""

    per: Literal["token", "cell"]
    dtype: torch.dtype
    padding: float | None = None
    """What stands at padding; ``None`` where the tokenizer says it, see ``Tokenizer.padding``."""
    read: bool = False
    """Whether networks read it; others are targets and notes."""
    truth: str | None = None
    """For what can be hidden from the network, the field that keeps the truth."""
    marker: str | None = None
    """For channels of the value, the setting of a corruption that stands in place of a hidden one."""


def _token(dtype: torch.dtype, padding: float | None = 0, **more: Any) -> dict[str, Declared]:
    return {"declared": Declared("token", dtype, padding, **more)}


def _cell(dtype: torch.dtype, **more: Any) -> dict[str, Declared]:
    return {"declared": Declared("cell", dtype, **more)}


@dataclass(frozen=True)
class Tokens:
    """What is known of some tokens and their cells, padded (:class:`TokenBatch`) or packed (:class:`PackedTokens`).

    Shapes are those of a padded batch.  Optional fields are ``None`` where a task does not need them; asking for one with
    :meth:`require` says which step should have filled it.
    """

    genes: Tensor = field(metadata=_token(torch.int64, None, read=True, truth="target_genes"))
    """(B, L) int64 token ids; padding holds the id of the pad token."""
    values: Tensor = field(metadata=_token(torch.float32, None, read=True, truth="target", marker="mask_value"))
    """(B, L) float32 expression in the unit of the tokenizer (bin, log1p value, count)."""
    mask: Tensor = field(metadata=_token(torch.bool, read=True))
    """(B, L) bool, True on real tokens, as in SDPA's boolean mask; torch's ``key_padding_mask`` means the opposite."""
    index: Tensor | None = field(default=None, metadata=_cell(torch.int64))
    """(B,) int64 row of the source that each cell came from."""
    expressed: Tensor | None = field(default=None, metadata=_cell(torch.int64))
    """(B, M) int64 known features above zero in each of M modalities, -1 where a cell was not measured."""
    batch_id: Tensor | None = field(default=None, metadata=_cell(torch.int64, read=True))
    """(B,) int64 label of the technical batch."""
    label: Tensor | None = field(default=None, metadata=_cell(torch.int64))
    """(B,) int64 class to predict, for example the cell type."""
    targets: Tensor | None = field(default=None, metadata=_cell(torch.float32))
    """(B, T) float32 numbers of each cell to predict, NaN where they are not known."""
    modality: Tensor | None = field(default=None, metadata=_token(torch.int64, None, read=True))
    """(B, L) int64 modality of each token."""
    perturbed: Tensor | None = field(default=None, metadata=_token(torch.int64, read=True))
    """(B, L) int64 perturbation flag of each token: 0 untouched, 1 perturbed."""
    generated: Tensor | None = field(default=None, metadata=_token(torch.bool, read=True))
    """(B, L) bool, True where the value is hidden from the network and the token sees itself and the others only."""
    target: Tensor | None = field(default=None, metadata=_token(torch.float32))
    """(B, L) float32 values to predict."""
    hidden: Tensor | None = field(default=None, metadata=_token(torch.bool))
    """(B, L) bool, True where a prediction is scored against the targets."""
    bins: Tensor | None = field(
        default=None, metadata=_token(torch.int64, read=True, truth="target_bins", marker="mask_bin")
    )
    """(B, L) int64 bin of each value, for networks that read a bin beside the number."""
    positions: Tensor | None = field(default=None, metadata=_token(torch.int64, read=True, marker="mask_position"))
    """(B, L) int64 place of each token, for networks that know an order, such as the rank of its value."""
    target_bins: Tensor | None = field(default=None, metadata=_token(torch.int64))
    """(B, L) int64 bins to predict."""
    target_genes: Tensor | None = field(default=None, metadata=_token(torch.int64))
    """(B, L) int64 token ids to predict."""

    def require(self, name: str) -> Tensor:
        """Return an optional field, or say that it is absent.

        Raises
        ------
        ValueError
            If the field is ``None``.
        """
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise ValueError(f"Expected a token batch with `{name}`, found only {list(self.present())}.")
        return tensor

    def present(self, per: Literal["token", "cell"] | None = None) -> dict[str, Tensor]:
        """Fields that are there by name: all, or those with an entry for each token or cell."""
        names = (name for name, declared in DECLARED.items() if per in (None, declared.per))
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields exchanged."""
        return replace(self, **changes)

    def map(self, change: Callable[[Tensor], Tensor], per: Literal["token", "cell"] | None = None) -> Self:
        """Change every field, or those with an entry for each token or cell."""
        return replace(self, **{name: change(tensor) for name, tensor in self.present(per).items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory, so that copies to a GPU can overlap with compute."""
        return self.map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class TokenBatch(Tokens):
    """Tokens of B cells, padded to L; its fields are those of :class:`Tokens`."""

    def __len__(self) -> int:
        return self.genes.shape[0]

    def check(self) -> TokenBatch:
        """Refuse tensors of another kind or shape than their field is declared to have.

        Returns
        -------
        The batch itself.

        Raises
        ------
        TypeError
            If a tensor has another dtype.
        ValueError
            If it has another shape.
        """
        for name, tensor in self.present().items():
            declared = DECLARED[name]
            if tensor.dtype != declared.dtype:
                raise TypeError(f"Expected `{name}` of a token batch to be {declared.dtype}, found {tensor.dtype}.")
            shapes = [tuple(each.shape[: 1 if declared.per == "cell" else None]) for each in (self.mask, tensor)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"Expected `{name}` of a token batch to have shape {shapes[0]}, found {shapes[1]}.")
        return self

    def select(self, rows: Tensor | slice) -> TokenBatch:
        """Take some cells."""
        return self.map(lambda tensor: tensor[rows])

    def divided(self, n_tokens: int) -> Iterator[TokenBatch]:
        """Cut into neighbouring cells with at most so many real tokens together; a longer cell is alone."""
        start, total = 0, 0
        for cell, length in enumerate(self.mask.sum(dim=1).tolist()):
            if total and total + length > n_tokens:
                yield self.select(slice(start, cell))
                start, total = cell, 0
            total += length
        yield self.select(slice(start, len(self)))

    def gathered(self, places: Tensor) -> TokenBatch:
        """Take the tokens at some places of each cell, (B, K) column numbers."""
        return self.map(lambda tensor: tensor.gather(1, places), "token")

    def shortened(self, length: int) -> TokenBatch:
        """Take the first tokens of each cell."""
        return self.map(lambda tensor: tensor[:, :length], "token")

    def appended(self, n_tokens: int, **tokens: Tensor | float) -> TokenBatch:
        """Put more tokens behind those of every cell, its padding included.

        Parameters
        ----------
        n_tokens
            How many.
        **tokens
            Their fields: one entry for all, for each token, or for each token of each cell.  Others hold what their field
            is declared to hold at padding.
        """
        shape = (len(self), n_tokens)
        device = self.mask.device
        changed: dict[str, Tensor] = {}
        for name, declared in DECLARED.items():
            own, more = getattr(self, name), tokens.get(name, declared.padding)
            if declared.per == "cell" or (own is None and name not in tokens):
                continue
            if more is None:
                raise ValueError(f"Expected `{name}` of the new tokens, found only {list(tokens)}.")
            if own is None:
                own = torch.full_like(self.genes, _padding(name, {}), dtype=declared.dtype)
            added = torch.as_tensor(more, dtype=own.dtype, device=device).expand(shape)
            changed[name] = torch.cat((own, added), dim=1)
        return self.replace(**changed)

    def padded(self, length: int, padding: Mapping[str, float]) -> TokenBatch:
        """Add padding up to a length; ``padding`` is that of the tokenizer."""
        more = length - self.genes.shape[1]
        if not more:
            return self
        tokens = self.present("token")
        return self.appended(more, **{name: _padding(name, padding) for name in tokens})

    @staticmethod
    def stacked(batches: Sequence[TokenBatch], padding: Mapping[str, float]) -> TokenBatch:
        """One below the other, as long as the longest; ``padding`` is that of the tokenizer.

        Raises
        ------
        ValueError
            If they have different fields.
        """
        first = list(batches[0].present())
        for batch in batches:
            if list(batch.present()) != first:
                raise ValueError(
                    f"Expected token batches with the same fields, found {first} and {list(batch.present())}."
                )
        length = max(batch.genes.shape[1] for batch in batches)
        equal = [batch.padded(length, padding) for batch in batches]
        return TokenBatch(**{name: torch.cat([getattr(batch, name) for batch in equal]) for name in first})

    def packed(self) -> PackedTokens:
        """Put the real tokens of all cells one after another, with what networks read of them.

        Cheap on the CPU, a synchronisation on a GPU.
        """
        lengths = self.mask.sum(dim=1)
        cells = torch.arange(len(self), device=self.mask.device).repeat_interleave(lengths)
        packed = {
            name: tensor[self.mask] if DECLARED[name].per == "token" else tensor[cells]
            for name, tensor in self.present().items()
            if DECLARED[name].read
        }
        return PackedTokens(**packed, lengths=tuple(lengths.tolist()))


@dataclass(frozen=True)
class PackedTokens(Tokens):
    """The N real tokens of B cells without padding.

    Every field has N entries in place of (B, L); those of a cell are repeated for each of its tokens.
    """

    lengths: tuple[int, ...] = field(kw_only=True)
    """Tokens of each cell, B numbers that sum to N."""


DECLARED: dict[str, Declared] = {each.name: each.metadata["declared"] for each in fields(Tokens)}
"""What is known of each field by name."""

CHANNELS = tuple(name for name, declared in DECLARED.items() if declared.marker is not None)
"""Fields that tell the value of a token."""


def _padding(name: str, padding: Mapping[str, float]) -> float:
    """What stands at padding of a field, by the tokenizer or by its declaration."""
    found = padding.get(name, DECLARED[name].padding)
    if found is None:
        raise ValueError(f"Expected to be given what stands at padding of `{name}`, found it for {list(padding)} only.")
    return found
