"""One set of weights in two networks: scGPT's tree of parts, and :class:`~scgpt_tools.models.CellModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from scgpt_tools.models.formats.scgpt import module_names
from scgpt_tools.models.scgpt.layers import SharedAttention

if TYPE_CHECKING:
    from torch import nn

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.scgpt.layers import SelfAttention


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
    """
    shared: dict[str, nn.Module] = {}
    for number, block in enumerate(cells.encoder.blocks):
        name = f"transformer_encoder.layers.{number}.self_attn"
        shared[name] = attention = cast("SelfAttention", tree.get_submodule(name))
        block.attention = SharedAttention(attention)
    for ours, theirs in module_names(_with_tensors(cells)).items():
        shared[theirs] = tree.get_submodule(theirs)
        parent, _, name = ours.rpartition(".")
        setattr(cells.get_submodule(parent), name, shared[theirs])
    return shared


def check_joined(shared: dict[str, nn.Module], tree: nn.Module) -> None:
    """Refuse parts that were replaced since.

    Raises
    ------
    ValueError
        Naming them.
    """
    replaced = [name for name, part in shared.items() if _part(tree, name) is not part]
    if replaced:
        raise ValueError(
            f"Expected the parts that the network was built with, found others at {', '.join(replaced[:4])}"
            f"{', ...' if len(replaced) > 4 else ''}. `cell_model` knows only those of its configuration: merge adapters "
            "first, or build the network with what it should have, such as `n_cls`."
        )


def _with_tensors(cells: CellModel) -> list[str]:
    """Names of parts that hold tensors themselves, but for attention."""
    return [
        name
        for name, part in cells.named_modules()
        if (part._parameters or part._buffers) and ".attention." not in name
    ]


def _part(tree: nn.Module, name: str) -> nn.Module | None:
    try:
        return tree.get_submodule(name)
    except AttributeError:
        return None
