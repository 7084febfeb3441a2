"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from scgpt_tools import settings

SOURCE = Path(__file__).parents[1] / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((SOURCE / "scgpt_tools").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    # Examples may change settings, which are not to reach other tests.
    with settings.override(**asdict(settings)):
        result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert result.failed == 0
