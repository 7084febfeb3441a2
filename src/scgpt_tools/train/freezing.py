"""Which parts of a model are trained, and from which epoch on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from scgpt_tools._validate import check_choice, check_integer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.train.lora import LoraConfig

Freeze: TypeAlias = Literal["nothing", "embedder", "backbone"]
"""Parts that keep their weights: none; the gene and value embeddings, as scGPT's option; or all but what the task brings
(:attr:`~scgpt_tools.CellModel.by_task`)."""


def release_of(unfreeze_every: int | None, unfreeze_after: int | None) -> str | None:
    """Name of the argument that releases frozen parts later, if there is one."""
    if unfreeze_every is not None:
        return "unfreeze_every"
    return None if unfreeze_after is None else "unfreeze_after"


def check_freezing(
    freeze: Freeze,
    lora: LoraConfig | None,
    unfreeze_every: int | None = None,
    unfreeze_after: int | None = None,
) -> None:
    """Refuse what does not go together, before anything is opened."""
    check_choice("freeze", freeze, get_args(Freeze))
    if unfreeze_every is not None and unfreeze_after is not None:
        raise ValueError(
            f"Expected `unfreeze_every`, part by part, or `unfreeze_after`, all at once, found {unfreeze_every} and "
            f"{unfreeze_after}."
        )
    for name, epochs in (("unfreeze_every", unfreeze_every), ("unfreeze_after", unfreeze_after)):
        if epochs is not None:
            check_integer(name, epochs)
            if freeze != "backbone":
                raise ValueError(f"`{name}` goes with freeze='backbone' only, found {freeze=}.")
    if lora is not None and freeze != "nothing":
        raise ValueError(f"`lora` freezes the backbone itself and goes with freeze='nothing' only, found {freeze=}.")


@contextmanager
def frozen(model: CellModel, freeze: Freeze) -> Iterator[None]:
    """Freeze parts of a model for the length of a ``with`` block; after it, all are trainable.

    ``model``: the model; changed in place.
    """
    hold(model, freeze)
    try:
        yield
    finally:
        model.requires_grad_()


def hold(model: CellModel, freeze: Freeze) -> None:
    """Freeze parts of a model, and train all others.

    ``model``: the model; changed in place.
    """
    held = {"nothing": None, "embedder": model.embedder, "backbone": model}[freeze]
    model.requires_grad_()
    if held is not None:
        held.requires_grad_(requires_grad=False)
        for part in model.by_task:
            part.requires_grad_()


def stages(model: CellModel) -> list[list[nn.Parameter]]:
    """Parameters in the order in which gradual unfreezing releases them.

    What the task brings and what the encoder has beside its stages, then each stage of the encoder from the last to the
    first, then the rest of the embedder.
    """
    layers = [list(stage.parameters()) for stage in reversed(model.encoder.stages)]
    staged = {id(parameter) for layer in layers for parameter in layer}
    brought = [parameter for part in model.by_task for parameter in part.parameters()]
    beside = [parameter for parameter in model.encoder.parameters() if id(parameter) not in staged]
    new = {id(parameter) for parameter in brought}
    rest = [parameter for parameter in model.embedder.parameters() if id(parameter) not in new]
    return [[*brought, *beside], *layers, rest]


def release(model: CellModel, stage: int) -> None:
    """Train the parts up to a stage and hold the others.

    ``model``: the model; changed in place.
    """
    for number, parameters in enumerate(stages(model)):
        for parameter in parameters:
            parameter.requires_grad = number <= stage
