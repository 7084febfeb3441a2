"""Loss terms as pure functions of tensors, shared by objectives and by the classes with the originals' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the True entries of ``mask``; NaN for an empty mask, as in scGPT."""
    weight = mask.to(prediction.dtype)
    return ((prediction - target).square() * weight).sum() / weight.sum()


def masked_huber(prediction: Tensor, target: Tensor, mask: Tensor, delta: float = 1.0) -> Tensor:
    """Mean over the True entries of ``mask`` of half the squared error, from ``delta`` on linear; NaN for an empty mask."""
    weight = mask.to(prediction.dtype)
    return (F.huber_loss(prediction, target, reduction="none", delta=delta) * weight).sum() / weight.sum()


def masked_relative_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``|prediction - target| / (target + 1e-6)`` over ``mask``: a diagnostic that explodes at zero targets."""
    if not mask.any():
        raise ValueError("Expected at least one position in `mask`, found none.")
    weight = mask.to(prediction.dtype)
    return ((prediction - target).abs() / (target + 1e-6) * weight).sum() / weight.sum()


def negative_log_bernoulli(nonzero: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log likelihood of ``target > 0`` under the probabilities ``nonzero``, averaged over ``mask``."""
    eps = torch.finfo(nonzero.dtype).eps
    p = nonzero.clamp(eps, 1 - eps)
    weight = mask.to(p.dtype)
    log_likelihood = torch.where(target > 0, p.log(), (-p).log1p())
    return -(log_likelihood * weight).sum() / weight.sum()


def elastic_similarity(cell: Tensor, threshold: float) -> Tensor:
    """Elastic cell similarity (ECS): mean over all pairs of ``1 - (s - threshold)^2``, s the clipped cosine.

    The diagonal is set to 0 *before* the formula and so adds ``1 - threshold^2`` per cell, as scGPT has it.
    """
    unit = F.normalize(cell, dim=1)
    similarity = (unit @ unit.T).relu()
    similarity = similarity.masked_fill(torch.eye(len(cell), dtype=torch.bool, device=cell.device), 0.0)
    return (1 - (similarity - threshold).square()).mean()


def contrastive(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrastive loss of two views of the same cells (CCE): each cell should find its own second view."""
    similarity = F.cosine_similarity(first.unsqueeze(1), second.unsqueeze(0), dim=-1) / temperature
    return F.cross_entropy(similarity, torch.arange(len(first), device=first.device))
