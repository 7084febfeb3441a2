"""One token batch from the batches of several tables, in the order that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import TokenizerConfig


def assemble(
    parts: Sequence[TokenBatch], cells: NDArray[np.int64], *, pad_id: int, config: TokenizerConfig
) -> TokenBatch:
    """Stack token batches and put their cells in order.

    Parameters
    ----------
    parts
        Batches whose ``index`` together holds the cells.
    cells
        Cell numbers in the order to return.
    pad_id
        Token id of padding.
    config
        Where the value and the modality of padding come from.

    Returns
    -------
    One batch, as wide as its widest part.
    """
    if len(parts) == 1 and np.array_equal(parts[0].require("index").numpy(), cells):
        return parts[0]
    width = max(part.genes.shape[1] for part in parts)
    pad_modality = config.modalities.index("<pad>") if config.modalities else 0
    padding = {"genes": pad_id, "values": config.pad_value, "mask": False, "modality": pad_modality}
    fields = {
        name: torch.cat([_widened(getattr(part, name), width, filler) for part in parts])
        for name, filler in padding.items()
        if getattr(parts[0], name) is not None
    }
    for name in ("index", "expressed"):
        if getattr(parts[0], name) is not None:
            fields[name] = torch.cat([part.require(name) for part in parts])
    index = fields["index"]
    return parts[0].replace(**fields).select(_places(index.numpy(), cells))


def _widened(tensor: Tensor, width: int, filler: float) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=filler)


def _places(index: NDArray[np.int64], cells: NDArray[np.int64]) -> Tensor:
    """Where each cell stands; a cell drawn twice stands in two places, which are alike."""
    order = np.argsort(index, kind="stable")
    return torch.from_numpy(order[np.searchsorted(index, cells, sorter=order)])
