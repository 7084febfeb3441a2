"""Cells of a table on disk, a run of neighbours at a time.

:func:`~scgpt_tools.data.stores.open_table` keeps names, columns and row pointers of all cells in memory, some hundred
bytes a cell.  This is for tables of which even those are too many: memory holds the cells asked for and the genes.
"""

from __future__ import annotations

from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import read_elem

from scgpt_tools._validate import check_key
from scgpt_tools.data.matrices import reader
from scgpt_tools.data.whole import Trace, check_frames, check_matrix, trace_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# Runs of cells whose names stand for those of the table; all of a quarter of a million.
_RUNS, _RUN = 64, 4096


class StoredCells:
    """Cells of an AnnData on disk.

    Parameters
    ----------
    group
        Group of the AnnData, of HDF5 or zarr; see :func:`~scgpt_tools.data.stores.open_group`.
    layer
        Key of ``layers``; ``None`` takes ``X``.
    columns
        Columns of ``obs`` that are needed.

    Raises
    ------
    KeyError
        If the layer or a column is absent; the message lists what is there.
    ValueError
        If there is no ``X``, the matrix is stored by columns, or parts of it are missing.
    """

    def __init__(self, group: Any, *, layer: str | None = None, columns: Sequence[str] = ()) -> None:
        layers = group["layers"] if "layers" in group else {}
        if layer is not None:
            check_key(layers, layer, "layers")
        elif "X" not in group:
            raise ValueError(f"Expected a matrix in `X`, found none. Pass `layer=` one of {list(layers)}.")
        self._matrix = group["X"] if layer is None else layers[layer]
        encoding = self._matrix.attrs.get("encoding-type", "array")
        if encoding not in ("csr_matrix", "array"):
            raise ValueError(
                f"Expected a matrix that is stored by rows (CSR or dense), found {encoding!r}, of which every chunk "
                "would read the whole. Write it as CSR once."
            )
        self._sparse, self._layer, self._obs = encoding == "csr_matrix", layer, group["obs"]
        self._index = str(self._obs.attrs["_index"])
        for column in columns:
            check_key(self._obs, column, "obs")
        self._columns = tuple(columns)
        self.var: pd.DataFrame = read_elem(group["var"])
        shape = check_frames(group)
        check_matrix(self._matrix, "X" if layer is None else f"layers[{layer!r}]", shape)
        self.n_cells: int = shape[0]
        """Number of cells."""
        self._elements = (self._matrix, group["obs"], group["var"])

    def __len__(self) -> int:
        return self.n_cells

    def names(self, start: int, stop: int) -> list[str]:
        """Names of some cells."""
        return [str(name) for name in _values(self._obs[self._index], start, stop)]

    def read(self, start: int, stop: int) -> AnnData:
        """Some cells, in memory.

        Returns their names, the columns that are needed, their values in ``X`` or the layer, and ``var``.
        """
        obs = pd.DataFrame(
            {name: _values(self._obs[name], start, stop) for name in self._columns},
            index=pd.Index(self.names(start, stop), dtype=object),
        )
        X = self._rows(start, stop)
        if self._layer is None:
            return AnnData(X, obs=obs, var=self.var)
        return AnnData(obs=obs, var=self.var, layers={self._layer: X})

    def content(self, table: AnnData) -> str:
        """Checksum of all that was read of some cells: names, columns and values."""
        found = blake2b("\n".join(map(str, table.obs_names)).encode(), digest_size=16)
        for column in self._columns:
            found.update("\n".join(table.obs[column].astype(str)).encode())
        X = sp.csr_matrix(table.X if self._layer is None else table.layers[self._layer])
        for part in (X.data, X.indices, X.indptr):
            found.update(str(part.dtype).encode())
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()

    def trace(self) -> Trace:
        """Sizes and times of the files that cells are read from; nothing is read."""
        if isinstance(self._obs, h5py.Group):
            return trace_of(Path(self._obs.file.filename))
        return trace_of(*(Path(element.store.root) / element.path for element in self._elements))

    def digest(self) -> str:
        """Checksum of the number of cells, the names of the genes, and the names of up to 64 runs of 4096 cells."""
        found = sha256("\n".join([str(len(self)), *map(str, self.var.index)]).encode())
        n_runs = -(-len(self) // _RUN)
        for number in np.unique(np.linspace(0, max(n_runs - 1, 0), _RUNS).astype(np.int64)):
            start = int(number) * _RUN
            found.update("\n".join(self.names(start, min(start + _RUN, len(self)))).encode())
        return found.hexdigest()

    def _rows(self, start: int, stop: int) -> sp.csr_matrix:
        if not self._sparse:
            return reader(self._matrix)(start, stop)
        pointers = np.asarray(self._matrix["indptr"][start : stop + 1], dtype=np.int64)
        first, last = int(pointers[0]), int(pointers[-1])
        data, indices = (np.asarray(self._matrix[name][first:last]) for name in ("data", "indices"))
        return sp.csr_matrix((data, indices, pointers - first), shape=(stop - start, len(self.var)))


def _values(element: Any, start: int, stop: int) -> Any:
    """Part of a column, of any kind that AnnData writes."""
    encoding = element.attrs.get("encoding-type", "")
    if encoding == "categorical":
        return pd.Categorical.from_codes(
            np.asarray(element["codes"][start:stop]), categories=read_elem(element["categories"])
        )
    if encoding.startswith("nullable"):
        absent = np.asarray(element["mask"][start:stop])
        return pd.Series(_values(element["values"], start, stop), dtype=object).mask(absent).to_numpy()
    if isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype):
        return element.asstr()[start:stop]
    return np.asarray(element[start:stop])
