"""The one door to packages that belong to an extra, and to heavy ones loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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
            f"Expected the package {root!r} for this, found none. Install it with: pip install 'scgpt-tools[{extra}]'",
            name=error.name,
        ) from error
