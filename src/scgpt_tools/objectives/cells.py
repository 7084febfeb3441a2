"""Loss terms about whole cells: their type, how they lie to each other, and what they must not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from scgpt_tools._validate import check_fraction, check_number
from scgpt_tools.nn.bin_losses import IGNORED
from scgpt_tools.nn.losses import contrastive, elastic_similarity
from scgpt_tools.objectives.base import Objective, TokensRead, View, Views
from scgpt_tools.objectives.ranks import balanced_mean, from_everyone, share_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch

UNLABELLED = -1
"""Label of a cell whose class nobody knows; such cells do not count."""


@dataclass(frozen=True, kw_only=True)
class CellType(Objective):
    """Predict the class of a cell (CLS): cross-entropy of labelled cells."""

    balance: Literal["cells", "classes"] = "cells"
    """``"cells"`` averages over labelled cells; ``"classes"`` over those of each class first, and then over all classes,
    those without a cell in the minibatch as 0, so that rare ones count as much as others (DeepSC's ``per_bin``)."""

    name: ClassVar[str] = "cell_type"
    heads: ClassVar[tuple[str, ...]] = ("cell_type",)
    tokens: ClassVar[TokensRead] = "none"
    reports: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Cross-entropy of the logits."""
        logits, label = views["first"]["cell_type"], batch.require("label")
        if self.balance == "classes":
            return balanced_mean(logits, label.masked_fill(label == UNLABELLED, IGNORED))
        return _cross_entropy(logits, label)

    def measures(self, views: Views, batch: TokenBatch) -> dict[str, Tensor]:
        """Share of labelled cells whose most likely class is right."""
        label = batch.require("label")
        known = label != UNLABELLED
        right = (views["first"]["cell_type"].argmax(dim=1) == label) & known
        return {"accuracy": right.sum() / known.sum().clamp(min=1)}


@dataclass(frozen=True, kw_only=True)
class CellTargets(Objective):
    """Predict numbers of a cell: squared error, averaged over those that are known.

    Numbers are in standard deviations of the training cells, so 1 is what their mean scores, and 1 less this is the share
    of the variance that is explained.
    """

    name: ClassVar[str] = "cell_targets"
    heads: ClassVar[tuple[str, ...]] = ("targets",)
    tokens: ClassVar[TokensRead] = "none"

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Squared error of all numbers."""
        found, true = views["first"]["targets"].float(), batch.require("targets")
        known = ~true.isnan()
        errors = (found - true.where(known, found.detach())).square()
        # A minibatch without any number teaches nothing, which is no error.
        return errors.sum() / torch.clamp(known.sum(), min=1) * share_of_mean(known)


@dataclass(frozen=True, kw_only=True)
class ContrastiveCells(Objective):
    r"""Recognise each cell in a second pass that differs by dropout only (CCE).

    Cross-entropy of :math:`\cos(c_i, c'_j) / \tau` over j, with i as the right answer.  Cells of all processes are each
    other's alternatives.
    """

    temperature: float = 0.5
    """Scale of the similarities; 0.5 in scGPT."""

    name: ClassVar[str] = "contrastive_cells"
    views: ClassVar[tuple[View, ...]] = ("first", "again")
    tokens: ClassVar[TokensRead] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("temperature", self.temperature, above=0)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Cross-entropy of the similarities."""
        first, again = (from_everyone(views[view].cell.float()) for view in ("first", "again"))
        return contrastive(first, again, self.temperature)


@dataclass(frozen=True, kw_only=True)
class ElasticSimilarity(Objective):
    r"""Pull similar cells together and push others apart (ECS).

    Mean over all pairs of :math:`1 - (\max(0, \cos(c_i, c_j)) - \beta)^2`, the diagonal counted with a cosine of 0 as
    in scGPT.  Pairs may lie in different processes.
    """

    threshold: float = 0.8
    r""":math:`\beta`, the similarity from which on cells attract each other; 0.8 where scGPT integrates batches."""

    name: ClassVar[str] = "elastic_similarity"
    tokens: ClassVar[TokensRead] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("threshold", self.threshold)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean over pairs of cells."""
        return elastic_similarity(from_everyone(views["first"].cell.float()), self.threshold)


@dataclass(frozen=True, kw_only=True)
class BatchAdversary(Objective):
    """Tell the technical batch of a cell behind a gradient reversal, so that the encoder learns to hide it (DAB).

    Cross-entropy; the reversal is part of the head.
    """

    reversal: float = 1.0
    """Factor of the gradient that is reversed into the encoder, beside ``weight``, which the discriminator's own gradient
    has too.  Above 1 the encoder hides the batch faster than the discriminator learns to tell it; 1 in scGPT."""

    name: ClassVar[str] = "batch_adversary"
    heads: ClassVar[tuple[str, ...]] = ("batch",)
    tokens: ClassVar[TokensRead] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("reversal", self.reversal, least=0)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Cross-entropy of the logits."""
        return _cross_entropy(views["first"]["batch"], batch.require("batch_id"))


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    known = label != UNLABELLED
    total = F.cross_entropy(logits.float(), label, ignore_index=UNLABELLED, reduction="sum")
    # A minibatch without any label teaches nothing, which is no error.
    return total / torch.clamp(known.sum(), min=1) * share_of_mean(known)
