"""The one door to packages that belong to an extra, and to heavy ones loaded on first use."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from types import ModuleType


def optional(module: str, *, extra: str) -> ModuleType:
    """Import a module that one of our extras installs."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        raise ImportError(
            f"Expected the package {root!r} for this, found none. Install it with: pip install {packages_of(extra)} (what the "
            f"extra {extra!r} of scgpt-tools brings).",
            name=error.name,
        ) from error


def packages_of(extra: str) -> str:
    """What an extra installs, quoted for a shell, which works wherever this package itself came from."""
    try:
        every = [Requirement(line) for line in requires("scgpt-tools") or ()]
    except PackageNotFoundError:
        every = []
    mine = [
        f"{entry.name}{'[' + ','.join(sorted(entry.extras)) + ']' if entry.extras else ''}{entry.specifier}"
        for entry in every
        if entry.marker is not None
        and entry.marker.evaluate({"extra": extra})
        and not entry.marker.evaluate({"extra": ""})
    ]
    return " ".join(f"'{name}'" for name in mine) or f"'scgpt-tools[{extra}]'"
