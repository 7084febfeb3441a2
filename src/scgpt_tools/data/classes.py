"""Columns of ``obs`` that name a class of each cell, such as its type or its technical batch, as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scgpt_tools._lookup import absent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UNKNOWN = -1
"""Number of a cell whose class nobody knows."""


class Classes(NamedTuple):
    """One class per cell."""

    codes: NDArray[np.int64]
    """(cells,) position in ``names``, or :data:`UNKNOWN`."""
    names: tuple[str, ...]


def read_classes(
    obs: pd.DataFrame, key: str, *, names: Sequence[str] | None = None, allow_unknown: bool = False
) -> Classes:
    """Number the classes of a column.

    Parameters
    ----------
    obs
        ``adata.obs``; not changed.
    key
        Column with text, numbers or categories.
    names
        Names in the order of their numbers; ``None`` takes those that occur, sorted.
    allow_unknown
        Accept cells without a class.

    Returns
    -------
    Numbers and names.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a cell has no class, or one that is not among ``names``.
    """
    if key not in obs.columns:
        raise KeyError(absent(key, obs.columns, "key in `obs`:"))
    column = pd.Series(np.asarray(obs[key]), dtype=object)
    known = column.notna().to_numpy()
    if not known.any() or not (allow_unknown or known.all()):
        wanted = "of at least one cell" if allow_unknown else "of every cell"
        raise ValueError(f"Expected a value in obs[{key!r}] {wanted}, found none for {int((~known).sum())} cells.")
    texts = column[known].astype(str)
    names = tuple(sorted(texts.unique())) if names is None else tuple(names)
    places = pd.Index(names).get_indexer(pd.Index(texts))
    if (places < 0).any():
        raise ValueError(absent(texts.iloc[int(np.argmax(places < 0))], names, f"class of obs[{key!r}] named"))
    codes = np.full(len(column), UNKNOWN, dtype=np.int64)
    codes[known] = places
    return Classes(codes, names)
