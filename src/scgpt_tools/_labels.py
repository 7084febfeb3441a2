"""Labels of cells as they stand in tables: which are missing, and how whole numbers are spelled."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray


def missing_labels(column: pd.Series) -> NDArray[np.bool_]:
    """(cells,) True where a label is missing: no value, or a text that is empty or white space."""
    odd = next((label for label in column if not isinstance(label, Hashable)), None)
    if odd is not None:
        raise TypeError(
            f"Expected texts or numbers as labels in {column.name!r}, found {odd!r}, a {type(odd).__name__}."
        )
    codes, kinds = pd.factorize(column)
    blank = np.array([isinstance(kind, str) and not kind.strip() for kind in kinds], dtype=bool)
    # The last entry is that of missing values, whose code is -1.
    return np.append(blank, True)[codes]


def spelled_labels(labels: pd.Series) -> pd.Series:
    """Labels as text; floats that are all whole numbers, as missing values make them, without a decimal point."""
    if all(isinstance(label, float | np.floating) and float(label).is_integer() for label in labels):
        return labels.map(lambda label: str(int(label)))
    return labels.astype(str)
