"""Plots."""

from __future__ import annotations

from scgpt_tools.pl.coverage import coverage

__all__ = ["coverage"]
