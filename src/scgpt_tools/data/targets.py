"""Columns of ``obs`` with numbers to predict, such as an age, a score or a position in pseudotime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scgpt_tools._validate import check_key, check_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Targets(NamedTuple):
    """Numbers of each cell."""

    values: NDArray[np.float64]
    """(cells, targets) with all their digits; NaN where a number is not known."""
    names: tuple[str, ...]


def read_targets(obs: pd.DataFrame, keys: str | Sequence[str]) -> Targets:
    """Read columns as numbers; refuses texts, infinite numbers and columns without a number."""
    names = check_texts("target_keys", [keys] if isinstance(keys, str) else keys)
    if len(set(names)) < len(names):
        raise ValueError(f"Expected every column of `target_keys` once, found {names}.")
    table: Any = obs
    columns = []
    for name in names:
        column = table[check_key(table, name, "obs")]
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
            raise TypeError(
                f"Expected obs[{name!r}] to hold numbers, found {column.dtype}. To learn classes, take task='annotate'."
            )
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(values).any() or np.isnan(values).all():
            found = "infinite ones" if np.isinf(values).any() else "none in any cell"
            raise ValueError(f"Expected obs[{name!r}] to hold numbers, or NaN where they are not known, found {found}.")
        columns.append(values)
    return Targets(np.stack(columns, axis=1), tuple(names))
