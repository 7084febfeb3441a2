"""Loss terms: they see outputs and batches, never models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scgpt_tools.config import from_dict
from scgpt_tools.objectives.base import Objective, View, Views
from scgpt_tools.objectives.bins import MaskedBins
from scgpt_tools.objectives.cells import BatchAdversary, CellTargets, CellType, ContrastiveCells, ElasticSimilarity
from scgpt_tools.objectives.expression import (
    MaskedExpression,
    MaskedExpressionFromCell,
    PerturbedExpression,
    RegeneratedExpression,
    ZeroLikelihood,
    ZeroLikelihoodFromCell,
)
from scgpt_tools.objectives.genes import MaskedGenes, MaskedGenesFromCell
from scgpt_tools.objectives.recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "OBJECTIVES",
    "RECIPES",
    "BatchAdversary",
    "CellTargets",
    "CellType",
    "ContrastiveCells",
    "ElasticSimilarity",
    "MaskedBins",
    "MaskedExpression",
    "MaskedExpressionFromCell",
    "MaskedGenes",
    "MaskedGenesFromCell",
    "Objective",
    "PerturbedExpression",
    "Recipe",
    "RegeneratedExpression",
    "View",
    "Views",
    "ZeroLikelihood",
    "ZeroLikelihoodFromCell",
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
        MaskedGenes,
        MaskedGenesFromCell,
        MaskedBins,
        CellType,
        CellTargets,
        ContrastiveCells,
        ElasticSimilarity,
        BatchAdversary,
    )
}
Objective.kinds = OBJECTIVES


def check_objectives(objectives: Sequence[Objective | Mapping[str, Any]]) -> tuple[Objective, ...]:
    """Loss terms, also as plain values with the ``name`` of each, as files hold them.

    Raises
    ------
    TypeError
        If one is no loss term.
    ValueError
        For an unknown name or field, and for lists that have no term with a weight, none to begin with, or the same term
        twice.
    """
    if isinstance(objectives, str | Mapping) or not isinstance(objectives, Iterable):
        raise TypeError(f"Expected `objectives` to be a list of loss terms, found {type(objectives).__name__}.")
    terms = []
    for place, objective in enumerate(objectives):
        if not isinstance(objective, Objective | Mapping):
            raise TypeError(
                f"Expected `objectives[{place}]` to be a loss term such as MaskedExpression(), found {objective!r}."
            )
        terms.append(
            objective
            if isinstance(objective, Objective)
            else from_dict(Objective, objective, where=f"objectives[{place}]")  # type: ignore[type-abstract]
        )
    names = [objective.name for objective in terms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expected every objective once, found {twice} more often; add up their weights.")
    if not any(objective.weight for objective in terms):
        raise ValueError(f"Expected at least one objective with a weight above 0, found none among {names}.")
    if all(objective.from_step for objective in terms if objective.weight):
        raise ValueError(f"Expected an objective that counts from the first step, found later ones only: {names}.")
    return tuple(terms)
