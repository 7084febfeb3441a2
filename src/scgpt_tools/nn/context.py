"""What is known of a cell beside its expression, as embeddings for the heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from scgpt_tools.nn.embedders import NormedTable
from scgpt_tools.nn.pooling import pool

if TYPE_CHECKING:
    from torch import Tensor


class ContextVectors(NamedTuple):
    """Embeddings that stand beside tokens and cells."""

    tokens: Tensor
    """(B, L, D)."""
    cell: Tensor
    """(B, D)."""


class Context(nn.Module):
    """Embed batch label and modality; where there are both, they are added.  The encoder sees neither."""

    def __init__(self, dim: int, *, batches: int = 0, modalities: int = 0, modality_pad: int | None = None) -> None:
        super().__init__()
        self.batch = NormedTable(batches, dim) if batches else None
        self.modality = NormedTable(modalities, dim, modality_pad) if modalities else None

    def forward(
        self, batch_id: Tensor | None, modality: Tensor | None, *, pooling: str, mask: Tensor, values: Tensor
    ) -> ContextVectors | None:
        """Embed labels (B,) and modalities (B, L); ``None`` for a model without context."""
        tokens: Tensor | None = None
        cell: Tensor | None = None
        if self.modality is not None:
            vectors = self.modality(_needed(modality, "modality"))
            tokens, cell = vectors, pool(pooling, vectors, mask, values)
        if self.batch is not None:
            labels = self.batch(_needed(batch_id, "batch_id"))
            tokens = (
                labels.unsqueeze(1).expand(-1, mask.shape[1], -1) if tokens is None else tokens + labels.unsqueeze(1)
            )
            cell = labels if cell is None else cell + labels
        return None if tokens is None or cell is None else ContextVectors(tokens, cell)


def _needed(labels: Tensor | None, name: str) -> Tensor:
    if labels is None:
        raise ValueError(f"Expected a token batch with `{name}`, which this model was trained with; found none.")
    return labels
