"""Cells of CELLxGENE Census, or of another collection of SOMA with its layout, read where they lie.

Genes are named by ``feature_id``, their Ensembl ids: the numbers of rows that SOMA joins tables by are no names.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_text
from scgpt_tools._warnings import warn_user
from scgpt_tools.config import settle_fields
from scgpt_tools.data.rows import RowSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

JOIN, GENE = "soma_joinid", "feature_id"


@dataclass(frozen=True, kw_only=True)
class CensusConfig:
    """Which cells of a Census (extra ``census``)."""

    organism: str = "homo_sapiens"
    version: str = "stable"
    """Release: ``"stable"``, ``"latest"`` or a date; cells of a run that is to be repeated want a date."""
    uri: str | None = None
    """Address of a collection to read in place of CELLxGENE's own, such as a copy on disk."""
    filters: Mapping[str, Any] = field(default_factory=dict)
    """Columns of ``obs`` with the value, or list of values, that cells must have: ``{assay: "10x 3' v3"}``."""
    obs_filter: str | None = None
    """A further filter of cells in SOMA's own words, ``"n_genes > 200"``."""
    var_filter: str | None = None
    """A filter of genes in SOMA's own words."""
    obs_columns: tuple[str, ...] = ()
    """Columns of ``obs`` to read; those that training asks for come by themselves."""
    measurement: str = "RNA"
    layer: str = "raw"
    """Matrix of the measurement; counts are ``"raw"``."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("organism", "version", "measurement", "layer"):
            check_text(name, getattr(self, name))
        self.value_filter()

    def value_filter(self) -> str | None:
        """All filters of cells as one text of SOMA, values quoted.

        Raises
        ------
        ValueError
            If a column has a name that SOMA could not read, or a value is neither text, number nor a list of these.
        """
        parts = [_is_one_of(column, value) for column, value in self.filters.items()]
        if self.obs_filter is not None:
            parts.append(f"({self.obs_filter})")
        return " and ".join(parts) or None


def _is_one_of(column: str, value: Any) -> str:
    if not column.isidentifier():
        raise ValueError(f"Expected the name of a column of obs in `filters`, found {column!r}.")
    values = list(value) if isinstance(value, list | tuple) else [value]
    plain = [entry.item() if isinstance(entry, np.generic) else entry for entry in values]
    if not plain or any(not isinstance(entry, str | int | float) for entry in plain):
        raise ValueError(f"Expected a text, a number or a list of these in `filters` for {column!r}, found {value!r}.")
    # Filters are read as Python is, so that quotes within a text are escaped as Python does.
    return f"{column} == {plain[0]!r}" if len(plain) == 1 else f"{column} in {plain!r}"


@contextmanager
def open_census(config: CensusConfig, *, columns: tuple[str, ...] = ()) -> Iterator[RowSource]:
    """Open cells of a Census; their values stay there.

    ``columns``: of ``obs`` to read beside those of the configuration.
    """
    soma = optional("tiledbsoma", extra="census")
    with _opened(soma, config) as root:
        data = root["census_data"] if "census_data" in root else root
        experiment = lookup({name: data[name] for name in data}, config.organism, "organism of the Census")
        wanted = [JOIN, *dict.fromkeys([*config.obs_columns, *config.filters, *columns])]
        obs = _frame(experiment.obs, wanted, config.value_filter())
        measurement = experiment.ms[config.measurement]
        var = _frame(measurement.var, None, config.var_filter)
        for name, table in (("cells", obs), ("genes", var)):
            if not len(table):
                raise ValueError(f"Expected {name} that pass the filters of the Census, found none.")
        _warn_of_unmatched(config.filters, obs)
        if GENE not in var.columns:
            raise ValueError(f"Expected a column {GENE!r} of the genes of the Census, found {list(var.columns)}.")
        cells, genes = (table.pop(JOIN).to_numpy(np.int64) for table in (obs, var))
        obs.index = pd.Index(cells.astype(str))
        var = var.set_index(var[GENE].astype(str).rename(None))
        matrix = measurement.X[config.layer]
        yield RowSource.from_reader(AnnData(obs=obs, var=var), partial(_read, matrix, cells, genes))


def _warn_of_unmatched(filters: Mapping[str, Any], obs: pd.DataFrame) -> None:
    """Name values in lists of filters that no cell has, misspelt ones say."""
    for column, value in filters.items():
        values = list(value) if isinstance(value, list | tuple) else []
        if absent := [entry for entry in values if not (obs[column] == entry).any()]:
            warn_user(
                f"Expected cells for each value of `filters[{column!r}]`, found none with {', '.join(map(repr, absent))} among "
                f"the {len(obs):,} that pass all filters. Check the spelling."
            )


def _opened(soma: Any, config: CensusConfig) -> Any:
    if config.uri is not None:
        return soma.open(config.uri)
    census: Any = optional("cellxgene_census", extra="census")
    return census.open_soma(census_version=config.version)


def _frame(table: Any, columns: list[str] | None, value_filter: str | None) -> pd.DataFrame:
    """Rows of a table of SOMA that pass a filter."""
    if columns is not None:
        known = {name: name for name in table.keys()}
        columns = [lookup(known, name, "column of obs") for name in columns]
    read = table.read(column_names=columns, value_filter=value_filter)
    frame = read.concat().to_pandas()
    # Further axes of the table come by themselves.
    extra = [name for name in frame.columns if columns is not None and name not in columns]
    return frame.drop(columns=extra).sort_values(JOIN, ignore_index=True)


def _read(matrix: Any, cells: NDArray[np.int64], genes: NDArray[np.int64], start: int, stop: int) -> sp.csr_matrix:
    """Rows of some cells, with a column for each gene."""
    wanted = cells[start:stop]
    shape = (len(wanted), len(genes))
    if not len(wanted):
        return sp.csr_matrix(shape, dtype=np.float32)
    found = matrix.read((wanted, genes)).tables().concat()
    rows, columns, values = (found.column(number).to_numpy() for number in range(3))
    return sp.csr_matrix((values, (np.searchsorted(wanted, rows), np.searchsorted(genes, columns))), shape=shape)
