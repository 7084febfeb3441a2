"""Which parts of a model are trained, and from which epoch on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from scgpt_tools.models.cell_model import CellModel

Freeze: TypeAlias = Literal["nothing", "embedder", "backbone"]
"""Parts that keep their weights: none; the gene and value embeddings, as scGPT's option; or all but heads and context."""

NEW = ("heads.", "context.")
"""Where the parts are that a task brings with it."""


@contextmanager
def frozen(model: CellModel, freeze: Freeze) -> Iterator[None]:
    """Freeze parts of a model for the length of a ``with`` block; after it, all are trainable.

    Parameters
    ----------
    model
        The model; changed in place.
    freeze
        Which parts.
    """
    for name, parameter in model.named_parameters():
        held = {
            "nothing": False,
            "embedder": name.startswith("embedder."),
            "backbone": not name.startswith(NEW),
        }[freeze]
        parameter.requires_grad = not held
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad = True


def stages(model: CellModel) -> list[list[nn.Parameter]]:
    """Parameters in the order in which gradual unfreezing releases them.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    Heads and context, then each layer of the encoder from the last to the first, then the embedder.
    """
    new = [*model.heads.parameters(), *model.context.parameters()]
    layers = [list(block.parameters()) for block in reversed(list(model.encoder.blocks))]
    return [new, *layers, list(model.embedder.parameters())]


def release(model: CellModel, stage: int) -> None:
    """Train the parts up to a stage and hold the others.

    Parameters
    ----------
    model
        The model; changed in place.
    stage
        Last stage to train, 0 for heads and context only.
    """
    for number, parameters in enumerate(stages(model)):
        for parameter in parameters:
            parameter.requires_grad = number <= stage
