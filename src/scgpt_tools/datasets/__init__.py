"""Small data to try things on: one set that is always there, and public ones by name."""

from __future__ import annotations

from scgpt_tools.datasets._examples import pbmc_demo
from scgpt_tools.datasets._registry import available, load

__all__ = ["available", "load", "pbmc_demo"]
