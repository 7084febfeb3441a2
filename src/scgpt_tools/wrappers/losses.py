"""PerturbLab's names of loss terms, and what they are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgpt_tools.nn.output import CellOutput
from scgpt_tools.objectives import (
    BatchAdversary,
    CellType,
    ContrastiveCells,
    ElasticSimilarity,
    MaskedExpression,
    MaskedExpressionFromCell,
    ZeroLikelihood,
)
from scgpt_tools.tokens.batch import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgpt_tools.objectives import Objective, Views
    from scgpt_tools.wrappers.batches import BatchDict
    from scgpt_tools.wrappers.config import scGPTConfig

Terms = dict[str, "Objective"]

LABELS, BATCHES = "celltype_labels", "batch_labels"

_PREDICTIONS = {
    "mlm_output": "expression",
    "mlm_zero_probs": "expression_nonzero",
    "mvc_output": "expression_from_cell",
    "cls_output": "cell_type",
    "dab_output": "batch",
}


def terms_of(config: scGPTConfig, *, masked: bool, labels: bool, CCE: bool, MVC: bool, ECS: bool) -> Terms:
    """Weighted terms of the loss of a model of cells.

    ``masked``: whether values are hidden, without which the heads of expression have nothing to predict.
    """
    terms: Terms = {}
    if masked:
        terms["loss_mse"] = MaskedExpression()
    if masked and config.explicit_zero_prob:
        terms["loss_zero_prob"] = ZeroLikelihood()
    if masked and MVC:
        terms["loss_gepc"] = MaskedExpressionFromCell()
    if labels:
        terms["loss_cls"] = CellType()
    if CCE:
        terms["loss_cce"] = ContrastiveCells()
    if ECS:
        terms["loss_ecs"] = ElasticSimilarity(weight=config.ecs_loss_weight, threshold=config.ecs_threshold)
    if config.do_dab:
        terms["loss_dab"] = BatchAdversary(weight=config.dab_weight)
    return terms


def losses_of(terms: Terms, output: Mapping[str, Tensor], batch: TokenBatch) -> dict[str, Tensor]:
    """Compute terms from a dictionary of outputs.

    ``output``: results of ``forward``; a term that is among them is not computed again.
    """
    if not terms:
        raise ValueError(
            "Expected something to learn, found no hidden values, labels or other terms. Pass `mask_ratio` above 0 to "
            "`prepare_dataloader`."
        )
    if "loss_cce" in terms and "loss_cce" not in output:
        raise ValueError("Expected `loss_cce` among the outputs, found none. Call `forward` with CCE=True.")
    predictions = {ours: output[theirs] for theirs, ours in _PREDICTIONS.items() if theirs in output}
    # No term reads the token embeddings, which scGPT's outputs do not hold.
    nothing = torch.empty(0)
    cell = output.get("cell_emb", nothing)
    views: Views = {"first": CellOutput(tokens=nothing, cell=cell, predictions=predictions)}
    losses = {
        name: term.weight * (output[name] if name in output else term(views, batch)) for name, term in terms.items()
    }
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def batch_of(data: BatchDict, *, mask_value: float) -> TokenBatch:
    """A dictionary of tensors as a minibatch of this package, hidden where the network saw ``mask_value``."""
    mask = ~data["src_key_padding_mask"]
    shown = data.get("masked_values", data["values"])
    target = data.get("target_values")
    return TokenBatch(
        genes=data["src"],
        values=shown,
        mask=mask,
        batch_id=data.get(BATCHES),
        label=data.get(LABELS),
        perturbed=data.get("input_pert_flags"),
        target=target,
        hidden=None if target is None else (shown == mask_value) & mask,
    )
