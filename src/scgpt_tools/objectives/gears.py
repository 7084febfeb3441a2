"""The training loss of GEARS, as functions of tensors.

Kept beside our own objectives for those who compare with GEARS.  Its direction term compares signs and has therefore no
gradient: it changes the value of the loss and nothing that is learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def autofocus_direction(
    predicted: Tensor,
    true: Tensor,
    control: Tensor,
    conditions: Sequence[str],
    genes: Mapping[str, Tensor],
    *,
    direction: float = 1e-3,
    log_variance: Tensor | None = None,
    certainty: float = 1.0,
) -> Tensor:
    r"""Fourth power of the error, so that large errors count most, plus a penalty for the wrong direction.

    Per condition, over its n cells and g genes,
    :math:`\frac{1}{n g} \sum (p - y)^4 + \frac{\lambda}{n g} \sum (\mathrm{sign}(y - c) - \mathrm{sign}(p - c))^2`,
    averaged over conditions.

    Parameters
    ----------
    predicted, true
        (B, G) cells.
    control
        (G,) mean of the controls.
    conditions
        Condition of each cell.
    genes
        Positions of the genes to score of each condition: those seen in any of its cells.  A condition that is absent,
        such as the control, is scored on all genes.
    direction
        Weight of the direction term.
    log_variance
        (B, G) predicted log variance; adds ``certainty * exp(-log_variance) * (p - y) ** 4``.
    certainty
        Weight of that term.

    Returns
    -------
    Scalar.
    """
    everything = torch.arange(predicted.shape[1], device=predicted.device)
    terms = []
    for condition in dict.fromkeys(conditions):
        rows = torch.tensor([i for i, own in enumerate(conditions) if own == condition], device=predicted.device)
        columns = genes.get(condition, everything)
        p, y = (side[rows][:, columns] for side in (predicted, true))
        error = (p - y) ** 4
        if log_variance is not None:
            error = error + certainty * torch.exp(-log_variance[rows][:, columns]) * error
        c = control[columns]
        wrong = (torch.sign(y - c) - torch.sign(p - c)) ** 2
        terms.append((error + direction * wrong).mean())
    return torch.stack(terms).mean()
