"""Batch norm over tokens, for all cells or for each technical batch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

# scGPT's value; torch's default is 1e-5.
EPS = 6.1e-5


class SharedNorm(nn.BatchNorm1d):
    """Batch norm with the same statistics for all cells.

    In training the statistics run over every position, padding included, as scGPT's do.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=EPS)

    def forward(self, x: Tensor, domain: Tensor | None = None) -> Tensor:
        """Normalise (..., D) tokens; ``domain`` is not used."""
        return super().forward(x.flatten(0, -2)).view_as(x)


class DomainNorm(nn.Module):
    """Batch norm with statistics of its own for each batch label and no affine parameters (DSBN).

    Each cell is normalised with the statistics of its own label.  scGPT takes the label of the first cell for the
    whole minibatch; ``of_first=True`` does so too, and equals the default where a minibatch has one label.
    """

    def __init__(self, dim: int, domains: int, *, of_first: bool = False) -> None:
        super().__init__()
        self.domains = nn.ModuleList(nn.BatchNorm1d(dim, eps=EPS, affine=False) for _ in range(domains))
        self.of_first = of_first

    def forward(self, x: Tensor, domain: Tensor | None) -> Tensor:
        """Normalise (B, ..., D) tokens of cells with the labels (B,)."""
        if domain is None:
            raise ValueError("Expected batch labels for the domain-specific batch norm, found none.")
        labels = (domain[:1] if self.of_first else domain.unique()).tolist()
        self.check(labels)
        if len(labels) == 1:
            return self._normalise(x, labels[0])
        normed = torch.empty_like(x)
        for label in labels:
            cells = (domain == label).nonzero().squeeze(1)
            normed[cells] = self._normalise(x[cells], label)
        return normed

    def check(self, labels: list[int]) -> None:
        """Refuse labels beyond the number of domains."""
        if max(labels) >= len(self.domains) or min(labels) < 0:
            raise ValueError(f"Expected batch labels within 0 .. {len(self.domains) - 1}, found {labels}.")

    def _normalise(self, x: Tensor, label: int) -> Tensor:
        return self.domains[label](x.flatten(0, -2)).view_as(x)
