"""Embed a number by all rows of a table at once, each as much as a small network says (scFoundation, xTrimoGene)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.nn.embedders import ContinuousConfig
from scgpt_tools.nn.sockets import Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor

# Slope below 0 of the activation, as in the original.
_SLOPE = 0.1


class SoftBins(nn.Module):
    """Weights of bins from a number, and the mean of their rows by these weights."""

    def __init__(self, bins: int, dim: int) -> None:
        super().__init__()
        self.first, self.across = nn.Linear(1, bins), nn.Linear(bins, bins)
        self.kept = nn.Parameter(torch.ones(()))
        self.table = nn.Parameter(torch.empty(bins, dim).normal_(std=0.02))

    def forward(self, values: Tensor) -> Tensor:
        """Embed (...) values."""
        spread = F.leaky_relu(self.first(values.to(self.first.weight.dtype).unsqueeze(-1)), _SLOPE)
        weights = (self.across(spread) + self.kept * spread).softmax(dim=-1)
        return weights @ self.table.to(weights.dtype)


@dataclass(frozen=True, kw_only=True)
class SoftBinsConfig(ContinuousConfig):
    """A number spread over learned bins, the value embedding of scFoundation :cite:p:`Hao2024`."""

    bins: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("bins", self.bins, 2)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the network."""
        return SoftBins(self.bins, sizes.dim)
