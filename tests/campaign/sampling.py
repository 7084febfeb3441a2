"""Which cases run: all of them in the long campaign, a sample by name otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from campaign.verdicts import checksum

if TYPE_CHECKING:
    from collections.abc import Iterable

LONG = os.environ.get("SCT_CAMPAIGN") == "long"
SHARE = int(os.environ.get("SCT_CAMPAIGN_SHARE", "40"))
"""Without the long campaign, one case of so many runs."""


def chosen(cases: Iterable[Any], *, share: int = SHARE) -> list[Any]:
    """The cases to run, as parameters of a test.

    Chosen by the name of each, so that a new case moves no other, and every process chooses the same.
    """
    return [pytest.param(case, id=str(case)) for case in cases if LONG or int(checksum(str(case)), 16) % share == 0]
