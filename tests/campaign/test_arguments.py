"""Every parameter of every public function, with everything that is wrong for it."""

from __future__ import annotations

import pytest

import scgpt_tools as sct
from campaign.arguments import Argument, damaged, kind_of, spelled
from campaign.sampling import chosen
from campaign.subjects import SUBJECTS, expected, tables_in
from campaign.verdicts import difference, judge


@pytest.mark.parametrize("case", chosen(damaged()))
def test_a_damaged_argument_is_refused(case: Argument, report):
    subject = case.subject
    table, arguments = subject.table(), subject.good() | {case.parameter: case.value}
    report(judge(lambda: subject(table, arguments), tables=tables_in(table, arguments)))


@pytest.mark.parametrize("case", chosen(spelled()))
def test_another_type_of_a_good_value_changes_nothing(case: Argument, report):
    subject = case.subject
    table, arguments = subject.table(), subject.good() | {case.parameter: case.value}
    right = expected(subject.name)
    if case.parameter == "key_added":
        right = {}
    report(judge(lambda: subject(table, arguments), accept=lambda found: difference(right, found) if right else ""))


def test_every_public_function_is_called():
    rooms = {"pp": sct.pp, "tl": sct.tl, "pl": sct.pl}
    public = {f"{room}.{name}" for room, module in rooms.items() for name in module.__all__}
    # It draws a report of `match_genes`, not a table.
    assert public - set(SUBJECTS) == {"pl.coverage"}


def test_every_parameter_has_a_kind():
    for subject in SUBJECTS.values():
        for name in subject.parameters():
            assert kind_of(subject, name), (
                f"Expected a kind for `{name}` of {subject.name} in tests/campaign/arguments.py."
            )
