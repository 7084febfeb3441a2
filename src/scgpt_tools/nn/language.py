"""What texts say of genes, as a part of the embedder: a table of text embeddings, and a map to the width of the model.

Shape letters: V tokens of the vocabulary, E width of the texts, D width of the model, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.sockets import PartConfig, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor


class TextTable(nn.Module):
    """A table (V, E) of text embeddings: trained, held, or held with a low-rank correction that is trained."""

    def __init__(self, rows: int, width: int, pad: int | None, *, frozen: bool, rank: int) -> None:
        super().__init__()
        self.pad = pad
        weight = torch.empty(rows, width).uniform_(-0.1, 0.1)
        if frozen:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)
        # The correction adds nothing at first, and can learn from the first step on.
        self.change = nn.Parameter(torch.zeros(rows, rank)) if rank else None
        self.basis = nn.Parameter(torch.randn(rank, width) / width**0.5) if rank else None

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (...) ids."""
        found = F.embedding(ids, self.weight, self.pad)
        if self.change is None or self.basis is None:
            return found
        return found + F.embedding(ids, self.change, self.pad) @ self.basis


class Language(nn.Module):
    """Embed a gene by what texts say of it: its row of the table, a linear map, a layer norm.

    Without gradients, on a CPU, each different gene is mapped once and looked up: cells of a table share their genes.
    """

    def __init__(
        self, rows: int, width: int, dim: int, pad: int | None, *, frozen: bool, rank: int, masked: bool
    ) -> None:
        super().__init__()
        self.table = TextTable(rows, width, pad, frozen=frozen, rank=rank)
        self.projection, self.norm = Linear(width, dim), nn.LayerNorm(dim)
        self.masked = masked
        if masked:
            # No gene has a text before it is given one, nor have tokens that are added.
            nn.init.zeros_(self.table.weight)

    def forward(self, genes: Tensor) -> Tensor:
        """Embed (...) token ids."""
        if genes.device.type == "cpu" and not self.training and not torch.is_grad_enabled():
            different, places = genes.unique(return_inverse=True)
            return F.embedding(places, self._embed(different))
        return self._embed(genes)

    def _embed(self, genes: Tensor) -> Tensor:
        rows = self.table(genes)
        vectors = self.norm(self.projection(rows))
        # A gene without a text has a row of zeros, which would otherwise mean the same vector for all of them.
        return vectors * rows.any(dim=-1, keepdim=True) if self.masked else vectors


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(PartConfig):
    """A table of embeddings of texts about genes, and a map to the width of the model (scGenePT)."""

    by_task: ClassVar[bool] = True

    width: int
    """Of the text embeddings, such as 1536 for text-embedding-ada-002."""
    source: str = ""
    """What the texts are, such as ``"ncbi+uniprot"`` or ``"go_c_concat"``."""
    frozen: bool = False
    """Hold the table and train the map alone; scGenePT trains both."""
    rank: int = 0
    """Train a correction of this rank to a frozen table; 0 for none."""
    masked: bool = False
    """Let genes whose row is zero, which have no text, add nothing."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("width", self.width, 1)
        check_least("rank", self.rank, 0)
        if self.rank and not self.frozen:
            raise ValueError(f"`rank` corrects a frozen table, found rank={self.rank} with frozen=False.")

    @property
    def reads(self) -> tuple[str, ...]:
        """Token ids."""
        return ("genes",)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the table and the map."""
        return Language(
            sizes.n_tokens,
            self.width,
            sizes.dim,
            sizes.pad_id,
            frozen=self.frozen,
            rank=self.rank,
            masked=self.masked,
        )
