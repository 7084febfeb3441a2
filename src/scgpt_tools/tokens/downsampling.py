"""Cells with fewer molecules to learn from, for tokenizers that tell how many a cell has (scFoundation).

Shape letters: B cells, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from scgpt_tools._validate import as_generator, check_fraction, check_integer, check_number
from scgpt_tools.tokens.corruptions import (
    CORRUPTIONS,
    Count,  # noqa: F401  documentation looks up the type of an inherited field here
    MaskValues,
    candidates_of,
    noise_of,
)
from scgpt_tools.tokens.depth import DEPTH_TOKENS, depths

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class MaskDownsampled(MaskValues):
    """Thin some cells to a part of their molecules, hide values, and ask for those of the whole cell (scFoundation).

    Of a cell that is thinned each molecule stays with a probability, which is drawn from a beta distribution for the cell, so
    that the count of a gene is binomial.  Values and the token S are those of what stays; the token T and the values asked
    for are those of the whole cell.  For tokenizers with ``depth``.
    """

    name: ClassVar[str] = "mask_downsampled"
    ratio: float | tuple[float, ...] = 0.3
    share: float = 0.5
    """Probability that a cell is thinned."""
    shape: tuple[float, float] = (2.0, 2.0)
    """Parameters of the beta distribution of the part that stays."""
    least: int = 1000
    """Cells with fewer molecules stay whole."""
    first: int | None = field(default=None, init=False, repr=False, compare=False)
    """Column of the token T."""
    target_sum: float = field(default=1e4, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("share", self.share)
        for number in self.shape:
            check_number("shape", number, above=0)
        check_integer("least", self.least, least=0)

    def of(self, tokenizer: Tokenizer) -> MaskDownsampled:
        """Copy that knows where tokens of depth are, and what values are of.

        Raises
        ------
        ValueError
            If the tokenizer has no tokens of depth, or values that counts cannot be told from.
        """
        config = tokenizer.config
        if not config.depth or config.values != "log1p" or config.target_sum is None:
            raise ValueError(
                f"Expected a tokenizer with depth=True, values='log1p' and a `target_sum` for {self.name!r}, found "
                f"depth={config.depth}, {config.values!r} and {config.target_sum}. Take form='scfoundation' with depth=True."
            )
        copy = replace(super().of(tokenizer))
        object.__setattr__(copy, "first", config.first - len(DEPTH_TOKENS))
        object.__setattr__(copy, "target_sum", config.target_sum)
        return copy

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Thin cells, and hide values of real tokens."""
        if self.first is None:
            raise ValueError(f"Expected {self.name!r} to know its tokenizer, found none. Call `of(tokenizer)` first.")
        rng = as_generator(rng)
        thinned = self._thinned(batch, self.first, noise_of(batch, rng), noise_of(batch, rng))
        return self.hide(thinned, self.places(thinned, rng)).replace(target=batch.values)

    def _thinned(self, batch: TokenBatch, first: int, of_genes: Tensor, of_cells: Tensor) -> TokenBatch:
        """Cells as they would be with fewer molecules; two numbers in [0, 1) for each token decide."""
        # It takes a while to import, and few need it.
        from scipy.stats import beta, binom

        values = batch.values.double().cpu().numpy()
        genes = candidates_of(batch, first + len(DEPTH_TOKENS)).cpu().numpy() & (values > 0)
        total = np.rint(10.0 ** values[:, first])
        counts = np.rint(np.where(genes, np.expm1(values), 0.0) / self.target_sum * total[:, None])
        own, other = of_genes.cpu().numpy(), of_cells.cpu().numpy()
        chosen = (other[:, first] < self.share) & (total >= max(self.least, 1))
        kept = beta.ppf(other[:, first + 1], *self.shape)
        rows, columns = np.nonzero(genes & chosen[:, None])
        fewer = np.zeros_like(counts)
        fewer[rows, columns] = np.maximum(binom.ppf(own[rows, columns], counts[rows, columns], kept[rows]), 0)
        # Of genes that have no token here, as of all others.
        unseen = np.maximum(total - counts.sum(axis=1), 0)
        left = fewer.sum(axis=1) + np.maximum(binom.ppf(own[:, first], unseen, kept), 0)
        found = np.where(genes, np.log1p(fewer / np.maximum(left, 1)[:, None] * self.target_sum), values)
        found[:, first + 1] = depths(left)
        thinned = torch.from_numpy(np.where(chosen[:, None], found, values)).to(batch.values)
        return batch.replace(values=thinned)


CORRUPTIONS[MaskDownsampled.name] = MaskDownsampled
