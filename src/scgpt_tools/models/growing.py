"""Heads that are given more than before start where they were.

A head that gets a context (batch, modality) has wider maps.  What they did with the token, the gene and the cell is kept
and the context adds nothing at first, so the wider model predicts what the narrow one did until it has learnt more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.models.cell_model import CellModel


def keep_narrow_heads(narrow: CellModel, wide: CellModel) -> list[str]:
    """Copy maps of expression heads into wider ones.

    ``wide``: the model after; its weights change.  Returns names of the tensors that were filled; none where nothing
    became wider.
    """
    filled = []
    with torch.no_grad():
        for name, head in wide.heads.items():
            before = narrow.heads[name].state_dict() if name in narrow.heads else {}
            for key, new in head.state_dict().items():
                old = before.get(key)
                if key not in getattr(head, "widened", ()) or old is None or not _larger(old, new):
                    continue
                drawn = new[len(old) :].clone()
                _place(old, new)
                if key in getattr(head, "drawn", ()):
                    new[len(old) :] = drawn
                filled.append(f"heads.{name}.{key}")
    if wide.transfer is not None:
        wide.transfer = wide.transfer.grown(filled)
    return filled


def _place(old: Tensor, new: Tensor) -> None:
    """Old numbers in the first corner of the new tensor, zero elsewhere."""
    new.zero_()
    new[tuple(slice(size) for size in old.shape)] = old


def _larger(old: Tensor, new: Tensor) -> bool:
    there = old.dim() == new.dim() and all(a <= b for a, b in zip(old.shape, new.shape, strict=True))
    return there and old.shape != new.shape
