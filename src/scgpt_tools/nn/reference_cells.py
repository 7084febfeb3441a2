"""Cells that a classifier was trained on, kept with it to tell how far a new cell lies from all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.sockets import HeadConfig, HeadInput, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE_CELLS = "reference_cells"
"""Name of the head in a model that names cell types."""
# Entries of the table of distances that is in memory at once.
_AT_ONCE = 2**22


class ReferenceCellsHead(nn.Module):
    r"""Distance of a cell to its nearest cells of the reference, by their embeddings :cite:p:`Sun2022`.

    The mean of :math:`2 - 2 \cos(c, r)` over the k nearest cells r, the squared distance of vectors of unit length.
    """

    def __init__(self, dim: int, *, cells: int, held_out: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.vectors: Tensor
        self.held_out: Tensor
        self.held_out_classes: Tensor
        self.register_buffer("vectors", torch.zeros(cells, dim))
        """(R, D) embeddings of reference cells, of unit length."""
        self.register_buffer("held_out", torch.zeros(held_out))
        """(M,) distances of cells that were not trained on."""
        self.register_buffer("held_out_classes", torch.zeros(held_out, dtype=torch.long))
        """(M,) their classes."""

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return the distance (B,)."""
        return {"": self.distances(inputs.cell)}

    def distances(self, cell: Tensor) -> Tensor:
        """Embeddings (B, D) to distances (B,)."""
        unit = F.normalize(cell.float(), dim=1)
        rows = max(1, _AT_ONCE // len(self.vectors))
        return torch.cat([self._nearest(unit[start : start + rows]) for start in range(0, max(len(unit), 1), rows)])

    def _nearest(self, unit: Tensor) -> Tensor:
        similar = (unit @ self.vectors.float().T).topk(min(self.neighbours, len(self.vectors)), dim=1).values
        return (2 - 2 * similar).clamp(min=0).mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class ReferenceCellsConfig(HeadConfig):
    """Tell how far a cell lies from the cells that a classifier was trained on."""

    of_cells: ClassVar[bool] = True
    of_its_own: ClassVar[bool] = True
    cells: int
    """Cells that are kept."""
    held_out: int
    """Cells whose distances are kept, to judge others by."""
    neighbours: int = 5
    """Nearest cells whose distances are averaged."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("cells", "held_out", "neighbours"):
            check_least(name, getattr(self, name), 1)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return ReferenceCellsHead(sizes.dim, cells=self.cells, held_out=self.held_out, neighbours=self.neighbours)
