"""Every parameter of every public function, with everything that is wrong for it."""

from __future__ import annotations

import inspect

import pytest

import scgpt_tools as sct
from campaign import inputs
from campaign.arguments import Argument, damaged, kind_of, misplaced, spelled
from campaign.sampling import chosen
from campaign.subjects import SUBJECTS, Subject, expected, tables_in
from campaign.verdicts import difference, judge


def _by_position(function) -> list[str]:
    """Parameters that may be given without a name."""
    parameters = inspect.signature(function).parameters.values()
    return [entry.name for entry in parameters if entry.kind is entry.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("case", chosen(damaged()))
def test_a_damaged_argument_is_refused(case: Argument, report):
    subject = case.subject
    table, arguments = subject.table(), subject.good() | {case.parameter: case.value}
    report(judge(lambda: subject(table, arguments), tables=tables_in(table, arguments)))


@pytest.mark.parametrize("case", chosen(misplaced()))
def test_a_table_or_a_model_in_a_wrong_place_is_refused(case: Argument, report):
    subject = case.subject
    table, arguments = subject.table(), subject.good() | {case.parameter: case.value()}
    report(judge(lambda: subject(table, arguments), tables=tables_in(table)))


SWAPPED = [
    pytest.param(function, subject, id=f"{subject.name}")
    for subject in SUBJECTS.values()
    if (function := getattr(getattr(sct, subject.name.partition(".")[0], None), subject.name.partition(".")[2], None))
    and len(_by_position(function)) > 1
]


@pytest.mark.parametrize(("function", "subject"), SWAPPED)
def test_swapped_arguments_are_refused_and_their_places_named(function, subject: Subject, report):
    """First for second, and where there is a third, second for third."""
    places = _by_position(function)
    given = {places[0]: subject.table()} | dict.fromkeys(places[1:])
    given |= {name: value for name, value in subject.good().items() if name in places}
    if "model" in places and given["model"] is None:
        given["model"] = inputs.embedder()
    values = [given[name] for name in places]
    by_name = {name: value for name, value in subject.good().items() if name not in places}
    for first in range(len(places) - 1):
        order = list(values)
        order[first], order[first + 1] = order[first + 1], order[first]
        # Two tables of cells are each in a right place.
        if order[first] is not values[first] and len(tables_in(*order[first : first + 2])) < 2:
            report(judge(lambda order=order: function(*order, **by_name), tables=[values[0]]))


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
    # The one draws a report of `match_genes`, not a table; the other needs cell-eval2.
    assert public - set(SUBJECTS) == {"pl.coverage", "tl.score_challenge"}


def test_every_parameter_has_a_kind():
    for subject in SUBJECTS.values():
        for name in subject.parameters():
            assert kind_of(subject, name), (
                f"Expected a kind for `{name}` of {subject.name} in tests/campaign/arguments.py."
            )
