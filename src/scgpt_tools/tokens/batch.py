"""The one thing a network sees: a minibatch of tokenised cells.

AnnData ends before this file and ``torch.nn`` begins after it.  Shape letters: B cells, L tokens a cell (padded).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of B cells, padded to L.

    Optional fields are ``None`` where a task does not need them; asking for one with :meth:`require` says which step
    should have filled it.
    """

    genes: Tensor
    """(B, L) int64 token ids; padding holds the id of the pad token."""
    values: Tensor
    """(B, L) float32 expression in the unit of the tokenizer (bin, log1p value, count)."""
    mask: Tensor
    """(B, L) bool, True on real tokens, as in SDPA's boolean mask; torch's ``key_padding_mask`` means the opposite."""
    index: Tensor | None = None
    """(B,) int64 row of the source that each cell came from."""
    expressed: Tensor | None = None
    """(B, M) int64 known features above zero in each of M modalities, -1 where a cell was not measured."""
    batch: Tensor | None = None
    """(B,) int64 label of the technical batch."""
    label: Tensor | None = None
    """(B,) int64 class to predict, for example the cell type."""
    modality: Tensor | None = None
    """(B, L) int64 modality of each token."""
    perturbed: Tensor | None = None
    """(B, L) int64 perturbation flag of each token: 0 untouched, 1 perturbed."""
    generated: Tensor | None = None
    """(B, L) bool, True where the value is hidden from the network and the token sees itself and the others only."""
    target: Tensor | None = None
    """(B, L) float32 values to predict."""
    hidden: Tensor | None = None
    """(B, L) bool, True where a prediction is scored against ``target``."""

    def __len__(self) -> int:
        return self.genes.shape[0]

    def require(self, name: str) -> Tensor:
        """Return an optional field, or say that it is absent.

        Raises
        ------
        ValueError
            If the field is ``None``.
        """
        tensor = getattr(self, name)
        if tensor is None:
            filled = [field.name for field in fields(self) if getattr(self, field.name) is not None]
            raise ValueError(f"Expected a token batch with `{name}`, found only {filled}.")
        return tensor

    def replace(self, **changes: Any) -> TokenBatch:
        """Copy with some fields exchanged."""
        return replace(self, **changes)

    def select(self, rows: Tensor | slice) -> TokenBatch:
        """Take some cells."""
        return self._map(lambda tensor: tensor[rows])

    def divided(self, n_tokens: int) -> Iterator[TokenBatch]:
        """Cut into neighbouring cells with at most so many real tokens together; a longer cell is alone."""
        start, total = 0, 0
        for cell, length in enumerate(self.mask.sum(dim=1).tolist()):
            if total and total + length > n_tokens:
                yield self.select(slice(start, cell))
                start, total = cell, 0
            total += length
        yield self.select(slice(start, len(self)))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenBatch:
        """Move every tensor to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenBatch:
        """Copy every tensor to page-locked memory, so that copies to a GPU can overlap with compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        changed: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            changed[field.name] = None if tensor is None else change(tensor)
        return TokenBatch(**changed)

    def packed(self) -> PackedTokens:
        """Put the real tokens of all cells one after another; cheap on the CPU, a synchronisation on a GPU."""
        lengths = self.mask.sum(dim=1)
        cells = torch.arange(len(self), device=self.mask.device).repeat_interleave(lengths)
        return PackedTokens(
            genes=self.genes[self.mask],
            values=self.values[self.mask],
            lengths=tuple(lengths.tolist()),
            batch=None if self.batch is None else self.batch[cells],
            perturbed=None if self.perturbed is None else self.perturbed[self.mask],
        )


@dataclass(frozen=True)
class PackedTokens:
    """The N real tokens of B cells without padding."""

    genes: Tensor
    """(N,) int64 token ids."""
    values: Tensor
    """(N,) float32."""
    lengths: tuple[int, ...]
    """Tokens of each cell, B numbers that sum to N."""
    batch: Tensor | None = None
    """(N,) int64 batch label of each token's cell."""
    perturbed: Tensor | None = None
    """(N,) int64 perturbation flags."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedTokens:
        """Move the tensors to a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            genes=self.genes.to(device, non_blocking=non_blocking),
            values=self.values.to(device, non_blocking=non_blocking),
            batch=move(self.batch),
            perturbed=move(self.perturbed),
        )
