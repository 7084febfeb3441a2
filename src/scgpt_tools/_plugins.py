"""Rows that other packages add to a table through entry points."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from scgpt_tools._warnings import warn_user

Row = TypeVar("Row")

_READ: set[str] = set()


def with_plugins(table: dict[str, Row], group: str, kind: type[Row]) -> dict[str, Row]:
    """Add the entry points of a group to a table, once; they are imported no sooner than here.

    A row that is there keeps its place.  An entry point that cannot be used is left out with a warning, so that a broken
    package costs nobody the others.

    ``table``: what exists, by name; it is changed.
    """
    if group in _READ:
        return table
    _READ.add(group)
    for entry in entry_points(group=group):
        if entry.name in table:
            fault = "there is one of that name already"
        else:
            try:
                row = entry.load()
            except Exception as error:  # noqa: BLE001  # whatever goes wrong in a package that is not ours
                fault = f"it cannot be imported ({type(error).__name__}: {error})"
            else:
                if isinstance(row, kind):
                    table[entry.name] = row
                    continue
                fault = f"it is {row!r:.80}"
        warn_user(
            f"Expected the entry point {entry.name!r} ({entry.value}) of {group!r} to give a new {kind.__name__}, found "
            f"that {fault}. It is left out; update or remove the package that adds it."
        )
    return table
