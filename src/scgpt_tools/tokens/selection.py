"""Which genes a minibatch of training reads, where it does not read all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from scgpt_tools._validate import as_generator, check_choice, check_integer
from scgpt_tools.config import settle_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.features import FeatureTable

Selection: TypeAlias = Literal["most_expressed", "random_expressed"]


@dataclass(frozen=True, kw_only=True)
class MinibatchGenes:
    """Let the cells of a minibatch of training show some genes only; see :func:`select_genes`."""

    n_genes: int
    """Most genes of a minibatch."""
    how: Selection = "most_expressed"
    """Those of the highest sums over the minibatch, or as many of the expressed ones at random."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_integer("n_genes", self.n_genes)


def select_genes(
    X: sp.csr_matrix, features: FeatureTable, n_genes: int, *, how: Selection = "most_expressed", rng: RngLike = 0
) -> FeatureTable:
    """Choose among the genes that the cells of a minibatch express.

    Parameters
    ----------
    X
        Values of the cells.
    features
        Which columns are which tokens.
    n_genes
        How many genes to keep at most.
    how
        Those of the highest sums over the cells, of equal ones the first columns; or as many drawn at random.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the draw.

    Returns
    -------
    The features that are kept, in the order of the columns.  A cell then depends on its neighbours, so this is for training
    only.
    """
    check_integer("n_genes", n_genes)
    check_choice("how", how, get_args(Selection))
    known = X.tocsr()[:, features.columns]
    return kept(features, _choose(_sums(known), n_genes, how, rng))


def tokens_of_minibatch(
    parts: Sequence[tuple[sp.csr_matrix, FeatureTable]], n_tokens: int, choice: MinibatchGenes, rng: RngLike
) -> NDArray[np.bool_]:
    """Choose genes of a minibatch whose cells come from several tables.

    ``parts``: values of the cells of each table and its features.  Returns (tokens,) True for those to read.
    """
    sums = np.zeros(n_tokens)
    for X, features in parts:
        np.add.at(sums, features.ids, _sums(X.tocsr()[:, features.columns]))
    chosen = np.zeros(n_tokens, dtype=bool)
    chosen[_choose(sums, choice.n_genes, choice.how, rng)] = True
    return chosen


def kept(features: FeatureTable, places: NDArray[np.int64] | NDArray[np.bool_]) -> FeatureTable:
    """Some of the features, in the order of the columns."""
    return replace(
        features,
        columns=features.columns[places],
        ids=features.ids[places],
        names=features.names[places],
        modality=None if features.modality is None else features.modality[places],
    )


def _sums(X: sp.csr_matrix) -> NDArray[np.float64]:
    return np.asarray(X.sum(axis=0, dtype=np.float64)).ravel()


def _choose(sums: NDArray[np.float64], n_genes: int, how: Selection, rng: RngLike) -> NDArray[np.int64]:
    """Places of the chosen genes among all, ascending; those without a sum are expressed by nobody."""
    expressed = np.flatnonzero(sums > 0)
    if how == "most_expressed":
        return np.sort(expressed[np.argsort(-sums[expressed], kind="stable")[:n_genes]])
    return np.sort(as_generator(rng).permutation(expressed)[:n_genes])
