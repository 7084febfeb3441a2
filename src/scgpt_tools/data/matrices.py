"""Read rows of any matrix that AnnData can hold, as CSR, without ever holding it dense or whole.

One function per kind of matrix; :func:`reader` picks it.  Each takes a range of rows and returns them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset

from scgpt_tools._warnings import warn_user
from scgpt_tools.tokens import kernels
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

    ``X``: NumPy array, SciPy sparse matrix, backed sparse data set, dask array, or an array on disk (HDF5, zarr).
    """
    if isinstance(X, np.ma.MaskedArray):
        X = _unmasked(X)
    if isinstance(X, sp.csc_matrix | sp.csc_array):
        # Once, and sparse: rows are found in each column by bisection.
        return partial(_rows_of_csc, _sorted_csc(X))
    if isinstance(X, np.ndarray):
        return lambda start, stop: canonical(X[start:stop])
    if sp.issparse(X):
        # Small integers that stand twice would wrap when they are added up.
        X = X if X.format == "csr" else X.astype(np.result_type(X.dtype, np.float32)).tocsr()
        _check_pointers(X.indptr, X.shape[0], min(len(X.indices), len(X.data)))
        return lambda start, stop: _checked(X[start:stop], start)
    if isinstance(X, CSRDataset):
        _check_pointers(X.group["indptr"][:], X.shape[0], min(X.group[name].shape[0] for name in ("indices", "data")))
        return lambda start, stop: _checked(X[start:stop], start)
    if isinstance(X, CSCDataset):
        warn_user(
            "The matrix on disk is stored by columns (CSC), so every block of rows reads all of it. Write it by rows "
            "(CSR) once if this is slow."
        )
        return partial(_rows_of_csc_on_disk, X)
    if hasattr(X, "compute"):
        return lambda start, stop: _computed(X[start:stop].compute(), start)
    if all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__")):
        return partial(_rows_of_dense_on_disk, X)
    raise TypeError(f"Expected a matrix in memory, on disk or of dask, found {type(X).__name__}.")


def in_memory(X: Any) -> bool:
    """Whether all values of a matrix are in memory."""
    return isinstance(X, np.ndarray) or sp.issparse(X)


def is_sound(X: Any) -> bool:
    """Whether a matrix in memory holds nothing but values that are not negative, missing or infinite.

    Returns false also for types of numbers that the compiled loop does not know, which are read to be sure.
    """
    values = X.data if sp.issparse(X) else X
    if values.dtype.kind not in "biuf" or not values.dtype.isnative or values.dtype.itemsize not in (1, 4, 8):
        return False
    rows = values if values.ndim == 1 else values.reshape(-1) if values.flags.c_contiguous else None
    parts = [rows] if rows is not None else (np.ascontiguousarray(row) for row in values)
    return all(kernels.find_bad(part, 0, part.size) < 0 for part in parts)


def take(read: ReadRows, rows: NDArray[np.int64], n_columns: int) -> sp.csr_matrix:
    """Read rows in any order.

    ``rows``: row numbers; repeats are allowed.
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


def _unmasked(X: np.ma.MaskedArray[Any, Any]) -> NDArray[Any]:
    n_masked = int(np.ma.getmaskarray(X).sum())
    if n_masked:
        raise ValueError(
            f"Expected a matrix without a mask, found one of {n_masked:,} values. Say what they are: pass "
            "`X.filled(0)` if nothing was measured there."
        )
    return np.asarray(X)


def _check_pointers(indptr: Any, n: int, n_entries: int) -> None:
    """Where rows begin, or columns of a CSC matrix: in order and within the entries that there are."""
    pointers = np.asarray(indptr)
    if len(pointers) != n + 1 or pointers[0] != 0 or (np.diff(pointers) < 0).any() or pointers[-1] > n_entries:
        raise ValueError(
            f"Expected a sparse matrix whose `indptr` has {n + 1:,} ascending numbers from 0 to at most {n_entries:,}, "
            f"the entries that there are; found {len(pointers):,} from {pointers.min(initial=0)} to "
            f"{pointers.max(initial=0)}. The matrix is damaged: make it anew from its source."
        )


def _checked(block: Any, start: int) -> sp.csr_matrix:
    """Rows whose column numbers are there; SciPy and compiled code would read beside the matrix without a word."""
    # Without what SciPy remembers of the order of the entries, which may have changed since.
    rows = sp.csr_matrix((block.data, block.indices, block.indptr), shape=block.shape)
    place = kernels.find_outside(rows.indices, 0, rows.indices.size, rows.shape[1])
    if place >= 0:
        row = start + int(np.searchsorted(rows.indptr, place, side="right")) - 1
        raise ValueError(_outside("column", rows.shape[1], rows.indices[place], f"row {row}"))
    return rows


def _outside(what: str, n: int, found: int, where: str) -> str:
    return (
        f"Expected {what} numbers from 0 to {n - 1} in a sparse matrix, found {found} in {where}. The matrix is damaged: "
        "make it anew from its source."
    )


def _computed(block: Any, start: int) -> sp.csr_matrix:
    """Rows that dask has computed."""
    if isinstance(block, np.ma.MaskedArray):
        block = _unmasked(block)
    return reader(block)(0, block.shape[0]) if sp.issparse(block) else canonical(np.asarray(block))


def _sorted_csc(X: Any) -> sp.csc_matrix:
    """A CSC matrix whose rows are there and in order in each column; looked at once, whole."""
    _check_pointers(X.indptr, X.shape[1], min(len(X.indices), len(X.data)))
    n = int(X.indptr[-1])
    place = kernels.find_outside(X.indices, 0, n, X.shape[0])
    if place >= 0:
        column = int(np.searchsorted(X.indptr, place, side="right")) - 1
        raise ValueError(_outside("row", X.shape[0], X.indices[place], f"column {column}"))
    fresh = sp.csc_matrix((X.data[:n], X.indices[:n], X.indptr), shape=X.shape)
    return fresh if kernels.ascends(fresh.indices, fresh.indptr) else fresh.sorted_indices()


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
    _check_pointers(indptr, X.shape[1], min(X.group[name].shape[0] for name in ("indices", "data")))
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
