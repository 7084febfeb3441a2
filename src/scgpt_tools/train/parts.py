"""What a model needs for the loss terms, classes, batches and tokens of a task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scgpt_tools.models.config import (
    AdversaryConfig,
    ClassifierConfig,
    ExpressionConfig,
    FromCellConfig,
    HeadConfig,
    ModelConfig,
    Named,
    RegressorConfig,
)
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS
from scgpt_tools.train.starting import modality_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.tokenizer import TokenizerConfig


def needs_hidden_values(objectives: Sequence[Objective]) -> bool:
    """Whether a term asks for values that the network must not see."""
    return any(head.startswith(("expression", "bins")) for objective in objectives for head in objective.heads)


def with_heads(config: ModelConfig, objectives: Sequence[Objective]) -> ModelConfig:
    """Add heads that loss terms read and that every family can have, whatever else it predicts."""
    read = {head for objective in objectives for head in objective.heads}
    if "genes_from_cell" not in read or "genes_from_cell" in config.heads:
        return config
    head = ClassifierConfig(classes=config.n_tokens, layers=2, activation="gelu")
    return replace(config, heads=config.heads.replace(genes_from_cell=head))


def parts_for(
    config: ModelConfig,
    objectives: Sequence[Objective],
    *,
    classes: tuple[str, ...] | None,
    batches: tuple[str, ...] | None,
    batch_parts: bool,
    batch_norm: bool = True,
    regressor: RegressorConfig | None = None,
    tokenizer: TokenizerConfig,
    dropout: float | None = None,
) -> dict[str, Any]:
    """Fields of a model's configuration that a task changes, as arguments of :meth:`~scgpt_tools.models.CellModel.adapt`.

    ``batch_parts`` add an embedding of each batch for the expression heads, and with ``batch_norm`` a norm for each.
    """
    heads = _heads(with_heads(config, objectives).heads, objectives, classes, batches, regressor)
    if tokenizer.parts and not config.tokenizer.parts:
        heads = _without_untaught(heads, objectives)
    changes: dict[str, Any] = {"heads": heads, "tokenizer": tokenizer}
    if tokenizer.parts:
        config = modality_config(replace(config, heads=heads), tokenizer)
        changes = {name: getattr(config, name) for name in ("family", "embedder", "context", "heads", "tokenizer")}
    if dropout is not None:
        changes["encoder"] = replace(config.encoder, dropout=dropout)
    if batches is not None:
        changes["batch_names"] = batches
    if batch_parts and batches is not None:
        changes["context"] = replace(config.context, batches=len(batches))
    if batch_parts and batch_norm and batches is not None:
        changes |= {"embedder": replace(config.embedder, norm="domain"), "domains": len(batches)}
    return changes


def _without_untaught(heads: Named[HeadConfig], objectives: Sequence[Objective]) -> Named[HeadConfig]:
    """Without the heads for expression that no term teaches the new modalities, of which they would say nothing."""
    taught = {head for objective in objectives if objective.weight > 0 for head in objective.heads}
    untaught = {"expression", "expression_from_cell"} - taught
    return heads.replace(**dict.fromkeys(untaught))


def _heads(
    heads: Named[HeadConfig],
    objectives: Sequence[Objective],
    classes: tuple[str, ...] | None,
    batches: tuple[str, ...] | None,
    regressor: RegressorConfig | None,
) -> Named[HeadConfig]:
    """Heads that the model has, and those that objectives read."""
    names = {objective.name for objective in objectives}
    read = {head for objective in objectives for head in objective.heads}
    # Cells of an earlier training, which lie elsewhere after this one.
    changes: dict[str, Any] = {REFERENCE_CELLS: None}
    if "bins" in read and "bins" not in heads:
        raise ValueError("Expected a model with a head of bins for the term 'masked_bins', found one without.")
    own = heads.get("expression", ExpressionConfig())
    if "zero_likelihood" in names and not (isinstance(own, ExpressionConfig) or getattr(own, "nonzero", False)):
        raise ValueError(
            "Expected a model whose head of expression says how likely a value is not zero, for the term 'zero_likelihood', "
            "found one of its family's own that does not. Pass `objectives` without that term."
        )
    # Another head of that name is a family's own.
    if "expression" in read and isinstance(own, ExpressionConfig):
        expression = heads.find("expression", ExpressionConfig) or ExpressionConfig()
        changes["expression"] = replace(expression, nonzero=expression.nonzero or "zero_likelihood" in names)
    if "expression_from_cell" in read:
        from_cell = heads.find("expression_from_cell", FromCellConfig) or FromCellConfig()
        nonzero = from_cell.nonzero or "zero_likelihood_from_cell" in names
        changes["expression_from_cell"] = replace(from_cell, nonzero=nonzero)
    if "cell_type" in read:
        if classes is None:
            raise ValueError("Expected `label_key`, the column of `obs` with the classes to learn, found None.")
        classifier = heads.find("cell_type", ClassifierConfig)
        layers = 3 if classifier is None else classifier.layers
        changes["cell_type"] = ClassifierConfig(classes=len(classes), layers=layers, names=classes)
    if "targets" in read:
        if regressor is None:
            raise ValueError(
                "Expected task='regress' with `target_keys` for the term 'cell_targets', found another task."
            )
        before = heads.find("targets", RegressorConfig)
        layers = regressor.layers if before is None else before.layers
        changes["targets"] = replace(regressor, layers=layers)
    if "batch" in read:
        if batches is None:
            raise ValueError("Expected `batch_key`, the column of `obs` with the batches to hide, found None.")
        changes["batch"] = AdversaryConfig(classes=len(batches))
    return heads.replace(**changes)
