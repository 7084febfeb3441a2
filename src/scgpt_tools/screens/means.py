"""Means of cells in place of single ones, for models of perturbations.

What single cells of one condition differ by cannot be known from a control.  Their mean, and that of as many controls,
has most of the effect and little of the noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgpt_tools.tokens.orders import draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Sets the draw of partners apart from other draws of a cell.
_PARTNER = 102


class Partners:
    """Cells to average each cell with: others of its group, drawn by seed and name, with replacement.

    ``groups`` (N,) number of the group of each cell, negative for cells that are nobody's partner; ``keys`` (N,) hash of the
    name of each cell.
    """

    def __init__(self, groups: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        self.groups, self.keys = groups, keys
        # By name within a group, so that the order of the table does not matter.
        self._members = np.lexsort((keys, groups))
        self._starts = np.searchsorted(groups[self._members], np.arange(groups.max(initial=-1) + 2))

    def of(self, cells: NDArray[np.int64], n: int, *, seed: int) -> NDArray[np.int64]:
        """(b, n) cells whose mean stands for each of some cells (b,), itself the first."""
        first, sizes = self._starts[self.groups[cells]], np.diff(self._starts)[self.groups[cells]]
        lots = draws(seed, self.keys[cells][:, None], np.arange(n - 1), _PARTNER)
        others = self._members[first[:, None] + (lots % sizes[:, None].astype(np.uint64)).astype(np.int64)]
        return np.column_stack([cells, others])


def in_groups(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """(groups, n) some rows in groups of ``n``, or all in one if they are fewer.

    Where they do not divide, neighbouring groups share some; none has a row twice.
    """
    n = min(n, len(rows))
    groups = -(-len(rows) // n)
    starts = np.arange(groups) * len(rows) // groups
    return rows[(starts[:, None] + np.arange(n)) % len(rows)]


def mean_rows(X: sp.csr_matrix, places: NDArray[np.int64]) -> sp.csr_matrix:
    """Means of rows of a matrix, ``places`` (b, n) for n rows each."""
    cells, n = places.shape
    if n == 1:
        return X[places[:, 0]]
    weights = np.full(places.size, 1 / n, dtype=X.dtype)
    starts = np.arange(0, places.size + 1, n)
    means = sp.csr_matrix((weights, places.ravel(), starts), shape=(cells, X.shape[0])) @ X
    means.sort_indices()
    return means
