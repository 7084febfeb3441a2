"""Parts of a data set cell by cell: whole groups held out, or a share of the cells within strata."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_fraction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from scgpt_tools.tokens.perturbations import Labels


def rank(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Names in an order that looks random and depends on nothing but seed, purpose and the names."""
    return sorted(set(names), key=lambda name: sha256(f"{seed}\n{purpose}\n{name}".encode()).digest())


def split_groups(labels: Labels, *, test: Collection[str], val: Collection[str] = ()) -> NDArray[np.str_]:
    """Hold out whole groups of cells, such as replicates or donors."""
    groups = np.asarray(labels, dtype=str)
    known = np.unique(groups)
    for name in (*test, *val):
        if name not in known:
            raise ValueError(absent(name, known, "group"))
    if both := set(test) & set(val):
        raise ValueError(f"Expected every group in one part, found {sorted(both)} in `test` and `val`.")
    return np.select([np.isin(groups, list(test)), np.isin(groups, list(val))], ["test", "val"], "train")


def split_cells(
    names: Labels, *, test: float = 0.1, val: float = 0.1, seed: int = 0, strata: Labels | None = None
) -> NDArray[np.str_]:
    """Hold out cells by a hash of seed and name, so that the order of the cells does not matter."""
    check_fraction("test + val", check_fraction("test", test) + check_fraction("val", val), one=False)
    cells = np.asarray(names, dtype=str)
    if np.unique(cells).size < cells.size:
        raise ValueError("Expected unique names of cells, found repeated ones; see `obs_names_make_unique`.")
    groups = np.zeros(cells.size, dtype=int) if strata is None else np.unique(strata, return_inverse=True)[1]
    parts = np.full(cells.size, "train", dtype="<U5")
    position = {name: row for row, name in enumerate(cells)}
    for group in np.unique(groups):
        rows = [position[name] for name in rank(cells[groups == group], seed, "cells")]
        n_test, n_val = round(len(rows) * test), round(len(rows) * val)
        parts[rows[:n_test]] = "test"
        parts[rows[n_test : n_test + n_val]] = "val"
    return parts
