"""Loss terms about expression: hidden values predicted from their tokens, from the cell, or after a perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from scgpt_tools.nn.losses import masked_mse, negative_log_bernoulli
from scgpt_tools.objectives.base import Objective, View, Views
from scgpt_tools.objectives.ranks import part_of_mean, share_of_mean

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch


@dataclass(frozen=True, kw_only=True)
class MaskedExpression(Objective):
    r"""Predict hidden values from their tokens (MLM, GEP).

    .. math:: \frac{1}{|H|} \sum_{(i, j) \in H} (\hat{x}_{ij} - x_{ij})^2

    over the hidden places H of all cells.  With tokens to be generated this is the first term of scGPT's generative
    pre-training.
    """

    name: ClassVar[str] = "masked_expression"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    by_modality: bool = False
    """Average over the values of each modality first, so that a short panel counts as much as thousands of genes."""
    modality_weights: tuple[float, ...] | None = None
    """Weight of each modality by its number in that average; ``None`` for the same.  Only with ``by_modality``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self.modality_weights, by_modality=self.by_modality)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean squared error over hidden values."""
        prediction, target, hidden = views["first"]["expression"], batch.require("target"), batch.require("hidden")
        if not self.by_modality:
            return _mse(prediction, target, hidden)
        return _mse_by_modality(prediction, target, hidden, batch.require("modality"), self.modality_weights)


@dataclass(frozen=True, kw_only=True)
class MaskedExpressionFromCell(Objective):
    """Predict hidden values from the cell embedding and the gene's alone (MVC, GEPC).

    The same mean as :class:`MaskedExpression`.  No other token can help, so what the cell embedding holds of the cell
    is what this term put there.
    """

    name: ClassVar[str] = "masked_expression_from_cell"
    heads: ClassVar[tuple[str, ...]] = ("expression_from_cell",)
    by_modality: bool = False
    """As for :class:`MaskedExpression`."""
    modality_weights: tuple[float, ...] | None = None
    """As for :class:`MaskedExpression`."""
    shown: bool = False
    """Ask for the values that the network saw as well, so that the cell embedding has to hold all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self.modality_weights, by_modality=self.by_modality)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean squared error over hidden values, or over all."""
        prediction = views["first"]["expression_from_cell"]
        target, asked = batch.require("target"), batch.require("hidden")
        if self.shown:
            # Position 0 is the cell token, which has no value.
            asked = asked | (batch.mask & (torch.arange(batch.mask.shape[1], device=asked.device) > 0))
        if not self.by_modality:
            return _mse(prediction, target, asked)
        return _mse_by_modality(prediction, target, asked, batch.require("modality"), self.modality_weights)


@dataclass(frozen=True, kw_only=True)
class RegeneratedExpression(Objective):
    """Predict hidden values once more, with the detached cell embedding in the place of the cell token.

    The third term of scGPT's generative pre-training: tokens learn to read a cell embedding, which they never see
    otherwise.
    """

    name: ClassVar[str] = "regenerated_expression"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    views: ClassVar[tuple[View, ...]] = ("first", "from_cell")

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean squared error over hidden values in the second pass."""
        return _mse(views["from_cell"]["expression"], batch.require("target"), batch.require("hidden"))


@dataclass(frozen=True, kw_only=True)
class ZeroLikelihood(Objective):
    r"""Predict from its token whether a hidden value is zero.

    .. math:: -\frac{1}{|H|} \sum_{(i, j) \in H} \log P(x_{ij} > 0 \text{ as found} \mid p_{ij})

    with p the predicted probability that a value is *not* zero.
    """

    name: ClassVar[str] = "zero_likelihood"
    heads: ClassVar[tuple[str, ...]] = ("expression",)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Negative log likelihood, averaged over hidden values."""
        return _hidden_zeros(views["first"]["expression_nonzero"], batch)


@dataclass(frozen=True, kw_only=True)
class ZeroLikelihoodFromCell(Objective):
    """Predict from the cell embedding whether a hidden value is zero; the mean of :class:`ZeroLikelihood`."""

    name: ClassVar[str] = "zero_likelihood_from_cell"
    heads: ClassVar[tuple[str, ...]] = ("expression_from_cell",)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Negative log likelihood, averaged over hidden values."""
        return _hidden_zeros(views["first"]["expression_from_cell_nonzero"], batch)


@dataclass(frozen=True, kw_only=True)
class PerturbedExpression(Objective):
    """Predict expression after a perturbation, at every real token.

    Mean squared error over all real places; nothing is hidden, the input is another cell.  Most of it is what cells of
    one condition differ by among each other, which no model can know, so it also reports the squared error of the mean
    profile of the minibatch.
    """

    name: ClassVar[str] = "perturbed_expression"
    heads: ClassVar[tuple[str, ...]] = ("expression",)
    reports: ClassVar[tuple[str, ...]] = ("profile_error",)

    def __call__(self, views: Views, batch: TokenBatch) -> Tensor:
        """Mean squared error over real tokens."""
        return _mse(views["first"]["expression"], batch.require("target"), batch.mask)

    def measures(self, views: Views, batch: TokenBatch) -> dict[str, Tensor]:
        """Squared error of the mean over cells, gene by gene, averaged over genes."""
        error = (views["first"]["expression"].float() - batch.require("target"))[batch.mask]
        genes, place = batch.genes[batch.mask].unique(return_inverse=True)
        total = torch.zeros(len(genes), device=error.device).index_add(0, place, error)
        return {"profile_error": (total / place.bincount(minlength=len(genes))).square().mean()}


def _check_weights(weights: tuple[float, ...] | None, *, by_modality: bool) -> None:
    if weights is None:
        return
    if not by_modality:
        raise ValueError("Expected `modality_weights` with by_modality=True only, found them with False.")
    if any(not 0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(f"Expected `modality_weights` of at least 0, one of them above, found {weights}.")


def _mse_by_modality(
    prediction: Tensor, target: Tensor, places: Tensor, modality: Tensor, weights: tuple[float, ...] | None
) -> Tensor:
    """Mean over the modalities of the mean over the places of each; 0 where there are none."""
    present, kind = modality[places].unique(return_inverse=True)
    error = (prediction.float() - target)[places].square()
    weight = torch.ones(len(present), device=error.device)
    if weights is not None:
        weight = torch.tensor(weights, device=error.device)[present]
    weight = weight / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return (error * (weight / kind.bincount(minlength=len(present)))[kind]).sum() * share_of_mean(places)


def _hidden_zeros(nonzero: Tensor, batch: TokenBatch) -> Tensor:
    hidden = batch.require("hidden")
    # Half precision cannot hold the distance of a probability to 1 that the original keeps.
    return part_of_mean(negative_log_bernoulli(nonzero.float(), batch.require("target"), hidden), nonzero, hidden)


def _mse(prediction: Tensor, target: Tensor, places: Tensor) -> Tensor:
    # Sums over thousands of squared bins overflow float16, so the loss is computed in float32 whatever the model is.
    return part_of_mean(masked_mse(prediction.float(), target, places), prediction, places)
