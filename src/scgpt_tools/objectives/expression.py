"""Loss terms about expression: hidden values predicted from their tokens, from the cell, or after a perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from scgpt_tools._validate import check_number
from scgpt_tools.nn.losses import masked_huber, masked_mse, negative_log_bernoulli
from scgpt_tools.objectives.base import Objective, TokensRead, View, Views
from scgpt_tools.objectives.profiles import MEASURES, ProfileSums
from scgpt_tools.objectives.ranks import part_of_mean, share_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch


@dataclass(frozen=True, kw_only=True)
class ExpressionError(Objective):
    """What terms that compare expression have in common: how an error counts."""

    loss: Literal["mse", "huber"] = "mse"
    """Squared errors, or Huber's: half the square of an error up to ``delta``, from there on linear, so that a few genes of
    very high expression do not outweigh the others."""
    delta: float | None = None
    """Where Huber's loss becomes linear, in the unit of the values (bins, log1p); ``None`` for 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta is None:
            return
        if self.loss != "huber":
            raise ValueError(f"Expected `delta` with loss='huber' only, found it with {self.loss!r}.")
        check_number("delta", self.delta, above=0)

    def _mean(self, prediction: Tensor, target: Tensor, places: Tensor) -> Tensor:
        """Mean error over places."""
        # Sums over thousands of squared bins overflow float16, so the loss is computed in float32 whatever the model is.
        if self.loss == "huber":
            mean = masked_huber(prediction.float(), target, places, self._delta)
        else:
            mean = masked_mse(prediction.float(), target, places)
        return part_of_mean(mean, prediction, places)

    def _each(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each value."""
        if self.loss == "huber":
            return F.huber_loss(prediction.float(), target, reduction="none", delta=self._delta)
        return (prediction.float() - target).square()

    @property
    def _delta(self) -> float:
        return 1.0 if self.delta is None else self.delta


@dataclass(frozen=True, kw_only=True)
class ExpressionErrorByModality(ExpressionError):
    """The same, perhaps averaged over modalities."""

    by_modality: bool = False
    """Average over the values of each modality first, so that a short panel counts as much as thousands of genes."""
    modality_weights: tuple[float, ...] | None = None
    """Weight of each modality by its number in that average; ``None`` for the same.  Only with ``by_modality``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.modality_weights
        if weights is None:
            return
        if not self.by_modality:
            raise ValueError("Expected `modality_weights` with by_modality=True only, found them with False.")
        if any(not 0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise ValueError(f"Expected `modality_weights` of at least 0, one of them above, found {weights}.")

    def _error(self, prediction: Tensor, batch: TokenBatch, places: Tensor) -> Tensor:
        """Mean error over places, or over the modalities of their means; 0 for the latter where there are none."""
        target = batch.require("target")
        if not self.by_modality:
            return self._mean(prediction, target, places)
        present, kind = batch.require("modality")[places].unique(return_inverse=True)
        error = self._each(prediction, target)[places]
        weight = torch.ones(len(present), device=error.device)
        if self.modality_weights is not None:
            weight = torch.tensor(self.modality_weights, device=error.device)[present]
        weight = weight / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return (error * (weight / kind.bincount(minlength=len(present)))[kind]).sum() * share_of_mean(places)


@dataclass(frozen=True, kw_only=True)
class MaskedExpression(ExpressionErrorByModality):
    r"""Predict hidden values from their tokens (MLM, GEP).

    .. math:: \frac{1}{|H|} \sum_{(i, j) \in H} (\hat{x}_{ij} - x_{ij})^2

    over the hidden places H of all cells.  With tokens to be generated this is the first term of scGPT's generative
    pre-training.
    """

    name: ClassVar[str] = "masked_expression"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    tokens: ClassVar[TokensRead] = "hidden"
    cells: ClassVar[bool] = False

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean error over hidden values."""
        return self._error(views["first"]["expression"], batch, batch.require("hidden"))


@dataclass(frozen=True, kw_only=True)
class MaskedExpressionFromCell(ExpressionErrorByModality):
    """Predict hidden values from the cell embedding and the gene's alone (MVC, GEPC).

    The same mean as :class:`MaskedExpression`.  No other token can help, so what the cell embedding holds of the cell
    is what this term put there.
    """

    name: ClassVar[str] = "masked_expression_from_cell"
    heads: ClassVar[tuple[str, ...]] = ("expression_from_cell",)
    tokens: ClassVar[TokensRead] = "none"
    visible: bool = False
    """Ask for the values that the network saw as well, so that the cell embedding has to hold all of them."""

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean error over hidden values, or over all."""
        queries = batch.require("hidden")
        if self.visible:
            # Position 0 is the cell token, which has no value.
            queries = queries | (batch.mask & (torch.arange(batch.mask.shape[1], device=queries.device) > 0))
        return self._error(views["first"]["expression_from_cell"], batch, queries)


@dataclass(frozen=True, kw_only=True)
class RegeneratedExpression(ExpressionError):
    """Predict hidden values once more, with the detached cell embedding in the place of the cell token.

    The third term of scGPT's generative pre-training: tokens learn to read a cell embedding, which they never see
    otherwise.
    """

    name: ClassVar[str] = "regenerated_expression"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    views: ClassVar[tuple[View, ...]] = ("first", "from_cell")
    tokens: ClassVar[TokensRead] = "hidden"

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean squared error over hidden values in the second pass."""
        return self._mean(views["from_cell"]["expression"], batch.require("target"), batch.require("hidden"))


@dataclass(frozen=True, kw_only=True)
class ZeroLikelihood(Objective):
    r"""Predict from its token whether a hidden value is zero.

    .. math:: -\frac{1}{|H|} \sum_{(i, j) \in H} \log P(x_{ij} > 0 \text{ as found} \mid p_{ij})

    with p the predicted probability that a value is *not* zero.
    """

    name: ClassVar[str] = "zero_likelihood"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    tokens: ClassVar[TokensRead] = "hidden"
    cells: ClassVar[bool] = False

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Negative log likelihood, averaged over hidden values."""
        return _hidden_zeros(views["first"]["expression_nonzero"], batch)


@dataclass(frozen=True, kw_only=True)
class ZeroLikelihoodFromCell(Objective):
    """Predict from the cell embedding whether a hidden value is zero; the mean of :class:`ZeroLikelihood`."""

    name: ClassVar[str] = "zero_likelihood_from_cell"
    heads: ClassVar[tuple[str, ...]] = ("expression_from_cell",)
    tokens: ClassVar[TokensRead] = "none"

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Negative log likelihood, averaged over hidden values."""
        return _hidden_zeros(views["first"]["expression_from_cell_nonzero"], batch)


@dataclass(frozen=True, kw_only=True)
class PerturbedExpression(ExpressionError):
    """Predict expression after a perturbation, at every real token.

    Mean squared error over all real places; nothing is hidden, the input is another cell.  Most of it is what cells of
    one condition differ by among each other, which no model can know, so it also reports the squared error of mean
    profiles of conditions, and the correlation of mean profiles and of their change from the input: each over all
    validation cells, averaged over conditions.  The former correlation is near 1 for a prediction of no change.
    """

    name: ClassVar[str] = "perturbed_expression"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    cells: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = MEASURES

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean squared error over real tokens."""
        return self._mean(views["first"]["expression"], batch.require("target"), batch.mask)

    def collector(self) -> ProfileSums:
        """Sums by condition and gene."""
        return ProfileSums()


def _hidden_zeros(nonzero: Tensor, batch: TokenBatch) -> Tensor:
    hidden = batch.require("hidden")
    # Half precision cannot hold the distance of a probability to 1 that the original keeps.
    return part_of_mean(negative_log_bernoulli(nonzero.float(), batch.require("target"), hidden), nonzero, hidden)
