"""Read a table by name, with an error that lists what exists and the nearest spelling."""

from __future__ import annotations

from collections.abc import Hashable
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Value = TypeVar("Value")

# Error messages stay readable when the table is `var` of an atlas.
_SHOWN = 20


def lookup(table: Mapping[str, Value], name: str, kind: str, *, error: type[Exception] = ValueError) -> Value:
    """Value of ``table[name]``.

    ``error``: exception to raise: :class:`ValueError` for a choice, :class:`KeyError` for data that should be there.
    """
    # A list, say, is no key of anything.
    if not isinstance(name, Hashable) or name not in table:
        raise error(absent(name, table, kind))
    return table[name]


def absent(name: object, choices: Iterable[object], kind: str, *, near: Iterable[str] | None = None) -> str:
    """Message for a name that is not among the choices.

    ``near``: names of which the nearest is told, where they are more than those that are listed.
    """
    names = [str(choice) for choice in choices if choice is not None]
    pool = names if near is None else list(near)
    same = [other for other in pool if other.casefold() == str(name).casefold()]
    close = same or get_close_matches(str(name), pool, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Found no {kind} {name!r}.{hint} {_listing(names)}"


def _listing(names: list[str]) -> str:
    if not names:
        return "There is none."
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return f"Available: {shown}{more}."
