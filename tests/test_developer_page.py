"""What the developer page says of the tree is true: the files of its table, and who imports whom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "scgpt_tools"
PAGE = (ROOT / "docs" / "developer" / "index.md").read_text(encoding="utf-8")
CODE = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))

ROWS = [
    line.strip("| ").split(" | ", 1)
    for line in PAGE.partition("## Where things go")[2].partition("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| to add", "| ---"))
]


def wrong(text: str) -> list[str]:
    """Files and tables between backticks that are not there; ``<name>`` stands for any, in a folder that is."""
    found = []
    for name in re.findall(r"`([^`]+)`", text):
        if re.fullmatch(r"[A-Z_]{4,}", name):  # a table
            if not re.search(rf"^{name}\b", CODE, flags=re.MULTILINE):
                found.append(name)
        elif re.fullmatch(r"[\w.<>-]+/[\w./<>-]*|[\w<>-]+\.(py|md|toml)", name):
            place = name.partition("<")[0]
            if not any((base / place).exists() for base in (ROOT, SOURCE)):
                found.append(name)
    return found


def test_there_are_rows():
    assert len(ROWS) > 10


@pytest.mark.parametrize(("what", "where"), ROWS, ids=[row[0] for row in ROWS])
def test_rows_of_the_table_name_what_there_is(what, where):
    assert wrong(where) == []
    assert re.search("`", where), "a row names at least one place"


def test_the_check_itself():
    assert wrong("`models/formats/`, `FORMATS`, `tests/golden_runners/`, `docs/api/<name>.md`, `cli/commands.py`") == []
    text = "`models/formatz/`, `FORMATZ`, `docs/apis/<name>.md`, `clip.py`, `optional(module, extra=...)`"
    assert wrong(text) == ["models/formatz/", "FORMATZ", "docs/apis/<name>.md", "clip.py"]
