"""Loss terms about the bins of hidden values (DeepSC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from scgpt_tools.nn.bin_losses import (
    IGNORED,
    class_margins,
    cross_entropy,
    focal_cross_entropy,
    margin_cross_entropy,
    per_class_cross_entropy,
)
from scgpt_tools.objectives.base import Objective, Views
from scgpt_tools.objectives.ranks import is_shared, part_of_mean, share_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch

Balance = Literal["values", "bins", "margins", "focal"]


@dataclass(frozen=True, kw_only=True)
class MaskedBins(Objective):
    """Predict the bins of hidden values: cross-entropy."""

    balance: Balance = "values"
    """``"values"`` averages over hidden values; ``"bins"`` over those of each bin first, and then over all bins, absent
    ones as 0; ``"margins"`` asks for more of rare bins (LDAM), by their ``counts``; ``"focal"`` for more of unsure values."""
    counts: tuple[float, ...] | None = None
    """How often each bin occurs, from that of padding on; only with ``balance="margins"``."""
    gamma: float = 2.0
    """Power of what is missing to certainty, of ``balance="focal"``."""

    name: ClassVar[str] = "masked_bins"
    heads: ClassVar[tuple[str, ...]] = ("bins",)
    reports: ClassVar[tuple[str, ...]] = ("bin_accuracy",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.balance == "margins") != (self.counts is not None):
            raise ValueError(f"`counts` go with balance='margins' only, found {self.balance!r} and {self.counts}.")

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy."""
        logits, labels = views["first"]["bins"], self._labels(batch)
        if self.balance == "bins":
            return self._over_bins(logits, labels)
        if self.balance == "margins":
            mean = margin_cross_entropy(logits, labels, class_margins(self.counts or ()))
        elif self.balance == "focal":
            mean = focal_cross_entropy(logits, labels, gamma=self.gamma)
        else:
            mean = cross_entropy(logits, labels)
        return part_of_mean(mean, logits, batch.require("hidden"))

    def _over_bins(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over bins of their means, each over the values of all processes."""
        means = per_class_cross_entropy(logits, labels)[1:]
        if is_shared():
            shares = [share_of_mean(labels == number) for number in range(1, logits.shape[-1])]
            means = means * torch.stack([torch.as_tensor(share, device=means.device) for share in shares])
        return means.mean()

    def measures(self, views: Views, batch: TokenBatch) -> dict[str, Tensor]:
        """Share of hidden values whose most likely bin is right."""
        hidden = batch.require("hidden")
        right = (views["first"]["bins"].argmax(dim=-1) == batch.require("target_bins")) & hidden
        return {"bin_accuracy": right.sum() / hidden.sum().clamp(min=1)}

    def _labels(self, batch: TokenBatch) -> Tensor:
        return batch.require("target_bins").masked_fill(~batch.require("hidden"), IGNORED)
