"""Which terms, and with which weights, the originals trained each task with.

A recipe is where a task starts; whoever trains may change its list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools.objectives.cells import BatchAdversary, CellTargets, CellType, ElasticSimilarity
from scgpt_tools.objectives.expression import (
    MaskedExpression,
    MaskedExpressionFromCell,
    PerturbedExpression,
    RegeneratedExpression,
    ZeroLikelihood,
    ZeroLikelihoodFromCell,
)

if TYPE_CHECKING:
    from scgpt_tools.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The terms of a task and where their weights come from."""

    objectives: tuple[Objective, ...]
    source: str


PRETRAIN = Recipe(
    objectives=(
        MaskedExpression(),
        MaskedExpressionFromCell(),
        # Before that the cell embedding means nothing yet.
        RegeneratedExpression(from_step=1000),
    ),
    source="scGPT's pre-training branch: generated tokens, the same from the cell, and from step 1000 a second pass",
)

ANNOTATE = Recipe(
    objectives=(CellType(),),
    source="scGPT's tutorial on annotation: cross-entropy only, every other switch off",
)

REGRESS = Recipe(
    objectives=(CellTargets(),),
    source="squared error, as scModelForge's head for regression; the rest as for classes",
)

INTEGRATE = Recipe(
    objectives=(
        MaskedExpression(),
        ZeroLikelihood(),
        MaskedExpressionFromCell(),
        ZeroLikelihoodFromCell(),
        # The factor 10 stands in the original's training loop, not among its settings.
        ElasticSimilarity(weight=10.0, threshold=0.8),
        BatchAdversary(weight=1.0),
    ),
    source="scGPT's tutorial on the integration of PBMC 10k",
)

MULTIOMIC = Recipe(
    objectives=(MaskedExpression(), MaskedExpressionFromCell(), BatchAdversary(weight=1.0)),
    source="scGPT's tutorial on CITE-seq of bone marrow",
)

PERTURB = Recipe(
    objectives=(PerturbedExpression(),),
    source="scGPT's tutorial on perturbations: squared error at every gene, nothing else",
)

RECIPES: dict[str, Recipe] = {
    "pretrain": PRETRAIN,
    "annotate": ANNOTATE,
    "regress": REGRESS,
    "integrate": INTEGRATE,
    "multiomic": MULTIOMIC,
    "perturb": PERTURB,
}
