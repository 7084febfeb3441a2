"""One runner per kind of recorded case; a new kind is one entry in one of these modules."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

Runner = Callable[[Path, dict], None]

RUNNERS: dict[str, Runner] = {}
for module in iter_modules(__path__):
    if not module.name.startswith("_"):
        RUNNERS.update(import_module(f"{__name__}.{module.name}").RUNNERS)
