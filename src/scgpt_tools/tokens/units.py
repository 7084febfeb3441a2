"""Which unit a matrix seems to be in, and a warning where a tokenizer was made for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp

from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools._types import Expects

Unit: TypeAlias = Literal["counts", "normalised", "log1p", "scaled", "binned", "empty"]

# exp(30) is more than any cell holds, so larger values cannot be logarithms; scGPT's bound.
_LARGEST_LOG = 30.0


@dataclass(frozen=True)
class Units:
    """What a sample of a matrix looks like."""

    unit: Unit
    """The best guess: whole numbers are counts (or bins, where all cells reach the same maximum), small fractions
    logarithms, large ones normalised counts, and negative values scaled ones."""
    minimum: float
    """Smallest value, zero included."""
    smallest_positive: float
    """Smallest value above zero; infinite if there is none."""
    maximum: float
    whole: bool
    """Whether every value is a whole number."""

    def __str__(self) -> str:
        numbers = "whole numbers" if self.whole else "fractions"
        return f"{numbers} from {self.minimum:g} to {self.maximum:g}, which look like {_NAMES[self.unit]}"


_NAMES: dict[Unit, str] = {
    "counts": "raw counts",
    "normalised": "normalised counts without a logarithm",
    "log1p": "log-normalised values",
    "scaled": "scaled or centred values",
    "binned": "bins",
    "empty": "an empty matrix",
}


def describe_values(X: sp.spmatrix | sp.sparray | NDArray[np.generic]) -> Units:
    """Guess the unit of a matrix, or of some rows of it."""
    csr = sp.csr_matrix(X)
    values = csr.data[csr.data != 0]
    has_zero = values.size < csr.shape[0] * csr.shape[1]
    edge = [0.0] if has_zero or values.size == 0 else []
    minimum = float(min([*edge, *([values.min()] if values.size else [])]))
    maximum = float(max([*edge, *([values.max()] if values.size else [])]))
    positive = values[values > 0]
    smallest = float(positive.min()) if positive.size else np.inf
    whole = bool(np.all(values == np.rint(values)))
    return Units(_guess(csr, values, minimum, maximum, whole), minimum, smallest, maximum, whole)


def looks_logged(X: sp.spmatrix | sp.sparray | NDArray[np.generic]) -> bool:
    """Whether a matrix looks log-transformed, by scGPT's rule.

    Returns false if a value exceeds 30 or is negative, or the smallest positive value is at least 1; else True.
    Shallow cells scaled to 10,000 counts fail the last condition although they are logged; :func:`describe_values`
    knows them.
    """
    units = describe_values(X)
    if units.maximum <= 0:
        raise ValueError("Expected a matrix with positive values, found none.")
    return units.maximum <= _LARGEST_LOG and units.minimum >= 0 and units.smallest_positive < 1


def warn_about_units(units: Units, expects: Expects) -> None:
    """Warn if a matrix does not look like what a tokenizer was made for."""
    if units.unit not in _ACCEPTED[expects]:
        wanted = "values that are not negative" if expects == "any" else _NAMES[expects]
        warn_user(f"Expected {wanted}, found {units}. Pass `layer=` if they are in another layer.")


_ACCEPTED: dict[Expects, tuple[Unit, ...]] = {
    "any": ("counts", "normalised", "log1p", "binned", "empty"),
    "counts": ("counts", "empty"),
    "log1p": ("log1p", "empty"),
}


def _guess(csr: sp.csr_matrix, values: NDArray[np.generic], minimum: float, maximum: float, whole: bool) -> Unit:  # noqa: FBT001
    if values.size == 0:
        return "empty"
    if minimum < 0:
        return "scaled"
    if whole:
        return "binned" if _all_reach(csr, maximum) else "counts"
    return "log1p" if maximum <= _LARGEST_LOG else "normalised"


def _all_reach(csr: sp.csr_matrix, maximum: float) -> bool:
    """Whether all cells, at least three, have one maximum above 1, as bins have and counts do not."""
    highest = csr.max(axis=1).toarray().ravel()
    highest = highest[highest > 0]
    return bool(maximum > 1 and highest.size >= 3 and np.all(highest == maximum))
