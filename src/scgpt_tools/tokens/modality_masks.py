"""Hide whole modalities of some cells, so that a model learns to tell one from the others.

As in :mod:`~scgpt_tools.tokens.corruptions`, the truth is kept in ``target`` and its places in ``hidden``.
B cells, L tokens a cell, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from scgpt_tools._validate import as_generator, check_fraction
from scgpt_tools.tokens.corruptions import Corruption, MaskValues
from scgpt_tools.tokens.orders import draws

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.batch import TokenBatch

# Keeps these draws apart from those of the tokenizer and of other corruptions.
_WHOLE = 6


@dataclass(frozen=True, kw_only=True)
class HideModalities(Corruption):
    """Query one whole modality of some cells, given all others, and some values of all in the other cells.

    What is queried whole is generated: the cell token and the other modalities do not see its tokens, just as if the
    cell had not been measured in it.
    """

    name: ClassVar[str] = "hide_modalities"
    modalities: tuple[int, ...]
    """Numbers of modalities that may be queried whole: those whose tokens are all features of a panel."""
    whole: float = 0.5
    """Part of the cells to query a whole modality of, among those that have another one as well."""
    ratio: float = 0.4
    """Part of the values to hide in the other cells."""
    generate: bool = True
    """Mark what is queried whole as generated; for models without the vector that stands for such values, False
    shows it as masked."""

    def __post_init__(self) -> None:
        check_fraction("whole", self.whole)
        if not self.modalities and self.whole:
            raise ValueError("Expected `modalities` that may be hidden whole, found none. Pass whole=0 for none.")

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Hide values of real tokens.

        Parameters
        ----------
        batch
            Cells with all their values and the modality of each token.
        rng
            Seed or generator.

        Returns
        -------
        The batch with the marker in ``values``, the truth in ``target`` and its places in ``hidden``.
        """
        rng = as_generator(rng)
        masked = MaskValues(ratio=self.ratio).places(batch, rng)
        queries = self._queries(batch, rng)
        chosen = queries.any(dim=1)
        hidden = torch.where(chosen[:, None], queries, masked)
        generated = queries if self.generate and bool(chosen.any()) else None
        return self.hide(batch, hidden).replace(generated=generated)

    def _queries(self, batch: TokenBatch, rng: np.random.Generator) -> Tensor:
        """(B, L) tokens of the query modality, nowhere true for cells without one."""
        modality = batch.require("modality")
        inside = batch.mask.clone()
        inside[:, :1] = False
        counts = torch.stack([(inside & (modality == number)).sum(1) for number in self.modalities or (-1,)], dim=1)
        possible = (counts > 0) & (inside.sum(1, keepdim=True) > counts)
        noise = _per_cell(batch, rng, n=counts.shape[1] + 1)
        # Of the modalities that could be queried of a cell, the one with the smallest number.
        pick = noise[:, 1:].masked_fill(~possible, torch.inf).argmin(dim=1)
        number = torch.tensor(self.modalities or (-1,), device=modality.device)[pick]
        wanted = possible.any(dim=1) & (noise[:, 0] < self.whole)
        return inside & (modality == number[:, None]) & wanted[:, None]


def _per_cell(batch: TokenBatch, rng: np.random.Generator, *, n: int) -> Tensor:
    """(B, n) numbers in [0, 1) that depend on the draw and the cell, not on its neighbours in the minibatch."""
    if batch.index is None:
        numbers = rng.random((len(batch), n))
    else:
        bits = draws(int(rng.integers(2**62)), batch.index.cpu().numpy()[:, None], np.arange(n)[None], _WHOLE)
        numbers = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(numbers).to(batch.genes.device)
