"""Loss terms about the bins of hidden values (DeepSC)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from scgpt_tools.nn.bin_losses import (
    IGNORED,
    class_margins,
    cross_entropy,
    focal_cross_entropy,
    margin_cross_entropy,
)
from scgpt_tools.objectives.base import Objective, TokensRead, Views
from scgpt_tools.objectives.ranks import balanced_mean, part_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch

Balance = Literal["values", "bins", "margins", "focal", "alternating", "adaptive"]

# Epochs that "adaptive" begins with.
_EASY = 2


@dataclass(frozen=True, kw_only=True)
class MaskedBins(Objective):
    """Predict the bins of hidden values: cross-entropy."""

    balance: Balance = "values"
    """``"values"`` averages over hidden values; ``"bins"`` over those of each bin first, and then over all bins, absent
    ones as 0; ``"margins"`` asks for more of rare bins (LDAM), by their ``counts``; ``"focal"`` for more of unsure values.  Two change with the epoch:
    ``"alternating"`` is ``"margins"`` in the first, third, ... and ``"bins"`` in the others, ``"adaptive"`` is ``"values"``
    in the first two and ``"bins"`` afterwards."""
    counts: tuple[float, ...] | None = None
    """How often each bin occurs, from that of padding on, for ``"margins"`` and ``"alternating"``;
    :func:`scgpt_tools.train.pretrain` counts them where they are ``None``."""
    gamma: float = 2.0
    """Power of what is missing to certainty, of ``balance="focal"``."""

    name: ClassVar[str] = "masked_bins"
    heads: ClassVar[tuple[str, ...]] = ("bins",)
    tokens: ClassVar[TokensRead] = "hidden"
    cells: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("bin_accuracy",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.counts is not None and not self.counted:
            raise ValueError(
                f"`counts` go with balance='margins' or 'alternating' only, found {self.balance!r} and {self.counts}."
            )

    @property
    def counted(self) -> bool:
        """Whether the term depends on how often bins occur."""
        return self.balance in ("margins", "alternating")

    def check(self) -> None:
        """Refuse a term without the counts that it needs."""
        if self.counted and self.counts is None:
            raise ValueError(
                f"Expected `counts` of the bins for balance={self.balance!r}, found None. `train.pretrain` counts them; "
                "elsewhere pass them, from that of padding on."
            )

    def at_epoch(self, epoch: int) -> MaskedBins:
        """The term with the balance of an epoch."""
        if self.balance == "alternating":
            return replace(self, balance="bins", counts=None) if epoch % 2 else replace(self, balance="margins")
        if self.balance == "adaptive":
            return replace(self, balance="values" if epoch < _EASY else "bins")
        return self

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy; of those that change with the epoch, that of the first."""
        self.check()
        if self.balance in ("alternating", "adaptive"):
            return self.at_epoch(0)(views, batch)
        logits, labels = views["first"]["bins"], self._labels(batch)
        if self.balance == "bins":
            return balanced_mean(logits, labels, first=1)
        if self.balance == "margins":
            mean = margin_cross_entropy(logits, labels, class_margins(self.counts or ()))
        elif self.balance == "focal":
            mean = focal_cross_entropy(logits, labels, gamma=self.gamma)
        else:
            mean = cross_entropy(logits, labels)
        return part_of_mean(mean, logits, batch.require("hidden"))

    def measures(self, views: Views, batch: TokenBatch) -> dict[str, Tensor]:
        """Share of hidden values whose most likely bin is right."""
        hidden = batch.require("hidden")
        right = (views["first"]["bins"].argmax(dim=-1) == batch.require("target_bins")) & hidden
        return {"bin_accuracy": right.sum() / hidden.sum().clamp(min=1)}

    def _labels(self, batch: TokenBatch) -> Tensor:
        return batch.require("target_bins").masked_fill(~batch.require("hidden"), IGNORED)
