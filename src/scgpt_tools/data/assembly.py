"""One token batch from the batches of several tables, in the order that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgpt_tools.tokens.batch import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def assemble(parts: Sequence[TokenBatch], cells: NDArray[np.int64], padding: Mapping[str, float]) -> TokenBatch:
    """Stack token batches, whose ``index`` together holds the cells, and put their cells in order.

    A cell drawn twice stands in two places, which are alike.
    """
    if len(parts) == 1 and np.array_equal(parts[0].require("index").numpy(), cells):
        return parts[0]
    batch = TokenBatch.stacked(parts, padding)
    index = batch.require("index").numpy()
    order = np.argsort(index, kind="stable")
    return batch.select(torch.from_numpy(order[np.searchsorted(index, cells, sorter=order)]))
