"""Read rows of any matrix that AnnData can hold, as CSR, without ever holding it dense or whole.

One function per kind of matrix; :func:`reader` picks it.  Each takes a range of rows and returns them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset

from scgpt_tools.tokens.kernels import compiled
from scgpt_tools.tokens.values import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    ReadRows = Callable[[int, int], sp.csr_matrix]

# Bounds on what is in memory besides the rows asked for: a dense piece, and a run of columns of a file in CSC.
_DENSE_BYTES = 64 * 2**20
_COLUMN_ENTRIES = 2**24
# Rows apart up to this far are read in one go and dropped, which is cheaper on disk than going there twice.
_GAP = 64


def reader(X: Any) -> ReadRows:
    """Find out how to read rows of a matrix.

    Parameters
    ----------
    X
        NumPy array, SciPy sparse matrix, backed sparse data set, dask array, or an array on disk (HDF5, zarr).

    Returns
    -------
    Function of the first row and the row after the last.

    Raises
    ------
    TypeError
        If it is none of those.
    """
    if isinstance(X, sp.csc_matrix | sp.csc_array):
        # Once, and sparse: rows are found in each column by bisection.
        return partial(_rows_of_csc, X if X.has_sorted_indices else X.sorted_indices())
    if isinstance(X, np.ndarray):
        return lambda start, stop: canonical(X[start:stop])
    if sp.issparse(X):
        X = X.tocsr()
    if sp.issparse(X) or isinstance(X, CSRDataset):
        return lambda start, stop: sp.csr_matrix(X[start:stop])
    if isinstance(X, CSCDataset):
        warn(
            "The matrix on disk is stored by columns (CSC), so every block of rows reads all of it. Write it by rows "
            "(CSR) once if this is slow.",
            stacklevel=3,
        )
        return partial(_rows_of_csc_on_disk, X)
    if hasattr(X, "compute"):
        return lambda start, stop: canonical(X[start:stop].compute())
    if all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__")):
        return partial(_rows_of_dense_on_disk, X)
    raise TypeError(f"Expected a matrix in memory, on disk or of dask, found {type(X).__name__}.")


def take(read: ReadRows, rows: NDArray[np.int64], n_columns: int) -> sp.csr_matrix:
    """Read rows in any order.

    Parameters
    ----------
    read
        What :func:`reader` returned.
    rows
        Row numbers; repeats are allowed.
    n_columns
        Width of the matrix.

    Returns
    -------
    One row for each number.
    """
    wanted, back = np.unique(rows, return_inverse=True)
    parts = [_read_run(read, run) for run in _runs(wanted)]
    if not parts:
        return sp.csr_matrix((0, n_columns), dtype=np.float32)
    stacked = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")
    in_order = np.array_equal(back, np.arange(rows.size))
    return stacked if in_order else stacked[back]


def _read_run(read: ReadRows, run: NDArray[np.int64]) -> sp.csr_matrix:
    first, last = int(run[0]), int(run[-1])
    part = read(first, last + 1)
    return part if part.shape[0] == run.size else part[run - first]


def _runs(ascending: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Pieces of a list of rows that are worth one read each."""
    breaks = np.flatnonzero(np.diff(ascending) > _GAP) + 1
    return (run for run in np.split(ascending, breaks) if run.size)


def _rows_of_csc(X: sp.csc_matrix, start: int, stop: int) -> sp.csr_matrix:
    """Cost: two bisections per column and the entries of the rows, instead of a look at every entry."""
    indptr = X.indptr.astype(np.int64, copy=False)
    firsts, counts = np.empty(X.shape[1], np.int64), np.zeros(stop - start, np.int64)
    _find_rows(X.indices, indptr, start, stop, firsts, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns, sources = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.int64)
    _fill_rows(X.indices, indptr, start, stop, firsts, starts[:-1].copy(), columns, sources)
    return sp.csr_matrix((X.data[sources], columns, starts), shape=(stop - start, X.shape[1]))


@compiled
def _find_rows(indices, indptr, start, stop, firsts, counts):
    """Where rows ``start`` to ``stop`` begin in each column of a CSC matrix, and how many entries each row has."""
    for column in range(indptr.size - 1):
        low, high = indptr[column], indptr[column + 1]
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < start:
                low = middle + 1
            else:
                high = middle
        firsts[column] = low
        while low < indptr[column + 1] and indices[low] < stop:
            counts[indices[low] - start] += 1
            low += 1


@compiled
def _fill_rows(indices, indptr, start, stop, firsts, places, columns, sources):
    """Column and source of each entry of those rows; ``places`` is where each row begins, and moves to its end."""
    for column in range(indptr.size - 1):
        j = firsts[column]
        while j < indptr[column + 1] and indices[j] < stop:
            place = places[indices[j] - start]
            columns[place], sources[place] = column, j
            places[indices[j] - start] += 1
            j += 1


def _rows_of_csc_on_disk(X: CSCDataset, start: int, stop: int) -> sp.csr_matrix:
    indptr = np.asarray(X.group["indptr"][:], dtype=np.int64)
    runs, first = [], 0
    while first < X.shape[1]:
        last = int(np.searchsorted(indptr, indptr[first] + _COLUMN_ENTRIES, side="right")) - 1
        last = min(max(last, first + 1), X.shape[1])
        runs.append(reader(X[:, first:last])(start, stop))
        first = last
    return sp.hstack(runs, format="csr") if runs else sp.csr_matrix((stop - start, 0), dtype=X.dtype)


def _rows_of_dense_on_disk(X: Any, start: int, stop: int) -> sp.csr_matrix:
    step = max(1, _DENSE_BYTES // max(1, X.shape[1] * X.dtype.itemsize))
    parts = [canonical(np.asarray(X[row : min(row + step, stop)])) for row in range(start, stop, step)]
    return sp.vstack(parts, format="csr") if parts else sp.csr_matrix((0, X.shape[1]), dtype=X.dtype)
