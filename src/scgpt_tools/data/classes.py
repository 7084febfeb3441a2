"""Columns of ``obs`` that name a class of each cell, such as its type or its technical batch, as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scgpt_tools._labels import missing_labels, spelled_labels
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_key
from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UNKNOWN = -1
"""Number of a cell whose class nobody knows."""

# Texts that missing values become where a column was made text too early.
_LIKE_MISSING = ("nan", "<na>", "none", "null")


class Classes(NamedTuple):
    """One class per cell."""

    codes: NDArray[np.int64]
    """(cells,) position in ``names``, or :data:`UNKNOWN`."""
    names: tuple[str, ...]


def read_classes(
    obs: pd.DataFrame,
    key: str,
    *,
    names: Sequence[str] | None = None,
    allow_unknown: bool = False,
) -> Classes:
    """Number the classes of a column.

    ``obs``: ``adata.obs``; not changed; ``key``: column with text, numbers or categories.  Whole numbers are spelled
    without a decimal point, also where missing values made them floats; ``names``: names in the order of their numbers;
    ``None`` takes those that occur, sorted; ``allow_unknown``: accept cells without a class: with a missing value, or a
    text that is empty or white space.
    """
    if not isinstance(key, str):
        raise TypeError(f"Expected the name of one column of `obs`, found {key!r}.")
    table: Any = obs
    column: pd.Series[Any] = pd.Series(np.asarray(table[check_key(table, key, "obs")]), dtype=object)
    if strange := [label for label in column if isinstance(label, list | dict | set | np.ndarray)]:
        raise ValueError(f"Expected a name for each cell in obs[{key!r}], found {strange[0]!r}.")
    known = ~missing_labels(column)
    if not known.any() or not (allow_unknown or known.all()):
        wanted = "of at least one cell" if allow_unknown else "of every cell"
        first = f" (first: {str(obs.index[int(np.argmin(known))])!r})" if len(column) else ""
        raise ValueError(
            f"Expected a value in obs[{key!r}] {wanted}, found none for {int((~known).sum())} cells{first}."
        )
    texts = column[known].astype(str)
    if names is None or not set(texts.unique()) <= set(names):
        texts = spelled_labels(column[known])
    if names is None:
        names = tuple(sorted(texts.unique()))
        _check_names(names, key)
    names = tuple(names)
    places = pd.Index(names).get_indexer(pd.Index(texts))
    if (places < 0).any():
        raise ValueError(absent(texts.iloc[int(np.argmax(places < 0))], names, f"class of obs[{key!r}] named"))
    codes = np.full(len(column), UNKNOWN, dtype=np.int64)
    codes[known] = places
    return Classes(codes, names)


def _check_names(names: tuple[str, ...], key: str) -> None:
    """Refuse names that look the same, and warn about those that look like nothing."""
    by_look: dict[str, str] = {}
    for name in names:
        twin = by_look.setdefault(name.strip(), name)
        if twin != name:
            raise ValueError(
                f"Expected classes in obs[{key!r}] that differ by more than white space around them, found {twin!r} and "
                f"{name!r}. Strip them: adata.obs[{key!r}] = adata.obs[{key!r}].str.strip()."
            )
    if like := [name for name in names if name.strip().casefold() in _LIKE_MISSING]:
        warn_user(
            f"Expected missing values in obs[{key!r}] to be NaN, found the text {like[0]!r}, which counts as a class. If "
            f"these cells have none: adata.obs[{key!r}] = adata.obs[{key!r}].replace({like[0]!r}, float('nan'))."
        )
