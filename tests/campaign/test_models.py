"""Every function that takes a model, with everything that can be wrong with a model in memory."""

from __future__ import annotations

import pytest
import torch

from campaign.models import DamagedModel, damaged
from campaign.sampling import chosen
from campaign.subjects import expected, tables_in
from campaign.verdicts import Outcome, Verdict, difference, judge, not_finite


@pytest.mark.parametrize("case", chosen(damaged()))
def test_a_damaged_model_is_refused_or_does_not_matter(case: DamagedModel, report):
    subject = case.subject
    table, arguments = subject.table(), subject.good() | {"model": case.model()}
    modes = modes_of(arguments["model"])
    accept = {
        "refuse": None,
        "same": lambda found: difference(expected(subject.name), found, tolerance=1e-3),
        "finite": lambda found: "" if not_finite(expected(subject.name)) else not_finite(found),
    }[case.answer]
    found = judge(
        lambda: subject(table, arguments), tables=tables_in(table, arguments), accept=accept, warning_is_enough=True
    )
    if modes_of(arguments["model"]) != modes:
        found = Verdict(Outcome.CHANGED, "the model is in another mode than before")
    report(found)


def modes_of(model: object) -> list[bool]:
    return [part.training for part in model.modules()] if isinstance(model, torch.nn.Module) else []
