"""One set of weights in two networks: scGPT's tree of parts, and :class:`~scgpt_tools.models.CellModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from scgpt_tools.models.formats.scgpt import module_names
from scgpt_tools.models.scgpt.layers import SelfAttention, SharedAttention, StackedMaps

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn

    from scgpt_tools.models.cell_model import CellModel


def join(cells: CellModel, tree: nn.Module) -> dict[str, nn.Module]:
    """Make a network of ours use the parts of scGPT's, which has the same configuration.

    Parameters
    ----------
    cells
        Our network; its weights are replaced.
    tree
        scGPT's.

    Returns
    -------
    The shared parts by scGPT's name.

    Raises
    ------
    ValueError
        If a part of scGPT's is not what the configuration says.
    """
    names = module_names(name for name, part in cells.named_modules() if _tensors(part) and ".attention." not in name)
    stacks = [f"transformer_encoder.layers.{number}.self_attn" for number in range(len(cells.encoder.stages))]
    _refuse(
        [name for name in stacks if not isinstance(_part(tree, name), SelfAttention)]
        + [theirs for ours, theirs in names.items() if _tensors(_part(tree, theirs)) != _tensors(_part(cells, ours))]
    )
    shared = {name: tree.get_submodule(name) for name in (*stacks, *names.values())}
    for block, name in zip(cells.encoder.stages, stacks, strict=True):
        block.attention = SharedAttention(cast("SelfAttention", shared[name]))
    for ours, theirs in names.items():
        parent, _, name = ours.rpartition(".")
        setattr(cells.get_submodule(parent), name, shared[theirs])
    return shared


def check_joined(shared: dict[str, nn.Module], tree: nn.Module) -> None:
    """Refuse parts that were replaced since, by name.

    Parameters
    ----------
    shared
        What :func:`join` returned.
    tree
        scGPT's network.
    """
    _refuse(
        name
        for name, part in shared.items()
        if _part(tree, name) is not part or (isinstance(part, SelfAttention) and type(part.Wqkv) is not StackedMaps)
    )


def _refuse(names: Iterable[str]) -> None:
    names = list(names)
    if names:
        raise ValueError(
            f"Expected the parts that the network was built with, found others at {', '.join(names[:4])}"
            f"{', ...' if len(names) > 4 else ''}. `cell_model` knows only those of its configuration: merge adapters "
            "first, or build the network with what it should have, such as `n_cls`."
        )


def _part(tree: nn.Module, name: str) -> nn.Module | None:
    try:
        return tree.get_submodule(name)
    except AttributeError:
        return None


def _tensors(part: nn.Module | None) -> dict[str, torch.Size]:
    """Shapes of the tensors that a part holds itself."""
    if part is None:
        return {}
    held = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    return {name: tensor.shape for name, tensor in held}
