"""Cells of a MuData as rows of one matrix: the columns of its modalities in a row.

Each modality is followed by a column that is 1 for the cells that were measured in it, for a cell that is absent from a
modality is no cell without molecules.  Every modality stays where it is, in memory or on disk, and is read row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgpt_tools._labels import missing_labels
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_integer
from scgpt_tools.data.rows import RawBlock, RowSource, row_keys
from scgpt_tools.tokens.coverage import some
from scgpt_tools.tokens.values import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import Layers


def has_modalities(data: AnnData | MuData) -> bool:
    """Whether a table is a MuData."""
    return hasattr(data, "mod")


class ModalityRows:
    """Rows of a MuData; a cell that a modality lacks has an empty row there.

    Parameters
    ----------
    mdata
        The table.  Never changed.
    modalities
        Which modalities, in the order of their columns; ``None`` for all.
    layer
        Key of ``layers``, for all or by modality; ``None`` takes ``X``.

    Raises
    ------
    KeyError
        If a modality or a layer is absent; the message lists what is there.
    ValueError
        If a modality is empty, names of cells are not unique, or a modality has cells that the MuData does not know.
    """

    def __init__(self, mdata: MuData, *, modalities: Sequence[str] | None = None, layer: Layers = None) -> None:
        self.mdata = mdata
        """The MuData that the rows come from."""
        names = list(mdata.mod) if modalities is None else list(modalities)
        layers = _layers_of(names, layer)
        self.parts = {name: RowSource(mdata, layer=layers[name], modality=name) for name in names}
        """Rows of each modality by itself."""
        _refuse_empty(self.parts)
        self.names: pd.Index = mdata.obs_names
        _refuse_duplicates(self.names, "the MuData")
        self._places = {name: _places(part, self.names, name) for name, part in self.parts.items()}
        if not any((places >= 0).any() for places in self._places.values()) and len(self):
            raise ValueError(f"Expected cells in one of {names}, found none of the {len(self)} cells in any.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_columns(self) -> int:
        """Number of features, and of modalities."""
        return sum(part.n_columns + 1 for part in self.parts.values())

    @property
    def in_memory(self) -> bool:
        """Whether the values of all modalities are in memory."""
        return all(part.in_memory for part in self.parts.values())

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(cells,) hash of each cell's name, which all its random draws start from."""
        return row_keys(self.names)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Columns of the cells; see :func:`joint_obs`."""
        return joint_obs(self.mdata)

    @property
    def measured(self) -> pd.DataFrame:
        """(cells, modalities) whether a cell was measured."""
        return pd.DataFrame({name: places >= 0 for name, places in self._places.items()}, index=self.names)

    def blocks(self, rows: int = 4096, *, columns: ArrayLike | None = None) -> Iterator[RawBlock]:
        """Read the table from its first row to its last; see :meth:`~scgpt_tools.data.rows.RowSource.blocks`."""
        check_integer("rows", rows)
        for start in range(0, len(self), rows):
            index = np.arange(start, min(start + rows, len(self)))
            X = self.take(index)
            yield RawBlock(X if columns is None else canonical(X[:, np.asarray(columns)]), index)

    def take(self, indices: ArrayLike) -> sp.csr_matrix:
        """Read some rows; see :meth:`~scgpt_tools.data.rows.RowSource.take`."""
        index = np.asarray(indices, dtype=np.int64)
        blocks = []
        for name, part in self.parts.items():
            places = self._places[name][index]
            there = places >= 0
            X = part.take(places[there])
            blocks += [_with_empty_rows(X, there), sp.csr_matrix(there[:, None].astype(X.dtype))]
        return canonical(sp.hstack(blocks, format="csr"))

    def check(self) -> None:
        """Read everything once and refuse what :meth:`blocks` refuses, before any work begins."""
        for part in self.parts.values():
            part.check()

    def check_memory(self) -> None:
        """Do that for matrices in memory; see :meth:`~scgpt_tools.data.rows.RowSource.check_memory`."""
        for part in self.parts.values():
            part.check_memory()


def cell_columns(data: AnnData | MuData) -> pd.DataFrame:
    """Columns of the cells: ``obs``, of a MuData with those of its modalities (:func:`joint_obs`)."""
    return joint_obs(data) if has_modalities(data) else data.obs


def joint_obs(mdata: MuData) -> pd.DataFrame:
    """Columns of the cells of a MuData and of its modalities.

    Parameters
    ----------
    mdata
        The MuData; not changed.

    Returns
    -------
    The MuData's own columns; those of each modality as ``"modality:column"``; and ``"column"`` where the modalities
    that have it agree on every cell.
    """
    own = {str(name): mdata.obs[name] for name in mdata.obs.columns}
    prefixed: dict[str, pd.Series] = {}
    merged: dict[str, pd.Series | None] = {}
    for name, table in mdata.mod.items():
        for column in table.obs.columns:
            values = pd.Series(np.asarray(table.obs[column]), index=table.obs_names, dtype=object)
            values = values[~values.index.duplicated()].reindex(mdata.obs_names)
            prefixed[f"{name}:{column}"] = values
            merged[str(column)] = _agreed(merged.get(str(column), values), values)
    found = {column: values for column, values in merged.items() if values is not None}
    return pd.DataFrame(found | prefixed | own, index=mdata.obs_names)


def _agreed(one: pd.Series | None, other: pd.Series) -> pd.Series | None:
    """Both columns as one, or ``None`` where they contradict each other on a cell."""
    if one is None:
        return None
    there = ~missing_labels(one)
    both = there & ~missing_labels(other)
    if (one[both].astype(str) != other[both].astype(str)).any():
        return None
    return one.where(there, other)


def _layers_of(names: Sequence[str], layer: Layers) -> dict[str, str | None]:
    if not isinstance(layer, Mapping):
        return dict.fromkeys(names, layer)
    unknown = [name for name in layer if name not in names]
    if unknown:
        raise KeyError(absent(unknown[0], names, "modality"))
    return {name: layer.get(name) for name in names}


def _refuse_empty(parts: Mapping[str, RowSource]) -> None:
    for name, part in parts.items():
        for what, size in (("cells", len(part)), ("features", part.n_columns)):
            if not size:
                raise ValueError(f"Expected {what} in modality {name!r}, found none. Leave it out with `modalities=`.")


def _refuse_duplicates(names: pd.Index, where: str) -> None:
    twice = names[names.duplicated()]
    if len(twice):
        raise ValueError(
            f"Expected every cell of {where} to have a name of its own, found {len(twice)} names again: "
            f"{some(tuple(map(str, twice)))}. Cells are matched by name across modalities; make the names unique first."
        )


def _places(part: RowSource, names: pd.Index, modality: str) -> NDArray[np.int64]:
    """Row of each cell in a modality, -1 for cells that it lacks."""
    _refuse_duplicates(part.names, f"modality {modality!r}")
    unknown = part.names[~part.names.isin(names)]
    if len(unknown):
        raise ValueError(
            f"Expected the cells of modality {modality!r} to be cells of the MuData, found {len(unknown)} others: "
            f"{some(tuple(map(str, unknown)))}. Call `mdata.update()` after a modality has changed."
        )
    return np.asarray(part.names.get_indexer(names), dtype=np.int64)


def _with_empty_rows(X: sp.csr_matrix, there: NDArray[np.bool_]) -> sp.csr_matrix:
    if there.all():
        return X
    lengths = np.zeros(there.size, dtype=X.indptr.dtype)
    lengths[there] = np.diff(X.indptr)
    return sp.csr_matrix((X.data, X.indices, np.concatenate([[0], np.cumsum(lengths)])), shape=(there.size, X.shape[1]))
