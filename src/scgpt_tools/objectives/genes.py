"""Loss terms about which gene a token is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from scgpt_tools.objectives.base import Objective, Views
from scgpt_tools.objectives.ranks import part_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch


@dataclass(frozen=True, kw_only=True)
class MaskedGenes(Objective):
    """Predict which genes are hidden, or come next: cross-entropy over the vocabulary, averaged over hidden tokens."""

    name: ClassVar[str] = "masked_genes"
    heads: ClassVar[tuple[str, ...]] = ("genes",)
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
        return views["first"]["genes"], batch.require("target_genes")[hidden]
