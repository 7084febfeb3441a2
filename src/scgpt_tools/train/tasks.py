"""What fine-tuning for a task starts from: loss terms, tokens, sampling and the parts that a model needs for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from scgpt_tools.models.config import (
    AdversaryConfig,
    ClassifierConfig,
    ExpressionConfig,
    FromCellConfig,
    HeadsConfig,
    ModelConfig,
)
from scgpt_tools.objectives.recipes import ANNOTATE, INTEGRATE, MULTIOMIC, Recipe
from scgpt_tools.train.multiomic import heads_in_context, modality_parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scgpt_tools.data.epochs import Sampling
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """Defaults of a task, which the caller may change one by one."""

    recipe: Recipe
    needs: tuple[str, ...]
    """Columns of ``obs`` that have to be named: ``label``, ``batch``."""
    batch_parts: bool = False
    """Tell the expression heads the batch, and normalise each batch by itself (DSBN)."""
    batch_norm: bool = True
    """Normalise each batch by itself where there are parts for batches; otherwise the heads are told only."""
    modalities: bool = False
    """Whether the task is for a MuData only."""
    sampling: Sampling = "random"
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the tokenizer to change."""
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~scgpt_tools.train.FitConfig` to change."""


TASKS: dict[str, Task] = {
    "annotate": Task(
        recipe=ANNOTATE,
        needs=("label",),
        fit={"epochs": 10, "batch_size": 32, "lr": 1e-4},
    ),
    "integrate": Task(
        recipe=INTEGRATE,
        needs=("batch",),
        batch_parts=True,
        # A minibatch of one batch keeps similarity between cells from being similarity between batches.
        sampling="one_batch",
        # Whether a gene is zero can be asked only of tokens that may be.
        tokenizer={"genes": "all"},
        # The adversary's part of the loss is meant to rise, so the sum says nothing about progress.
        fit={"epochs": 15, "batch_size": 64, "lr": 1e-4, "monitor": "validation_masked_expression"},
    ),
    "multiomic": Task(
        recipe=MULTIOMIC,
        needs=(),
        batch_parts=True,
        batch_norm=False,
        modalities=True,
        # What a model has learnt of cells survives slow steps only; heads and context have new things to learn.
        fit={
            "epochs": 20,
            "batch_size": 32,
            "lr": 3e-4,
            "head_lr": 3e-3,
            "schedule": "cosine",
            "warmup": 0.05,
            "monitor": "validation_masked_expression",
        },  # fmt: skip
    ),
}


def needs_hidden_values(objectives: Sequence[Objective]) -> bool:
    """Whether a term asks for values that the network must not see."""
    return any(head.startswith("expression") for objective in objectives for head in objective.heads)


def parts_for(
    config: ModelConfig,
    objectives: Sequence[Objective],
    *,
    classes: tuple[str, ...] | None,
    batches: tuple[str, ...] | None,
    batch_parts: bool,
    batch_norm: bool = True,
    tokenizer: TokenizerConfig,
    dropout: float | None = None,
) -> dict[str, Any]:
    """Fields of a model's configuration that a task changes.

    Parameters
    ----------
    config
        Of the model to start from.
    objectives
        Loss terms, whose heads are added.
    classes, batches
        Names of classes and technical batches, which are kept in the configuration.
    batch_parts
        Add an embedding of each batch for the expression heads.
    batch_norm
        Add a norm for each batch as well.
    tokenizer
        How cells become tokens.
    dropout
        Probability in the encoder; ``None`` keeps it.

    Returns
    -------
    Arguments of :meth:`~scgpt_tools.CellModel.adapt`.
    """
    heads = _heads(config.heads, objectives, classes, batches)
    if tokenizer.parts and not config.tokenizer.parts:
        heads = _without_untaught(heads, objectives)
    changes: dict[str, Any] = {"heads": heads, "tokenizer": tokenizer}
    if tokenizer.parts:
        changes |= modality_parts(config, tokenizer) | {"heads": heads_in_context(heads)}
        config = replace(config, **{name: changes[name] for name in ("embedder", "context")})
    if dropout is not None:
        changes["encoder"] = replace(config.encoder, dropout=dropout)
    if batches is not None:
        changes["batch_names"] = batches
    if batch_parts and batches is not None:
        changes["context"] = replace(config.context, batches=len(batches))
    if batch_parts and batch_norm and batches is not None:
        changes |= {"embedder": replace(config.embedder, norm="domain"), "domains": len(batches)}
    return changes


def _without_untaught(heads: HeadsConfig, objectives: Sequence[Objective]) -> HeadsConfig:
    """Without the heads for expression that no term teaches the new modalities, of which they would say nothing."""
    taught = {head for objective in objectives if objective.weight > 0 for head in objective.heads}
    untaught = {"expression", "expression_from_cell"} - taught
    return replace(heads, **dict.fromkeys(untaught))


def _heads(
    heads: HeadsConfig,
    objectives: Sequence[Objective],
    classes: tuple[str, ...] | None,
    batches: tuple[str, ...] | None,
) -> HeadsConfig:
    """Heads that the model has, and those that objectives read."""
    names = {objective.name for objective in objectives}
    read = {head for objective in objectives for head in objective.heads}
    changes: dict[str, Any] = {}
    if "expression" in read:
        expression = heads.expression or ExpressionConfig()
        changes["expression"] = replace(expression, nonzero=expression.nonzero or "zero_likelihood" in names)
    if "expression_from_cell" in read:
        from_cell = heads.expression_from_cell or FromCellConfig()
        nonzero = from_cell.nonzero or "zero_likelihood_from_cell" in names
        changes["expression_from_cell"] = replace(from_cell, nonzero=nonzero)
    if "cell_type" in read:
        if classes is None:
            raise ValueError("Expected `label`, the column of `obs` with the classes to learn, found None.")
        layers = 3 if heads.cell_type is None else heads.cell_type.layers
        changes["cell_type"] = ClassifierConfig(classes=len(classes), layers=layers, names=classes)
    if "batch" in read:
        if batches is None:
            raise ValueError("Expected `batch`, the column of `obs` with the batches to hide, found None.")
        changes["batch"] = AdversaryConfig(classes=len(batches))
    return replace(heads, **changes)
