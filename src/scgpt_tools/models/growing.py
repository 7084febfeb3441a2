"""Heads that are told more than before start where they were.

A head that gets a context (batch, modality) has wider maps.  What they did with the token, the gene and the cell is kept
and the context adds nothing at first, so the wider model predicts what the narrow one did until it has learnt more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.models.cell_model import CellModel

_FIRST_MAPS = ("heads.expression.value.0.weight", "heads.expression.nonzero.0.weight")
_QUERY = "heads.expression_from_cell.query."
_PRODUCTS = ("heads.expression_from_cell.product.weight", "heads.expression_from_cell.nonzero.weight")
_OFFSET = "heads.expression_from_cell.nonzero.bias"


def keep_narrow_heads(narrow: CellModel, wide: CellModel) -> list[str]:
    """Copy maps of expression heads into wider ones.

    Parameters
    ----------
    narrow
        The model before.
    wide
        The model after; its weights change.

    Returns
    -------
    Names of the tensors that were filled; none where nothing became wider.
    """
    ours, theirs = narrow.state_dict(), wide.state_dict()
    wider = {
        key: (ours[key], tensor)
        for key, tensor in theirs.items()
        if key in ours and key.startswith("heads.") and ours[key].shape != tensor.shape
    }
    filled = []
    with torch.no_grad():
        for key, (old, new) in wider.items():
            if key in (*_FIRST_MAPS, *_PRODUCTS, _OFFSET):
                _place(old, new)
            elif key.startswith(_QUERY) and _fits(old, new):
                # Rows of the context stay as they were drawn: nothing reads them yet, and they can learn.
                kept = new[len(old) :].clone()
                _place(old, new)
                new[len(old) :] = kept
            else:
                continue
            filled.append(key)
    if wide.transfer is not None:
        wide.transfer = wide.transfer.grown(filled)
    return filled


def _place(old: Tensor, new: Tensor) -> None:
    """Old numbers in the first corner of the new tensor, zero elsewhere."""
    if not _fits(old, new):
        return
    new.zero_()
    new[tuple(slice(size) for size in old.shape)] = old


def _fits(old: Tensor, new: Tensor) -> bool:
    return old.dim() == new.dim() and all(a <= b for a, b in zip(old.shape, new.shape, strict=True))
