"""Recorded cases of the original implementations, each replayed through our code.

Cases are folders with a ``case.json`` anywhere below ``SCT_GOLDEN_DIR`` (``tests/golden`` by default), one sub-folder a
system.  A kind of case that no runner knows is a failure, never a skip.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from golden_runners import RUNNERS

FOLDER = Path(os.environ.get("SCT_GOLDEN_DIR", Path(__file__).parent / "golden"))
CASES = sorted(path.parent for path in FOLDER.rglob("case.json"))


def kind_of(case: dict) -> str:
    """The system that a case exercises; GEARS cases name it by the first word of their name."""
    return case.get("system") or "gears " + case["name"].split("_")[0]


def test_golden_cases_are_there():
    assert CASES, f"no case.json below {FOLDER}"


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: str(folder.relative_to(FOLDER)))
def test_golden(folder):
    case = json.loads((folder / "case.json").read_text())
    kind = kind_of(case)
    assert kind in RUNNERS, f"no runner for {kind!r}; known: {sorted(RUNNERS)}"
    RUNNERS[kind](folder, case)
