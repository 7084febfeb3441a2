"""Genes of a screen as the tokens of a generator: which take part, and which of them are flagged as perturbed.

The network reads a control cell and the flags.  It is never shown the perturbed cell, and a perturbed gene is never
left out: a condition that the network cannot be told of is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch

from scgpt_tools._validate import check_choice, check_integer
from scgpt_tools.tokens import kernels
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.orders import draws
from scgpt_tools.tokens.perturbations import PERTURBED, UNTOUCHED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.perturbations import Genes
    from scgpt_tools.vocabulary import Vocabulary

Include: TypeAlias = Literal["all", "batch-wise"]
"""Every gene, or those that some control of the minibatch expresses."""
Unknown: TypeAlias = Literal["drop", "pad"]
"""Leave columns without a token out, or let them take part under the token of padding, as scGPT does."""
Unmeasured: TypeAlias = Literal["error", "token"]
"""Refuse perturbed genes without a column, or add their token to the cells they are perturbed in."""
GeneSampling: TypeAlias = Literal["keep_perturbed", "original"]
"""Draw genes of each cell and keep perturbed ones, or one draw a minibatch that may lose them, as scGPT does."""

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class GeneChoice:
    """Which genes of a cell become tokens."""

    include: Include = "all"
    unknown: Unknown = "drop"
    unmeasured: Unmeasured = "error"
    length: int | None = None
    """Most measured genes of a cell; ``None`` keeps all."""
    sampling: GeneSampling = "keep_perturbed"
    """What to keep where there are more."""
    flag: int = PERTURBED
    """What marks perturbed genes."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), get_args(choices))
        if self.length is not None:
            check_integer("length", self.length)


_CHOICES = {"include": Include, "unknown": Unknown, "unmeasured": Unmeasured, "sampling": GeneSampling}


class Untold(NamedTuple):
    """Perturbed genes that the network cannot be told of."""

    without_column: Genes
    """They have a token."""
    without_token: Genes

    @property
    def genes(self) -> Genes:
        """All of them."""
        return (*self.without_column, *self.without_token)

    def __str__(self) -> str:
        parts = [("column", self.without_column), ("token", self.without_token)]
        return " and ".join(f"no {what} for {_listing(genes)}" for what, genes in parts if genes)


@dataclass(frozen=True, eq=False)
class ScreenTokens:
    """Columns of a screen that become tokens, in the order of the matrix."""

    columns: NDArray[np.int64]
    """(T,) columns of the matrix."""
    ids: NDArray[np.int64]
    """(T,) token of each."""
    place: Mapping[str, int]
    """Name of a gene to its place among the T."""
    vocabulary: Vocabulary
    choice: GeneChoice

    @classmethod
    def match(
        cls, features: FeatureTable, names: Sequence[str | None], vocabulary: Vocabulary, choice: GeneChoice
    ) -> ScreenTokens:
        """Take the columns that have a token, or all.

        Parameters
        ----------
        features
            Which columns are which tokens.
        names
            Name of every column, as conditions spell it.
        vocabulary
            Of the model.
        choice
            What to do with other columns.

        Returns
        -------
        The table.
        """
        columns, ids = np.asarray(features.columns), np.asarray(features.ids)
        if choice.unknown == "pad":
            every = np.full(features.n_columns, vocabulary.pad_id, dtype=np.int64)
            every[columns] = ids
            columns, ids = np.arange(features.n_columns), every
        order = np.argsort(columns, kind="stable")
        columns, ids = columns[order], ids[order]
        place: dict[str, int] = {}
        for number, column in enumerate(columns):
            if (name := names[column]) is not None:
                place.setdefault(name, number)
        return cls(columns, ids, place, vocabulary, choice)

    def __len__(self) -> int:
        return len(self.columns)

    def untold(self, genes: Iterable[str]) -> Untold:
        """Which perturbed genes have no place among the tokens.

        Parameters
        ----------
        genes
            Perturbed genes.

        Returns
        -------
        Those that a network would not be told of.
        """
        absent = [gene for gene in dict.fromkeys(genes) if gene not in self.place]
        known = dict(zip(absent, self.vocabulary.ids(absent) >= 0, strict=True))
        without_column = [] if self.choice.unmeasured == "token" else [gene for gene in absent if known[gene]]
        return Untold(tuple(without_column), tuple(gene for gene in absent if not known[gene]))

    def check(self, genes: Iterable[str], *, hint: str = "") -> None:
        """Refuse perturbed genes that the network would not be told of.

        Parameters
        ----------
        genes
            Perturbed genes.
        hint
            Sentence to end the message with.

        Raises
        ------
        ValueError
            If a gene has no column, or no token; all are named.
        """
        untold = self.untold(genes)
        if not untold.genes:
            return
        advice = (
            " Pass unmeasured='token' to add the tokens of genes without a column." if untold.without_column else ""
        )
        raise ValueError(
            f"Expected a column and a token for every perturbed gene, found {untold}. The model would not be told of "
            f"these perturbations.{advice}{hint}"
        )

    def batch(
        self,
        inputs: sp.csr_matrix,
        perturbed: Sequence[Genes],
        keys: NDArray[np.uint64],
        *,
        seed: int,
        targets: sp.csr_matrix | None = None,
    ) -> tuple[TokenBatch, NDArray[np.int64]]:
        """Put control cells and flags into a minibatch.

        Parameters
        ----------
        inputs
            (B, columns) values of control cells.
        perturbed
            Genes that each cell is told to be perturbed in.
        keys
            (B,) hash of the cell that each row stands for, which draws of genes start from.
        seed
            Seed of those draws.
        targets
            (B, columns) values of the perturbed cells, for training; the network does not see them.

        Returns
        -------
        The batch and the column of each of its measured tokens (B, L).  Tokens of genes that are not measured follow
        those; their value is 0, before and after.
        """
        measured = [[self.place[gene] for gene in genes if gene in self.place] for genes in perturbed]
        flagged = np.zeros((len(perturbed), len(self)), dtype=bool)
        for row, own_places in enumerate(measured):
            flagged[row, own_places] = True
        values = inputs[:, self.columns].toarray().astype(np.float32, copy=False)
        places = self._places(values, flagged, keys, seed)
        extra, there = self._extra(perturbed)
        padding = np.zeros(extra.shape, dtype=np.float32)

        def taken(matrix: NDArray[np.float32]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([np.take_along_axis(matrix, places, axis=1), padding], axis=1))

        own = np.take_along_axis(flagged, places, axis=1)
        batch = TokenBatch(
            genes=torch.from_numpy(np.concatenate([self.ids[places], extra], axis=1)),
            values=taken(values),
            mask=torch.from_numpy(np.concatenate([np.ones(places.shape, dtype=bool), there], axis=1)),
            perturbed=torch.from_numpy(
                np.where(np.concatenate([own, there], axis=1), self.choice.flag, UNTOUCHED)
            ).long(),
            target=None
            if targets is None
            else taken(targets[:, self.columns].toarray().astype(np.float32, copy=False)),
        )
        return batch, self.columns[places]

    def _places(
        self, values: NDArray[np.float32], flagged: NDArray[np.bool_], keys: NDArray[np.uint64], seed: int
    ) -> NDArray[np.int64]:
        """(B, L) places of the tokens that each cell shows."""
        choice, n_cells = self.choice, len(values)
        taken = np.arange(len(self))
        if choice.include == "batch-wise":
            expressed = values.any(axis=0)
            taken = np.flatnonzero(expressed if choice.sampling == "original" else expressed | flagged.any(axis=0))
        if choice.length is None or taken.size <= choice.length:
            return np.tile(taken, (n_cells, 1))
        if choice.sampling == "original":
            # scGPT permutes the number of candidates and takes the result for genes, so in batch-wise mode these are
            # the first genes of the table and not the candidates.
            chosen = np.random.default_rng([seed, *map(int, keys)]).permutation(taken.size)[: choice.length]
            return np.tile(chosen, (n_cells, 1))
        return self._drawn(taken, flagged[:, taken], keys, seed, choice.length)

    def _drawn(
        self,
        taken: NDArray[np.int64],
        flagged: NDArray[np.bool_],
        keys: NDArray[np.uint64],
        seed: int,
        room: int,
    ) -> NDArray[np.int64]:
        most = int(flagged.sum(axis=1).max(initial=0))
        if most > room:
            raise ValueError(f"Expected room for {most} perturbed genes, found length={room}. Raise it.")
        lots = draws(seed, keys[:, None], self.ids[taken][None, :], int(kernels.SAMPLE))
        # The smallest numbers stay.  Columns that share a token would share its lot, so ties fall to the first.
        lots = np.where(flagged, np.uint64(0), lots)
        return taken[np.sort(np.argsort(lots, axis=1, kind="stable")[:, :room], axis=1)]

    def _extra(self, perturbed: Sequence[Genes]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(B, E) tokens of perturbed genes without a column, and which of them are real."""
        rows = [[gene for gene in genes if gene not in self.place] for genes in perturbed]
        self.check(gene for row in rows for gene in row)
        shape = (len(rows), max(map(len, rows), default=0))
        extra = np.full(shape, self.vocabulary.pad_id, dtype=np.int64)
        there = np.zeros(shape, dtype=bool)
        for number, row in enumerate(rows):
            extra[number, : len(row)] = self.vocabulary.ids(row)
            there[number, : len(row)] = True
        return extra, there


def _listing(genes: Genes) -> str:
    more = f" and {len(genes) - _SHOWN} more" if len(genes) > _SHOWN else ""
    return ", ".join(genes[:_SHOWN]) + more
