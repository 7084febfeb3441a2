"""DeepSC's loss of pre-training by the original's switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from scgpt_tools.nn.bin_losses import (
    balanced_cross_entropy,
    class_margins,
    cross_entropy,
    exponential_weights,
    level_weights,
    margin_cross_entropy,
)
from scgpt_tools.nn.losses import masked_huber, masked_mse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Losses(NamedTuple):
    """What :class:`PretrainingLoss` returns; terms that are switched off are 0."""

    total: Tensor
    ce: Tensor
    regression: Tensor
    l0: Tensor


@dataclass(kw_only=True)
class PretrainingLoss:
    """Cross-entropy of bins and error of values, by the original's switches.

    Parameters
    ----------
    enable_l0, enable_mse, enable_ce
        Which terms count; the first needs the gates of the first generation.
    ce_loss_weight, target_mse_loss_weight, l0_lambda
        Their factors.
    weighted_ce_loss
        Not looked at, as in the original.
    enable_alternating_ldam_mean_ce_loss, enable_adaptive_ce_loss, use_ldam_loss, mean_ce_loss
        Which cross-entropy, the first that is on: LDAM in odd and balanced in even epochs; plain in epochs 1 and 2 and
        balanced from then on; LDAM; balanced.  None of them is the plain one.
    enable_mse_loss, enable_huber_loss
        Which error, the first that is on.
    use_normal_regression_loss, use_hard_regression_loss, use_exp_regression_loss
        How values count: alike, by level, or by an exponential; the first that is on.  ``None`` for alike is whatever the
        other two leave.
    num_bins
        Bins of expression.
    ignore_index
        Label of values that are not asked for.
    class_counts
        How often each bin occurs, from 0 on; needed for LDAM.
    """

    enable_l0: bool = False
    enable_mse: bool = True
    enable_ce: bool = True
    ce_loss_weight: float = 1.0
    target_mse_loss_weight: float = 3.0
    weighted_ce_loss: bool = False
    mean_ce_loss: bool = True
    use_ldam_loss: bool = False
    enable_adaptive_ce_loss: bool = False
    enable_alternating_ldam_mean_ce_loss: bool = False
    enable_mse_loss: bool = False
    enable_huber_loss: bool = True
    use_normal_regression_loss: bool | None = None
    use_hard_regression_loss: bool = False
    use_exp_regression_loss: bool = False
    l0_lambda: float = 0.1
    num_bins: int = 5
    ignore_index: int = -100
    class_counts: Sequence[float] | None = None
    show_mse_loss_details: bool = False

    def __post_init__(self) -> None:
        if self.enable_mse and not (self.enable_mse_loss or self.enable_huber_loss):
            raise ValueError("Expected `enable_mse_loss` or `enable_huber_loss` with `enable_mse`, found neither.")
        if self.use_normal_regression_loss is None:
            self.use_normal_regression_loss = not (self.use_hard_regression_loss or self.use_exp_regression_loss)
        regressions = (self.use_normal_regression_loss, self.use_hard_regression_loss, self.use_exp_regression_loss)
        if self.enable_mse and not any(regressions):
            raise ValueError(
                "Expected a regression loss with `enable_mse`, found none on. Set `use_normal_regression_loss`, "
                "`use_hard_regression_loss` or `use_exp_regression_loss`."
            )
        if (self.use_ldam_loss or self.enable_alternating_ldam_mean_ce_loss) and self.class_counts is None:
            raise ValueError("Expected `class_counts`, how often each bin occurs, for LDAM, found None.")

    def __call__(
        self,
        logits: Tensor | None,
        labels: Tensor | None,
        prediction: Tensor | None,
        target: Tensor | None,
        mask: Tensor,
        *,
        epoch: int = 1,
        y: Tensor | None = None,
    ) -> Losses:
        """Compute the sum and its terms.

        Parameters
        ----------
        logits, labels
            (B, L, bins + 1) and (B, L).
        prediction, target, mask
            (B, L) values, and where they are asked for.
        epoch
            Counted from 1.
        y
            (B, L, L, 3) gates.
        """
        zero = torch.zeros(())
        ce = regression = l0 = zero
        if self.enable_ce and logits is not None and labels is not None:
            ce = self.bins(logits, labels.masked_fill(labels == self.ignore_index, -100), epoch=epoch)
        if self.enable_mse and prediction is not None and target is not None:
            regression = self.values(prediction, target, mask.bool())
        if self.enable_l0 and y is not None:
            l0 = (y[..., 0].abs() + y[..., 2].abs()).mean()
        total = self.ce_loss_weight * ce + self.target_mse_loss_weight * regression + self.l0_lambda * l0
        return Losses(total, ce, regression, l0)

    def bins(self, logits: Tensor, labels: Tensor, *, epoch: int = 1) -> Tensor:
        """Cross-entropy of the epoch."""
        kind = "mean" if self.mean_ce_loss else "plain"
        if self.use_ldam_loss:
            kind = "ldam"
        if self.enable_adaptive_ce_loss:
            kind = "plain" if epoch <= _PLAIN_EPOCHS else "mean"
        if self.enable_alternating_ldam_mean_ce_loss:
            kind = "ldam" if epoch % 2 else "mean"
        if kind == "ldam":
            return margin_cross_entropy(logits, labels, class_margins(self.class_counts or ()))
        return balanced_cross_entropy(logits, labels) if kind == "mean" else cross_entropy(logits, labels)

    def values(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Error of values at the places of the mask."""
        if self.use_normal_regression_loss:
            return (masked_mse if self.enable_mse_loss else masked_huber)(prediction, target, mask)
        weight = (level_weights if self.use_hard_regression_loss else exponential_weights)(target, mask)
        if self.enable_mse_loss:
            return ((prediction - target).square() * weight).sum()
        return (F.huber_loss(prediction, target, reduction="none") * weight).sum()


_PLAIN_EPOCHS = 2
