"""What a loss needs to know of the other processes of a distributed run.

With these, processes that each hold a part of a minibatch compute the loss, and after the usual averaging of gradients
the update, of one process that holds all of it.  In a single process both do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from scgpt_tools.nn.bin_losses import per_class_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


def is_shared() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share_of_mean(mask: Tensor) -> Tensor | float:
    """Factor that turns a mean over this process's entries into its part of the mean over everyone's."""
    if not is_shared():
        return 1.0
    here = mask.sum()
    everywhere = here.clone()
    dist.all_reduce(everywhere)
    # Nobody having an entry is no error here: a term that needs one is NaN by itself.
    return here * dist.get_world_size() / everywhere.clamp(min=1)


def part_of_mean(mean: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """Compute this process's part of a mean over everyone's entries.

    Returns the mean times its share.  A process without an entry adds zero and passes a gradient of zero on, so that
    the others are not kept waiting for it; in a single process the mean stays NaN.
    """
    share = share_of_mean(mask)
    if is_shared() and not bool(mask.any()):
        return torch.zeros_like(prediction, dtype=torch.float32).mul(prediction).sum()
    return mean * share


def balanced_mean(logits: Tensor, labels: Tensor, *, first: int = 0) -> Tensor:
    """Mean over classes, from ``first`` on, of the mean cross-entropy of each over everyone's entries.

    A class without entries counts as 0, as DeepSC has it.  ``logits`` (..., C); ``labels`` (...), -100 for none.
    """
    means = per_class_cross_entropy(logits, labels)[first:]
    if is_shared():
        shares = [share_of_mean(labels == number) for number in range(first, logits.shape[-1])]
        means = means * torch.stack([torch.as_tensor(share, device=means.device) for share in shares])
    return means.mean()


def from_everyone(cells: Tensor) -> Tensor:
    """Stack (B, D) cells of all processes; gradients flow back to each.

    Returns (B times processes, D).
    """
    if not is_shared():
        return cells
    # Only a distributed run needs this module, which warns on import where torch was built without it.
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(cells))
