"""Perturbed genes by name as columns and tokens of a screen.

The network reads a control cell and the flags.  It never sees the perturbed cell, and a perturbed gene is never left
out: a condition that the network cannot be conditioned on is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgpt_tools.tokens.perturbations import PERTURBED
from scgpt_tools.tokens.screen import PerturbedGenes, screen_batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.perturbations import GeneSet
    from scgpt_tools.tokens.tokenizer import Tokenizer

_SHOWN = 20


class Unmapped(NamedTuple):
    """Perturbed genes that the network cannot be conditioned on."""

    without_column: GeneSet
    """They have a token."""
    without_token: GeneSet

    @property
    def genes(self) -> GeneSet:
        """All of them."""
        return (*self.without_column, *self.without_token)

    def __str__(self) -> str:
        parts = [("column", self.without_column), ("token", self.without_token)]
        return " and ".join(f"no {what} for {_listing(genes)}" for what, genes in parts if genes)


@dataclass(frozen=True, eq=False)
class ScreenTokens:
    """The tokenizer of a model of perturbations with the genes of a screen by name."""

    tokenizer: Tokenizer
    features: FeatureTable
    """Which columns are which tokens."""
    column: Mapping[str, int]
    """Column of each gene that takes part."""
    flag: int = PERTURBED
    """What marks perturbed genes."""

    @classmethod
    def match(
        cls, features: FeatureTable, names: Sequence[str | None], tokenizer: Tokenizer, *, flag: int = PERTURBED
    ) -> ScreenTokens:
        """Find the columns of genes by their names, as conditions spell them."""
        if tokenizer.config.cls:
            raise ValueError("Expected a tokenizer without a cell token for perturbations, found cls=True.")
        if tokenizer.config.depth:
            raise ValueError("Expected a tokenizer without tokens of depth for perturbations, found depth=True.")
        column: dict[str, int] = {}
        for number in np.sort(tokenizer.completed(features).columns).tolist():
            if (name := names[number]) is not None:
                column.setdefault(name, number)
        return cls(tokenizer, features, column, flag)

    @property
    def columns(self) -> NDArray[np.int64]:
        """Columns that take part, ascending."""
        return np.sort(self.tokenizer.completed(self.features).columns)

    def unmapped(self, genes: Iterable[str]) -> Unmapped:
        """Which perturbed genes have neither a column nor a token that would take its place."""
        absent = [gene for gene in dict.fromkeys(genes) if gene not in self.column]
        known = dict(zip(absent, self.tokenizer.vocabulary.ids(absent) >= 0, strict=True))
        may_add = self.tokenizer.config.unmeasured == "token"
        without_column = [] if may_add else [gene for gene in absent if known[gene]]
        return Unmapped(tuple(without_column), tuple(gene for gene in absent if not known[gene]))

    def check(self, genes: Iterable[str], *, hint: str = "") -> None:
        """Refuse perturbed genes that the network would not be conditioned on; ``hint`` ends the message."""
        unmapped = self.unmapped(genes)
        if not unmapped.genes:
            return
        advice = (
            " Pass unmeasured='token' to add the tokens of genes without a column." if unmapped.without_column else ""
        )
        spelt = {token.upper(): token for token in self.tokenizer.vocabulary.tokens}
        if near := [spelt[gene.upper()] for gene in unmapped.without_token if gene.upper() in spelt]:
            advice += f" Did you mean {', '.join(near[:_SHOWN])}?"
        raise ValueError(
            f"Expected a column and a token for every perturbed gene, found {unmapped}. The model would not see these "
            f"perturbations.{advice}{hint}"
        )

    def batch(
        self,
        inputs: sp.csr_matrix,
        perturbed: Sequence[GeneSet],
        keys: NDArray[np.uint64],
        *,
        seed: int,
        targets: sp.csr_matrix | None = None,
    ) -> tuple[TokenBatch, NDArray[np.int64]]:
        """A minibatch of control cells (B, columns) and the genes to perturb in each.

        See :func:`~scgpt_tools.tokens.screen.screen_batch`.
        """
        self.check(gene for genes in perturbed for gene in genes)
        found = [
            PerturbedGenes(
                [self.column[gene] for gene in genes if gene in self.column],
                self.tokenizer.vocabulary.ids([gene for gene in genes if gene not in self.column]).tolist(),
            )
            for genes in perturbed
        ]
        return screen_batch(
            self.tokenizer, inputs, self.features, keys, found, flag=self.flag, seed=seed, targets=targets
        )


def _listing(genes: GeneSet) -> str:
    more = f" and {len(genes) - _SHOWN} more" if len(genes) > _SHOWN else ""
    return ", ".join(genes[:_SHOWN]) + more
