"""Loss terms about bins, of which most values are in a few (DeepSC).

Shape letters: B cells, L tokens, C classes, among them class 0, which is never a target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

IGNORED = -100
"""Label of values that are not asked for."""

_SCALE = 30.0
_LARGEST_MARGIN = 0.5


def per_class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the values of each class, 0 of one without any: (..., C) and (...) to (C,)."""
    logits, labels = logits.flatten(0, -2), labels.flatten()
    classes = logits.shape[-1]
    known = labels != IGNORED
    each = F.cross_entropy(logits[known].float(), labels[known], reduction="none")
    total = each.new_zeros(classes).index_add(0, labels[known], each)
    return total / labels[known].bincount(minlength=classes).clamp(min=1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor, *, first: int = 1) -> Tensor:
    """Mean over classes, from ``first`` on, of their means; classes without values count as 0."""
    return per_class_cross_entropy(logits, labels)[first:].mean()


def class_margins(counts: Sequence[float] | Tensor) -> Tensor:
    """Margins of classes (C,) by how often each occurs, the largest 0.5 for the rarest, none for class 0."""
    counts = torch.as_tensor(counts, dtype=torch.float32)
    margins = counts.clamp(min=1) ** -0.25
    margins = margins * (_LARGEST_MARGIN / margins[1:].max())
    return torch.cat((torch.zeros(1), margins[1:]))


def margin_cross_entropy(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """Cross-entropy where the logit of the true class is less by the margin of that class (LDAM)."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    true = F.one_hot(labels.clamp(min=0), logits.shape[-1]).to(logits.dtype)
    reduced = logits - true * margins.to(logits)
    return F.cross_entropy(_SCALE * reduced, labels, ignore_index=IGNORED)


def focal_cross_entropy(logits: Tensor, labels: Tensor, *, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy where a value counts the less the surer it is, by ``(1 - p) ** gamma``; mean over those asked for."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    known = labels != IGNORED
    each = F.cross_entropy(logits[known], labels[known], reduction="none")
    factor = (1 - (-each).exp()) ** gamma
    if weight is not None:
        factor = factor * weight.to(logits)[labels[known]]
    return (factor * each).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over values that are asked for."""
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED)


def level_weights(target: Tensor, mask: Tensor) -> Tensor:
    """Weights of values by their level, with a sum of 1 over the mask: those of 5 and more count most."""
    weight = torch.ones_like(target)
    weight = torch.where(target == 1, 0.2, weight)
    weight = torch.where((target > 1) & (target < 3), 0.5, weight)
    weight = torch.where(target >= 5, 2.0, weight) * mask
    return weight / weight.sum()


def exponential_weights(target: Tensor, mask: Tensor) -> Tensor:
    """Weights of values that grow by a factor of 1.8 for each unit, divided by the size of the mask."""
    return torch.where(mask, 1.8 ** (target - 1), 0.0) / mask.sum()
