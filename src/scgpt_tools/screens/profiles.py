"""Mean expression profiles of groups of cells, without ever making a matrix dense."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scgpt_tools.data.rows import RowSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.tokens.perturbations import Labels


@dataclass(frozen=True)
class Profiles:
    """Mean profile of each of R groups over G genes."""

    names: tuple[str, ...]
    means: NDArray[np.float64]
    """(R, G)"""
    n_cells: NDArray[np.int64]
    """(R,)"""

    def of(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Profiles of some groups, in the order asked for."""
        row = {name: i for i, name in enumerate(self.names)}
        return self.means[[row[name] for name in names]]


def mean_profiles(cells: RowSource | Any, labels: Labels, *, names: Sequence[str] | None = None) -> Profiles:
    """Average rows by label.

    ``cells`` are N cells by G genes: a :class:`~scgpt_tools.data.rows.RowSource`, read block by block, or a matrix in memory.
    ``names`` are the groups to average, in this order; ``None`` takes all, sorted.
    """
    groups = tuple(sorted(set(labels)) if names is None else names)
    codes = pd.Index(groups, dtype=object).get_indexer(np.asarray(labels, dtype=object))
    n_cells = np.bincount(codes[codes >= 0], minlength=len(groups))
    if empty := [name for name, n in zip(groups, n_cells, strict=True) if n == 0]:
        raise ValueError(f"Expected cells of every group, found none of {empty[0]!r}.")
    sums = np.zeros((len(groups), cells.n_columns if isinstance(cells, RowSource) else cells.shape[1]))
    for start, block in _blocks(cells):
        here = codes[start : start + block.shape[0]]
        rows = np.flatnonzero(here >= 0)
        member = sparse.csr_matrix((np.ones(rows.size), (here[rows], rows)), shape=(len(groups), block.shape[0]))
        total = member @ block
        sums += total.toarray() if sparse.issparse(total) else total
    return Profiles(groups, sums / n_cells[:, None], n_cells)


def split_halves(labels: Labels, names: Labels, *, seed: int = 0) -> NDArray[np.bool_]:
    """Divide the cells of every group in two equal halves by a hash of seed and name; True for the first half.

    Half of the true cells predict the other half; that is as well as a model can do with this many cells.  The first half is
    the larger by one where a group is odd.
    """
    digests = np.array([sha256(f"{seed}\nhalf\n{name}".encode()).hexdigest() for name in names])
    ranks = pd.Series(digests).groupby(np.asarray(labels, dtype=str)).rank(method="first").to_numpy()
    sizes = pd.Series(labels).groupby(np.asarray(labels, dtype=str)).transform("size").to_numpy()
    return ranks <= np.ceil(sizes / 2)


def _blocks(cells: RowSource | Any) -> Iterator[tuple[int, Any]]:
    if isinstance(cells, RowSource):
        for block in cells.blocks():
            yield int(block.index[0]), block.X
    else:
        yield 0, cells.tocsr() if sparse.issparse(cells) else np.asarray(cells)
