"""Hide which genes tokens are of, or ask for the next one.

A hidden gene's value, bin and place are hidden too: each tells which gene it is.  Shape letters: B cells, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from scgpt_tools._validate import as_generator, check_flag, check_fraction, check_integer
from scgpt_tools.tokens.corruptions import CORRUPTIONS, Corruption, candidates_of, noise_of

if TYPE_CHECKING:
    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer

MASK = "<mask>"


@dataclass(frozen=True, kw_only=True)
class MaskGenes(Corruption):
    """Replace some genes by a token that stands for none, some by other genes, and leave some as they are.

    Of a cell with n genes, ``round(ratio * n)`` are asked for, at least one.  Values, bins and places of all of these
    are hidden, and the visible tokens are numbered afresh, so that no gap tells a place.
    """

    name: ClassVar[str] = "mask_genes"
    ratio: float = 0.15
    """Part of the genes to ask for."""
    other: float = 0.1
    """Part of these that are exchanged for other genes."""
    keep: float = 0.1
    """Part of these that stay visible."""
    keep_first: int = 1
    """Leading tokens never to hide, such as the cell token."""
    compat: bool = False
    """Leave values, bins and places visible and draw other tokens among special ones too, as scModelForge does: what is
    asked for can then be looked up, so this is for comparison only."""
    mask_gene: int | None = None
    """Token id that stands for no gene; :meth:`of` knows it from the vocabulary."""
    others: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    """(M,) token ids that genes are exchanged for."""

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio, zero=False)
        for name in ("other", "keep"):
            check_fraction(name, getattr(self, name))
        if self.other + self.keep > 1:
            raise ValueError(f"Expected `other` and `keep` to be at most 1 together, found {self.other + self.keep}.")
        check_integer("keep_first", self.keep_first, least=0)
        check_flag("compat", self.compat)

    def of(self, tokenizer: Tokenizer) -> MaskGenes:
        """Copy with the token ids of a vocabulary.

        Raises
        ------
        ValueError
            If it has no token that stands for no gene.
        """
        vocabulary = tokenizer.vocabulary
        if self.mask_gene is None and MASK not in vocabulary:
            raise ValueError(f"Expected a vocabulary with {MASK!r}, which hidden genes are replaced by, found none.")
        known = super().of(tokenizer)
        copy = known if self.mask_gene is not None else replace(known, mask_gene=vocabulary[MASK])
        genes = [number for number, token in enumerate(vocabulary) if self.compat or not vocabulary.is_special(token)]
        object.__setattr__(copy, "others", torch.tensor(genes))
        return copy

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Hide genes of real tokens.

        Parameters
        ----------
        batch
            Cells with all their genes.
        rng
            Seed or generator.

        Returns
        -------
        The batch with the true genes in ``target_genes`` and their places in ``hidden``.
        """
        if self.others is None:
            raise ValueError("Expected token ids of a vocabulary to hide genes with; call `of` with a tokenizer first.")
        rng = as_generator(rng)
        candidates = candidates_of(batch, self.keep_first)
        order = noise_of(batch, rng).masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        others = self.others.to(batch.genes.device)
        drawn = others[(noise_of(batch, rng) * len(others)).long()]
        return self.applied(batch, order, drawn)

    def applied(self, batch: TokenBatch, order: Tensor, drawn: Tensor) -> TokenBatch:
        """Hide genes by given draws.

        Parameters
        ----------
        batch
            Cells.
        order
            (B, L) place of each token in a random order of those of its cell that may be hidden, which come before all
            others.
        drawn
            (B, L) token ids to exchange genes for.
        """
        if self.mask_gene is None:
            raise ValueError("Expected `mask_gene` to hide genes with, found none; call `of` with a tokenizer first.")
        n = candidates_of(batch, self.keep_first).sum(dim=1, keepdim=True)
        chosen = (n.double() * self.ratio).round().clamp(min=1).minimum(n)
        masked = (chosen * (1 - self.other - self.keep)).round()
        other = (chosen * self.other).round()
        hidden = order < chosen
        genes = torch.where(order < masked, self.mask_gene, batch.genes)
        genes = torch.where((order >= masked) & (order < masked + other) & hidden, drawn, genes)
        if self.compat:
            return batch.replace(
                genes=genes,
                target_genes=batch.genes,
                target=batch.values,
                target_bins=batch.bins,
                hidden=hidden,
            )
        return self.hide(batch, hidden).replace(genes=genes, target_genes=batch.genes)


@dataclass(frozen=True, kw_only=True)
class NextTokens(Corruption):
    """Ask each token for the next one: its gene, its value and its bin.  For encoders that look back only (``causal``)."""

    name: ClassVar[str] = "next_tokens"

    def __post_init__(self) -> None:
        if (self.mask_value, self.mask_bin, self.mask_position) != (Corruption.mask_value, None, None):
            raise ValueError("Expected no markers for the corruption 'next_tokens', which hides nothing, found some.")

    def of(self, tokenizer: Tokenizer) -> NextTokens:
        """Itself: nothing is hidden, so nothing needs a marker."""
        return self

    def __call__(self, batch: TokenBatch, rng: RngLike = None) -> TokenBatch:
        """Shift what is asked for by one; nothing is drawn and nothing is hidden.

        Parameters
        ----------
        batch
            Cells.
        rng
            Not used.

        Returns
        -------
        The batch with what follows each token in ``target_genes``, ``target`` and ``target_bins``; ``hidden`` marks tokens
        that are followed by one.
        """
        following = torch.arange(1, batch.genes.shape[1] + 1).clamp(max=batch.genes.shape[1] - 1)
        followed = batch.mask[:, following] & batch.mask
        followed[:, -1:] = False
        return batch.replace(
            target_genes=batch.genes[:, following],
            target=batch.values[:, following],
            target_bins=None if batch.bins is None else batch.bins[:, following],
            hidden=followed,
        )


CORRUPTIONS |= {corruption.name: corruption for corruption in (MaskGenes, NextTokens)}
