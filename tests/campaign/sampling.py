"""Which cases run: all of them in the long campaign, a sample by name otherwise; and which are known to fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from campaign.verdicts import checksum

if TYPE_CHECKING:
    from collections.abc import Iterable

LONG = os.environ.get("SCT_CAMPAIGN") == "long"
SHARE = int(os.environ.get("SCT_CAMPAIGN_SHARE", "40"))
"""Without the long campaign, one case of so many runs."""

KNOWN = dict(
    line.split("  # ", 1)
    for line in Path(__file__).with_name("known.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
"""Why a case fails that is known to."""


def chosen(cases: Iterable[Any], *, share: int = SHARE) -> list[Any]:
    """The cases to run, as parameters of a test.

    Chosen by the name of each, so that a new case moves no other, and every process chooses the same.
    """
    return [_parameter(case) for case in cases if LONG or int(checksum(str(case)), 16) % share == 0]


def _parameter(case: Any) -> Any:
    reason = KNOWN.get(str(case))
    # Strict in the long campaign only, so that a mend does not break the tests of who made it.
    marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=LONG)]
    return pytest.param(case, id=str(case), marks=marks)
