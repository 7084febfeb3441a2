"""What a function has added to a table, found by comparing the table with what it held before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from mudata import MuData

    Results = dict[str, dict[str, Any]]

_FRAMES = ("obs", "var")
_MAPPINGS = ("obsm", "varm", "layers", "uns")


def contents(table: AnnData | MuData) -> Results:
    """What a table holds besides ``X``, to be compared with what it holds later.

    Returns elements by slot and name; nothing is copied.
    """
    found: Results = {slot: {str(name): frame[name] for name in frame} for slot, frame in _frames(table)}
    for slot in _MAPPINGS:
        # Since anndata 0.13 `layers` lists X under the key None; a MuData has no layers of its own.
        found[slot] = {name: value for name, value in (getattr(table, slot, None) or {}).items() if name is not None}
    return found


def additions(table: AnnData | MuData, before: Results) -> Results:
    """What was added to a table, or replaced in it.

    Returns new elements by slot and name; slots without any are left out.
    """
    new = {
        slot: {
            name: value
            for name, value in elements.items()
            if name not in before[slot] or not _is_same(before[slot][name], value)
        }
        for slot, elements in contents(table).items()
    }
    return {slot: elements for slot, elements in new.items() if elements}


def _frames(table: AnnData | MuData) -> Iterator[tuple[str, pd.DataFrame]]:
    return ((slot, getattr(table, slot)) for slot in _FRAMES)


def _is_same(before: Any, after: Any) -> bool:
    # A column of a frame is a new object each time that it is asked for.
    if isinstance(before, pd.Series) and isinstance(after, pd.Series):
        return before.equals(after)
    return before is after
