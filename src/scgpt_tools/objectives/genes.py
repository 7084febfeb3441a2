"""Loss terms about which gene a token is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from scgpt_tools.objectives.base import Objective, TokensRead, Views
from scgpt_tools.objectives.ranks import part_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch


@dataclass(frozen=True, kw_only=True)
class _HiddenGenes(Objective):
    """What terms about hidden genes have in common."""

    among: Literal["all", "unseen"] = "all"
    """Which genes to choose from: all of the vocabulary, or those that the cell does not show.  A gene that is shown is not
    hidden, which a network learns first among ``"all"``, and which says nothing about cells."""

    def _candidates(self, logits: Tensor, batch: TokenBatch) -> Tensor:
        """Logits (B, V) where genes that a cell shows are left out, but for those that are asked for."""
        if self.among == "all":
            return logits
        n = logits.shape[1]
        # One column more for what is not meant.
        shown = torch.zeros(len(batch), n + 1, dtype=torch.bool, device=logits.device)
        shown.scatter_(1, batch.genes.where(batch.mask, n), value=True)
        shown.scatter_(1, batch.require("target_genes").where(batch.require("hidden"), n), value=False)
        return logits.masked_fill(shown[:, :n], -torch.inf)


@dataclass(frozen=True, kw_only=True)
class MaskedGenes(_HiddenGenes):
    """Predict which genes are hidden, or come next: cross-entropy over genes, averaged over hidden tokens."""

    name: ClassVar[str] = "masked_genes"
    heads: ClassVar[tuple[str, ...]] = ("genes",)
    tokens: ClassVar[TokensRead] = "hidden"
    cells: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("gene_accuracy",)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy."""
        logits, truth = self._asked(views, batch)
        return part_of_mean(F.cross_entropy(logits.float(), truth), logits, batch.require("hidden"))

    def measures(self, views: Views, batch: TokenBatch) -> dict[str, Tensor]:
        """Share of hidden genes that are the most likely ones."""
        logits, truth = self._asked(views, batch)
        return {"gene_accuracy": (logits.argmax(dim=-1) == truth).sum() / max(len(truth), 1)}

    def _asked(self, views: Views, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Logits (H, V) of the hidden tokens and the token ids (H,) that are right."""
        hidden = batch.require("hidden")
        logits, truth = views["first"]["genes"], batch.require("target_genes")[hidden]
        if self.among == "all":
            return logits, truth
        left_out = self._candidates(logits.new_zeros(len(batch), logits.shape[1]), batch)
        return logits + left_out[hidden.nonzero()[:, 0]], truth


@dataclass(frozen=True, kw_only=True)
class MaskedGenesFromCell(_HiddenGenes):
    r"""Predict from the cell embedding which genes are hidden: cross-entropy over genes, averaged over hidden tokens.

    All hidden genes of a cell are drawn from one distribution, :math:`\mathrm{softmax}(f(c))`, so the embedding c has to tell
    what the cell expresses.  Where hidden genes are predicted by their own tokens alone, the cell token is never asked.
    """

    name: ClassVar[str] = "masked_genes_from_cell"
    heads: ClassVar[tuple[str, ...]] = ("genes_from_cell",)
    tokens: ClassVar[TokensRead] = "none"

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy."""
        hidden, truth = batch.require("hidden"), batch.require("target_genes")
        logits = self._candidates(views["first"]["genes_from_cell"].float(), batch).log_softmax(dim=1)
        found = logits.gather(1, truth.where(hidden, 0))[hidden]
        return part_of_mean(-found.mean(), found, hidden)
