"""What a model returns: a typed object, the same for every family and every task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class CellOutput:
    """Outputs for B cells of L tokens at width D."""

    tokens: Tensor
    """(B, L, D) contextual token embeddings, exactly 0 at padding; (B, 1, D) if nothing else is read."""
    cell: Tensor
    """(B, D) cell embedding, not normalised; NaN if tokens that it is pooled from were not asked for."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """(B, L, D) parts of the embedder by name, such as ``genes``."""
    predictions: dict[str, Tensor] = field(default_factory=dict)
    """Results of the heads by name.  A name ending in ``_nonzero`` is the probability that a value is not zero."""
    attention: list[Tensor] | None = None
    """Attention weights (B, H, L, L) of every layer, with the ``eager`` backend only."""
    streams: dict[str, Tensor] = field(default_factory=dict)
    """(B, L, D) further streams of the encoder by name."""

    @property
    def genes(self) -> Tensor:
        """(B, L, D) gene embeddings before values are added."""
        return self.parts["genes"]

    def __getitem__(self, name: str) -> Tensor:
        """Return a prediction by name, or say which ones there are."""
        if name not in self.predictions:
            raise KeyError(f"Expected a prediction named {name!r}, found {sorted(self.predictions)}.")
        return self.predictions[name]
