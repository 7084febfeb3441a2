"""Quantile bins of one cell's expressed genes.

Zero stays bin 0; the other values fall into ``1 .. bins - 1`` by the cell's own quantiles, so a bin means "high for
this cell", not a number of molecules, and counts and their logarithms have the same bins.  Follows scGPT
(``preprocess.binning``), bit for bit: the edges are NumPy's linear quantiles in the type of the values, and a value
counts the edges up to it.  Where a value sits on several equal edges (half of a cell's genes have one count), ``left``
takes the last of the bins between them and ``random`` draws one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import scipy.sparse as sp

from scgpt_tools._types import Ties
from scgpt_tools._validate import check_choice, check_integer
from scgpt_tools.tokens import kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

MOST_BINS = 2**15
"""Bins must fit a 16-bit integer."""


def bin_edges(values: ArrayLike, bins: int) -> NDArray[np.float64]:
    """Edges between the bins of a cell.

    Returns ``bins - 1`` ascending edges, the smallest and the largest value among them.
    """
    return np.quantile(np.asarray(values), fractions_of(bins)).astype(np.float64)


def bin_row(
    row: ArrayLike, bins: int, *, ties: Ties = "left", uniforms: ArrayLike | None = None
) -> NDArray[np.generic]:
    """Bin one row, in plain NumPy: the rule that the compiled code repeats.

    ``row``: values of one cell.  Negative values, which no other function here takes, count as non-zero, as in scGPT;
    ``ties``: ``left``: the number of edges up to the value.  ``random``: any bin between the equal edges; ``uniforms``:
    numbers in [0, 1), one for each binned entry; needed for random ties.  Returns bins in the type of the row; all zero
    if the largest value is 0.  A row without any zero or negative entry is binned whole, else its non-zero entries are.
    """
    row = np.asarray(row)
    check_choice("ties", ties, get_args(Ties))
    if not np.all(np.isfinite(row)):
        raise ValueError("Expected finite values, found NaN or infinity.")
    result = np.zeros(row.shape, dtype=np.result_type(row.dtype, np.min_scalar_type(bins - 1)))
    if row.size == 0 or row.max() == 0:
        return result
    places = np.flatnonzero(row)
    values = row[places]
    edges = bin_edges(values, bins)
    digits = np.searchsorted(edges, values, side="right")
    if ties == "random":
        digits = _draw_between(np.searchsorted(edges, values, side="left"), digits, uniforms)
    result[places] = digits
    return result


def bin_rows(
    X: sp.csr_matrix,
    bins: int,
    *,
    ties: Ties = "left",
    token_of: NDArray[np.int64] | None = None,
    keys: NDArray[np.uint64] | None = None,
    seed: int = 0,
) -> sp.csr_matrix:
    """Bin every row of a sparse matrix, in compiled code.

    ``token_of``: token of each column, -1 for columns to leave out; ``None`` keeps every column; ``keys``: hash of each
    cell's name; needed for random ties.  Returns bins in the smallest of uint8 and int16 that holds them; columns
    without a token are empty.
    """
    check_choice("ties", ties, get_args(Ties))
    if ties == "random" and keys is None:
        raise ValueError("Expected `keys` for ties='random', found None.")
    X, fractions = canonical(X), fractions_of(bins)
    n_rows, n_columns = X.shape
    token_of = np.arange(n_columns) if token_of is None else token_of
    keys = np.zeros(n_rows, np.uint64) if keys is None else keys
    lengths = count_known(X, np.arange(n_rows), token_of)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    scratch = np.empty(max(lengths, default=0), dtype=X.data.dtype)
    columns = np.empty(starts[-1], dtype=np.int32)
    digits = np.empty(starts[-1], dtype=bin_dtype(bins))
    kernels.bin_block(
        X.data, X.indices, X.indptr.astype(np.int64), keys, np.uint64(seed), token_of, fractions, ties == "random",
        scratch, bits_of(scratch), starts, columns, digits,
    )  # fmt: skip
    return sp.csr_matrix((digits, columns, starts), shape=X.shape)


def bin_dtype(bins: int) -> np.dtype[np.uint8] | np.dtype[np.int16]:
    """Smallest integer type that holds the bins."""
    return np.dtype(np.uint8) if bins <= 256 else np.dtype(np.int16)


def fractions_of(bins: int) -> NDArray[np.float64]:
    """Share of the expressed genes below each edge."""
    if check_integer("bins", bins, least=2) > MOST_BINS:
        raise ValueError(f"Expected `bins` to be at most {MOST_BINS}, found {bins}.")
    return np.linspace(0, 1, bins - 1)


def canonical(X: sp.csr_matrix | sp.csr_array | NDArray[np.generic]) -> sp.csr_matrix:
    """A matrix as the compiled code takes it.

    Returns CSR with every column once per row and in order, 32-bit column numbers and float32 or float64 values.
    Floats keep their precision, because it decides bins; integers become floats that hold them exactly.  Nothing is
    copied if nothing changes, and the input stays as it is.
    """
    if X.dtype.kind not in "biuf":
        raise TypeError(f"Expected a matrix of numbers, found one of type {X.dtype}.")
    dtype = _float_of(X.dtype)
    if isinstance(X, sp.csr_matrix) and X.dtype == dtype and X.dtype.isnative and X.has_canonical_format:
        return X
    # SciPy takes neither half precision nor foreign byte order, which dense arrays may have.
    csr = sp.csr_matrix(X.astype(dtype, copy=False) if isinstance(X, np.ndarray) else X)
    # Entries that stand twice are added up as floats: small integers would wrap.
    csr = sp.csr_matrix((csr.data.astype(dtype, copy=False), csr.indices, csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    csr.has_canonical_format = True
    return csr


def in_usual_form(X: Any) -> Any:
    """A matrix in memory as other libraries take it, without changing more than they need.

    Returns the matrix itself, or one with the same values: dense in native byte order and at least single precision, or
    a CSR or CSC matrix with every entry once and in order.
    """
    if not sp.issparse(X):
        single = np.dtype(np.float32) if X.dtype == np.float16 else X.dtype.newbyteorder("=")
        return X if X.dtype == single else np.asarray(X, dtype=single)
    kind = sp.csc_matrix if X.format == "csc" else sp.csr_matrix
    fresh = kind((X.data, X.indices, X.indptr), shape=X.shape) if X.format in ("csr", "csc") else kind(X)
    if not fresh.has_canonical_format:
        # Small integers that stand twice would wrap when they are added up.
        fresh = fresh.astype(_float_of(X.dtype), copy=True)
        fresh.sum_duplicates()
        return fresh
    return X if isinstance(X, kind) else fresh


def count_known(X: sp.csr_matrix, rows: NDArray[np.int64], token_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of expressed genes with a token, for some rows of a canonical matrix.

    ``X``: values; see :func:`canonical`.
    """
    lengths = np.empty(rows.size, dtype=np.int64)
    bad = kernels.count_known(X.data, X.indices, X.indptr.astype(np.int64), rows, token_of, lengths)
    if bad >= 0:
        row = int(np.searchsorted(X.indptr, bad, side="right")) - 1
        if not 0 <= X.indices[bad] < token_of.size:
            raise ValueError(
                f"Expected column numbers from 0 to {token_of.size - 1}, found {X.indices[bad]} in row {row}. The matrix "
                "is damaged."
            )
        raise ValueError(
            f"Expected finite values that are not negative, found {X.data[bad]} in row {row}, column {X.indices[bad]}."
        )
    return lengths


def bits_of(values: NDArray[np.floating]) -> NDArray[np.unsignedinteger]:
    """The same memory as unsigned integers, which sort as positive floats do."""
    return values.view(np.uint32 if values.dtype == np.float32 else np.uint64)


def _draw_between(lowest: NDArray[np.int64], left: NDArray[np.int64], uniforms: ArrayLike | None) -> NDArray[np.int64]:
    """Uniform on ``lowest + 1 .. left``, or ``left`` where no two edges are equal."""
    if uniforms is None or np.shape(uniforms) != left.shape:
        found = "None" if uniforms is None else f"shape {np.shape(uniforms)}"
        raise ValueError(f"Expected `uniforms` to hold {left.size} numbers for ties='random', found {found}.")
    return np.ceil(np.asarray(uniforms) * (lowest - left) + left).astype(np.int64)


def _float_of(dtype: np.dtype[np.generic]) -> type[np.floating]:
    small: Sequence[str] = ("f2", "f4", "b1", "i1", "u1", "i2", "u2")
    return np.float32 if dtype.str[1:] in small else np.float64
