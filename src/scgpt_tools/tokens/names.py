"""Names of genes as data sets spell them: symbols, Ensembl ids, and tables that translate between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from scgpt_tools._lookup import absent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

NameTable: TypeAlias = "Mapping[str, str] | pd.Series[Any] | pd.DataFrame"
"""Old name to new name: a mapping, a series (index to value), or a frame of one (index to value) or two columns."""

# ENSG00000141510.18, ENSMUSG00000059552, ENSG00000228572.7_PAR_Y; the version counts revisions of the same gene.
_ENSEMBL = re.compile(r"(ENS([A-Z]{0,4})G\d{11})(\.\d+)?(_PAR_Y)?", flags=re.IGNORECASE)
_SPECIES = {"": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "MMU": "macaque", "SSC": "pig"}
# Enough names to tell what they are.
_LOOKED_AT = 2000


def column_names(var: pd.DataFrame, column: str | None = None) -> list[str | None]:
    """Names of the genes, ``None`` where there is no name.

    ``column``: column with the names; ``None`` takes the index.
    """
    values = var.index if column is None else _column(var, column)
    missing = pd.isna(values)
    return [None if gone or value == "" else str(value) for value, gone in zip(values, missing, strict=True)]


def _column(var: pd.DataFrame, column: str) -> Any:
    if column not in var.columns:
        raise KeyError(absent(column, var.columns, "column of `var` named"))
    if (values := var[column]).ndim != 1:
        raise ValueError(f"Expected one column of `var` named {column!r}, found {values.shape[1]}.")
    return values


def check_names(var: pd.DataFrame, symbols: NameTable | str | None, aliases: NameTable | None) -> None:
    """Refuse what does not tell names of genes, also where nothing goes on to read them."""
    if isinstance(symbols, str):
        _column(var, symbols)
    elif symbols is not None:
        name_pairs(symbols, "symbols")
    if aliases is not None:
        name_pairs(aliases, "aliases")


def name_pairs(table: NameTable, argument: str) -> dict[str, tuple[str, ...]]:
    """Read a table of names; rows without one of the two names are left out."""
    pairs: dict[str, dict[str, None]] = {}
    for old, new in _rows(table, argument):
        if _is_missing(old) or _is_missing(new):
            continue
        if not isinstance(old, str) or not isinstance(new, str):
            raise TypeError(f"Expected `{argument}` to map names to names, found {old!r} to {new!r}.")
        pairs.setdefault(old, {})[new] = None
    return {old: tuple(new) for old, new in pairs.items()}


def unversioned(name: str) -> str:
    """An Ensembl id without its version; any other name as it is."""
    found = _ENSEMBL.fullmatch(name)
    return name if found is None else found[1]


def describe(names: Iterable[str]) -> str:
    """What names look like, with an example, for messages."""
    sample = [name for name, _ in zip(names, range(_LOOKED_AT), strict=False)]
    if not sample:
        return "no names at all"
    ensembl = [found for found in map(_ENSEMBL.fullmatch, sample) if found]
    if _most(ensembl, sample):
        species = _SPECIES.get(ensembl[0][2].upper(), "")
        return f"{species} Ensembl ids (such as {ensembl[0][0]!r})".lstrip()
    digits = [name for name in sample if name.isdigit()]
    if _most(digits, sample):
        return f"numbers (such as {digits[0]!r}), as row numbers or Entrez ids are"
    mixed = [name for name in sample if name[:1].isalpha() and name[1:] != name[1:].upper()]
    if _most(mixed, sample):
        return f"symbols with lower-case letters (such as {mixed[0]!r}), as mouse symbols are"
    return f"gene symbols (such as {', '.join(map(repr, sample[:3]))})"


def text_columns(var: pd.DataFrame) -> list[str]:
    """Columns of ``var`` that may hold names."""
    return [
        column
        for column in var.columns
        if getattr(var[column], "ndim", 1) == 1
        and pd.api.types.infer_dtype(_values(var[column]), skipna=True) == "string"
    ]


def _values(column: pd.Series[Any]) -> Any:
    return column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column


def _rows(table: NameTable, argument: str) -> Iterable[tuple[Any, Any]]:
    if isinstance(table, pd.DataFrame):
        if table.shape[1] not in (1, 2):
            raise ValueError(
                f"Expected `{argument}` to have two columns, old and new name, or an index and one column, found the "
                f"columns {list(table.columns)}."
            )
        old = table.index if table.shape[1] == 1 else table.iloc[:, 0]
        return zip(old, table.iloc[:, -1], strict=True)
    if isinstance(table, pd.Series):
        return zip(table.index, table, strict=True)
    if isinstance(table, Mapping):
        return table.items()
    raise TypeError(
        f"Expected `{argument}` to be a mapping, a pandas Series or a DataFrame of names, found {type(table).__name__}."
    )


def _is_missing(name: Any) -> bool:
    return name is None or name is pd.NA or name != name or name == ""


def _most(part: Sequence[object], whole: Sequence[object]) -> bool:
    return 2 * len(part) > len(whole)


def mask_columns(var: pd.DataFrame, mask_var: ArrayLike | str) -> NDArray[np.bool_]:
    """(columns,) whether each may be read, from the name of a boolean column of ``var`` or from the values themselves."""
    values: Any = _column(var, mask_var) if isinstance(mask_var, str) else mask_var
    if hasattr(values, "obs"):
        raise TypeError(
            f"Expected `mask_var` to be True or False for each gene, or a column of `var`, found {type(values).__name__}."
        )
    values = values if hasattr(values, "dtype") else np.asarray(values)
    if not pd.api.types.is_bool_dtype(values.dtype) or np.shape(values) != (len(var),):
        raise ValueError(
            f"Expected `mask_var` to be True or False for each of {len(var):,} genes, or the name of such a column of `var`, "
            f"found {values.dtype} of shape {np.shape(values)}."
        )
    if bool(pd.isna(values).any()) or not bool(values.any()):
        raise ValueError("Expected `mask_var` to choose some genes and to leave none undecided, found none or NA.")
    return np.asarray(values, dtype=bool)
