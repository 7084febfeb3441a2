"""Loss terms: they see outputs and batches, never models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import lookup
from scgpt_tools.config import from_dict
from scgpt_tools.objectives.base import Objective, View, Views
from scgpt_tools.objectives.cells import BatchAdversary, CellType, ContrastiveCells, ElasticSimilarity
from scgpt_tools.objectives.expression import (
    MaskedExpression,
    MaskedExpressionFromCell,
    PerturbedExpression,
    RegeneratedExpression,
    ZeroLikelihood,
    ZeroLikelihoodFromCell,
)
from scgpt_tools.objectives.recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "OBJECTIVES",
    "RECIPES",
    "BatchAdversary",
    "CellType",
    "ContrastiveCells",
    "ElasticSimilarity",
    "MaskedExpression",
    "MaskedExpressionFromCell",
    "Objective",
    "PerturbedExpression",
    "Recipe",
    "RegeneratedExpression",
    "View",
    "Views",
    "ZeroLikelihood",
    "ZeroLikelihoodFromCell",
    "build_objectives",
    "check_objectives",
]

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        MaskedExpression,
        MaskedExpressionFromCell,
        RegeneratedExpression,
        ZeroLikelihood,
        ZeroLikelihoodFromCell,
        PerturbedExpression,
        CellType,
        ContrastiveCells,
        ElasticSimilarity,
        BatchAdversary,
    )
}


def build_objectives(specs: Sequence[Mapping[str, Any]]) -> tuple[Objective, ...]:
    """Build terms from plain values, as a configuration file holds them.

    Parameters
    ----------
    specs
        For each term its ``name`` and the fields that are not to keep their default.

    Returns
    -------
    The terms in the same order.

    Raises
    ------
    ValueError
        For an unknown name or field, a term without name, or one that occurs twice.
    """
    objectives = []
    for place, spec in enumerate(specs):
        if not isinstance(spec, Mapping):
            raise TypeError(f"Expected `objectives[{place}]` to be a mapping with a `name`, found {spec!r}.")
        if "name" not in spec:
            raise ValueError(f"Expected `objectives[{place}]` to have a `name`, found only {list(spec)}.")
        kind = lookup(OBJECTIVES, spec["name"], "objective")
        fields = {key: value for key, value in spec.items() if key != "name"}
        objectives.append(from_dict(kind, fields, where=f"objectives[{place}]"))
    return check_objectives(objectives)


def check_objectives(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """Refuse lists that have no term with a weight, none to begin with, or the same term twice."""
    if isinstance(objectives, str | Mapping) or not isinstance(objectives, Iterable):
        raise TypeError(f"Expected `objectives` to be a list of loss terms, found {type(objectives).__name__}.")
    for place, objective in enumerate(objectives := list(objectives)):
        if not isinstance(objective, Objective):
            raise TypeError(
                f"Expected `objectives[{place}]` to be a loss term such as MaskedExpression(), found {objective!r}. Terms as "
                "plain values go through `build_objectives`."
            )
    names = [objective.name for objective in objectives]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expected every objective once, found {twice} more often; add up their weights.")
    if not any(objective.weight for objective in objectives):
        raise ValueError(f"Expected at least one objective with a weight above 0, found none among {names}.")
    if all(objective.from_step for objective in objectives if objective.weight):
        raise ValueError(f"Expected an objective that counts from the first step, found later ones only: {names}.")
    return tuple(objectives)
