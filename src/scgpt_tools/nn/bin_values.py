"""Embed a value by its bin and its number together (DeepSC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.embedders import BinnedValue, LinearValue
from scgpt_tools.nn.sockets import PartConfig, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor


class BinAndNumber(nn.Module):
    """A row of a table for the bin, and a linear map of the number, or a vector times the number.

    The row of padding is drawn with the others and never trained, so that it stays what it was: a constant.
    """

    def __init__(self, rows: int, dim: int, factor: float | None = None) -> None:
        super().__init__()
        self.bins = BinnedValue(rows, dim, 0, norm=False)
        nn.init.xavier_uniform_(self.bins.table.weight)
        self.factor = factor
        if factor is None:
            self.number = LinearValue(dim)
            nn.init.xavier_uniform_(self.number.weight)
            nn.init.zeros_(self.number.bias)
        else:
            self.vector = nn.Parameter(torch.randn(dim))

    def forward(self, bins: Tensor, values: Tensor) -> Tensor:
        """Embed (...) bins and values."""
        rows = self.bins(bins)
        if self.factor is None:
            return rows + self.number(values)
        return rows + self.factor * values.to(rows.dtype).unsqueeze(-1) * self.vector


@dataclass(frozen=True, kw_only=True)
class BinAndNumberConfig(PartConfig):
    """A table of bins and a map of the number that was binned, added up."""

    rows: int
    """Bins, markers included; row 0 is that of padding."""
    factor: float | None = None
    """Of the number before a vector that stands for the map, as DeepSC's first generations have it; ``None`` for a linear
    map."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("rows", self.rows, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """Bins and numbers."""
        return ("bins", "values")

    def build(self, sizes: Sizes) -> nn.Module:
        """Make table and map."""
        return BinAndNumber(self.rows, sizes.dim, self.factor)
