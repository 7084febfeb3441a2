"""Count what the inputs of the campaign came to, and say it at the end."""

from __future__ import annotations

from collections import Counter

import pytest

import scgpt_tools as sct
from campaign.apart import Apart
from campaign.verdicts import Outcome, Verdict


@pytest.fixture(autouse=True)
def _quiet_and_elsewhere(tmp_path, monkeypatch):
    # Some bad paths mean the working directory.
    monkeypatch.chdir(tmp_path)
    with sct.settings.override(show_progress=False, offline=True):
        yield


@pytest.fixture
def report(record_property):
    """Function that counts a verdict and fails if it is a bad one."""

    def tell(verdict: Verdict) -> None:
        record_property("campaign", verdict.outcome.value)
        assert verdict.good, f"{verdict.outcome.value}: {verdict.detail}"

    return tell


@pytest.fixture(scope="session")
def apart():
    """Function that judges a case in another process, where a crash is seen and does no harm."""
    process = Apart()
    yield process
    process.close()


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [entry for kind in ("passed", "failed") for entry in terminalreporter.stats.get(kind, [])]
    found = Counter(value for entry in reports for name, value in entry.user_properties if name == "campaign")
    if found:
        counts = ", ".join(f"{outcome.value} {found[outcome.value]:,}" for outcome in Outcome)
        terminalreporter.write_line(f"campaign: inputs tried {found.total():,}, {counts}")
