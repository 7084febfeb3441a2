"""Cells as rows of one matrix, whatever kind of table they come from.

The table is only read.  At most a block of rows is in memory besides what the table holds there itself, values keep
their precision, and no negative, missing or infinite value gets past this file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from scgpt_tools._lookup import lookup
from scgpt_tools._validate import check_finite, check_integer, check_key
from scgpt_tools.data.matrices import in_memory, is_sound, reader, take
from scgpt_tools.tokens import kernels
from scgpt_tools.tokens.units import describe_values
from scgpt_tools.tokens.values import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools.data.matrices import ReadRows
    from scgpt_tools.tokens.matching import Totals
    from scgpt_tools.tokens.units import Units

# Cells that show in which unit a matrix is: some runs of neighbours from all over the table.
_RUNS, _RUN = 8, 32


@dataclass(frozen=True, eq=False)
class RawBlock:
    """Some rows of a table."""

    X: sp.csr_matrix
    """(rows, columns) values, float32 or float64, checked."""
    index: NDArray[np.int64]
    """(rows,) number of each row in the table."""


class Rows(Protocol):
    """What a walk through cells needs of a table; :class:`RowSource` and ``ModalityRows`` are such."""

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""

    @property
    def keys(self) -> NDArray[np.uint64]:
        """(cells,) hash of each cell's name."""

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the cells."""

    @property
    def n_columns(self) -> int:
        """Number of columns of the matrix."""

    @property
    def in_memory(self) -> bool:
        """Whether all values are in memory, so that looking at them costs little."""

    def __len__(self) -> int: ...

    def blocks(self, rows: int = 4096, *, columns: ArrayLike | None = None) -> Iterator[RawBlock]:
        """Read the table from its first row to its last."""

    def take(self, indices: ArrayLike) -> sp.csr_matrix:
        """Read some rows."""

    def check_memory(self) -> None:
        """Refuse bad values of what is in memory."""


class RowSource:
    """Rows of an AnnData, or of one modality of a MuData.

    Takes matrices in memory (dense, CSR, CSC), views, HDF5 and zarr files that are read on demand (dense or sparse),
    and dask arrays.  A file in CSC works but is read once per block.

    Parameters
    ----------
    data
        The table.  Never changed.
    layer
        Key of ``layers``; ``None`` takes ``X``.
    modality
        Which modality; needed for MuData only.

    Raises
    ------
    KeyError
        If the layer or the modality is absent; the message lists what is there.
    ValueError
        If there is no ``X``, or no modality is named.
    """

    def __init__(self, data: AnnData | MuData, *, layer: str | None = None, modality: str | None = None) -> None:
        self.adata = table_of(data, modality)
        """The AnnData that the rows come from."""
        self.layer, self.modality = layer, modality
        base, self._rows, self._columns = _base_of(self.adata)
        if layer is not None:
            check_key(self.adata.layers, layer, "layers")
        X = base.X if layer is None else base.layers[layer]
        if X is None:
            layers = [name for name in self.adata.layers if name is not None]
            raise ValueError(f"Expected a matrix in `X`, found none. Pass `layer=` one of {layers}.")
        self._read = reader(X)
        self.in_memory = in_memory(X)
        """Whether the values are in memory rather than on disk or yet to be computed."""
        self._whole = X if self.in_memory and self._rows is None and self._columns is None else None
        self.bins: int | None = None
        """Number of bins, zero included, where the values have to be bins; any other value is refused then."""
        self._base_width: int = X.shape[1]

    @classmethod
    def from_reader(cls, table: AnnData, read: ReadRows) -> RowSource:
        """Rows that a function reads, of a table without a matrix.

        ``read``: gives the rows from one number to before another as CSR, with a column for each gene of the table.
        """
        self = cls.__new__(cls)
        self.adata, self.layer, self.modality = table, None, None
        self._rows = self._columns = self._whole = self.bins = None
        self._read, self._base_width = read, table.n_vars
        self.in_memory = False
        return self

    def __len__(self) -> int:
        return self.adata.n_obs

    @property
    def n_columns(self) -> int:
        """Number of genes."""
        return self.adata.n_vars

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""
        return self.adata.obs_names

    @property
    def obs(self) -> pd.DataFrame:
        """Columns of the cells."""
        return self.adata.obs

    @property
    def var(self) -> pd.DataFrame:
        """Columns of the genes."""
        return self.adata.var

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(cells,) hash of each cell's name, which all its random draws start from."""
        return row_keys(self.names)

    def blocks(self, rows: int = 4096, *, columns: ArrayLike | None = None) -> Iterator[RawBlock]:
        """Read the table from its first row to its last.

        Parameters
        ----------
        rows
            Rows of a block.
        columns
            Columns to keep; ``None`` keeps all.

        Yields
        ------
        Blocks of checked rows.

        Raises
        ------
        ValueError
            If a value is negative, missing or infinite; the message names its cell and gene.
        """
        check_integer("rows", rows)
        for start in range(0, len(self), rows):
            index = np.arange(start, min(start + rows, len(self)))
            X = self.take(index)
            yield RawBlock(X if columns is None else canonical(X[:, np.asarray(columns)]), index)

    def take(self, indices: ArrayLike) -> sp.csr_matrix:
        """Read some rows; fastest where they are neighbours.

        Parameters
        ----------
        indices
            Row numbers, in any order.

        Returns
        -------
        (rows, columns) checked values in float32 or float64, with each column once per row and in order.

        Raises
        ------
        ValueError
            If a value is negative, missing or infinite; the message names its cell and gene.
        """
        index = np.asarray(indices, dtype=np.int64)
        X = take(self._read, index if self._rows is None else self._rows[index], self._base_width)
        X = canonical(X if self._columns is None else X[:, self._columns])
        self._refuse_bad(X, index)
        return X

    def check(self) -> None:
        """Read the whole table once and refuse what :meth:`blocks` refuses, before any work begins."""
        for _ in self.blocks():
            pass

    def check_memory(self) -> None:
        """Do that for a matrix in memory, which costs next to nothing; a file is looked at block by block instead."""
        if not self.in_memory or (self.bins is None and self._whole is not None and is_sound(self._whole)):
            return
        self.check()

    def totals(self, columns: ArrayLike) -> NDArray[np.float64]:
        """Sums of some columns over all cells, read block by block.

        Parameters
        ----------
        columns
            Column numbers.

        Returns
        -------
        One number per column.
        """
        chosen = np.asarray(columns, dtype=np.int64)
        total = np.zeros(chosen.size)
        for block in self.blocks(columns=chosen):
            total += np.asarray(block.X.sum(axis=0, dtype=np.float64)).ravel()
        return total

    @cached_property
    def units(self) -> Units:
        """The unit that the values seem to be in, by a look at :meth:`sample`."""
        return describe_values(self.sample())

    def sample(self) -> sp.csr_matrix:
        """A few hundred cells from all over the table, to see what kind of values it holds.

        Returns
        -------
        (rows, columns) checked values.
        """
        starts = np.linspace(0, max(len(self) - _RUN, 0), _RUNS).astype(np.int64)
        rows = np.unique(starts[:, None] + np.arange(_RUN))
        return self.take(rows[rows < len(self)])

    def _refuse_bad(self, X: sp.csr_matrix, index: NDArray[np.int64]) -> None:
        bad = kernels.find_bad(X.data, 0, X.data.size)
        if bad < 0 and self.bins is not None:
            strange = (X.data >= self.bins) | (X.data != np.rint(X.data))
            bad = int(strange.argmax()) if strange.any() else -1
        if bad < 0:
            return
        row = int(index[np.searchsorted(X.indptr, bad, side="right") - 1])
        place = "`X`" if self.layer is None else f"layer {self.layer!r}"
        place = place if self.modality is None else f"{place} of modality {self.modality!r}"
        found = (
            f"found {X.data[bad]} in cell {str(self.names[row])!r}, gene {str(self.adata.var_names[X.indices[bad]])!r}."
        )
        if self.bins is not None:
            raise ValueError(
                f"Expected bins, whole numbers from 0 to {self.bins - 1}, in {place}, {found} Run `sct.pp.tokenize`."
            )
        raise ValueError(
            f"Expected finite values that are not negative in {place}, {found} Use counts or log1p values, not scaled or "
            f"centred ones{self._better_place()}."
        )

    def _better_place(self) -> str:
        """Where the same table has values that can be read, as the end of a sentence."""
        for name in self.adata.layers:
            if name is None or name == self.layer:
                continue
            with suppress(ValueError, TypeError):
                if RowSource(self.adata, layer=name).units.unit in ("counts", "log1p", "normalised"):
                    argument = repr(name) if self.modality is None else f"{{{self.modality!r}: {name!r}}}"
                    return f": pass layer={argument}"
        return "" if getattr(self.adata, "raw", None) is None else ", which `adata.raw.to_adata()` may have"


def table_of(data: AnnData | MuData, modality: str | None = None) -> AnnData:
    """The AnnData that a task works on.

    ``modality``: key of ``mod``; needed for MuData only.
    """
    if not hasattr(data, "obs_names"):
        raise TypeError(f"Expected an AnnData or a MuData, found {type(data).__name__}.")
    modalities: dict[str, AnnData] | None = getattr(data, "mod", None)
    if modalities is not None:
        if modality is None:
            raise ValueError(f"Expected `modality` to name one of {list(modalities)}, found None.")
        return lookup(modalities, modality, "modality", error=KeyError)
    if modality is not None:
        raise ValueError(f"Expected `modality` with MuData only, found {modality!r} with an AnnData.")
    return data


def totals_of(table: AnnData) -> Totals | None:
    """Sums of columns of ``X``, of which nothing is read before they are asked for; ``None`` without an ``X``."""
    return None if table.X is None else RowSource(table).totals


def slots_of(data: AnnData | MuData, modality: str | None = None) -> AnnData | MuData:
    """Where results about cells are written: the table itself, or the named modality of a MuData.

    ``modality``: key of ``mod``; ``None`` takes the table itself, whose ``obs`` and ``obsm`` hold all cells of a
    MuData.
    """
    return data if modality is None else table_of(data, modality)


def plain_vectors(found: Any, where: str, *, dtype: type[np.floating] | None = np.float32) -> NDArray[Any]:
    """An embedding as an array, whatever kind of matrix or frame it is kept as.

    ``dtype``: type of the result; ``None`` keeps that of the entry.  Returns (cells, dimensions), finite.
    """
    if isinstance(found, np.ma.MaskedArray) and np.ma.getmaskarray(found).any():
        raise ValueError(f"Expected {where} without a mask, found one. Fill what is missing, or leave such cells out.")
    if hasattr(found, "compute"):
        found = found.compute()
    array = np.asarray(found.toarray() if hasattr(found, "toarray") else found)
    if array.dtype.kind == "O":  # a frame with columns of several types
        array = np.asarray(found, dtype=np.float64) if _all_numbers(found) else array
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise TypeError(
            f"Expected numbers, (cells, dimensions), in {where}, found shape {array.shape} of type {array.dtype}."
        )
    if not array.shape[1]:
        raise ValueError(f"Expected at least one dimension in {where}, found an array of shape {array.shape}.")
    vectors = np.asarray(array, dtype=dtype)
    check_finite(where, vectors, "Leave such cells out, or embed them again.")
    return vectors


def _all_numbers(found: Any) -> bool:
    return isinstance(found, pd.DataFrame) and all(pd.api.types.is_numeric_dtype(kind) for kind in found.dtypes)


def row_keys(names: pd.Index | ArrayLike) -> NDArray[np.uint64]:
    """Hash the names of cells."""
    texts: NDArray[np.object_] = np.array(pd.Series(names).astype(str).to_numpy(), dtype=object)
    return pd.util.hash_array(texts, categorize=False)


def _base_of(adata: AnnData) -> tuple[Any, NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """The table behind a view with the rows and columns that the view shows, or the table itself.

    AnnData copies the matrix of a view whole when it is asked for it, and reads all of a file, so the view is resolved
    here; there is no public way to.
    """
    if not adata.is_view:
        return adata, None, None
    base = adata._adata_ref
    rows = np.arange(base.n_obs)[adata._oidx].ravel()
    columns = np.arange(base.n_vars)[adata._vidx].ravel()
    whole = columns.size == base.n_vars and np.array_equal(columns, np.arange(base.n_vars))
    return base, rows, None if whole else columns
