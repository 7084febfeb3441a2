"""Embed the rows of a table: blocks of rows, buckets of like length, one embedding a cell.

Memory holds one block of rows and one minibatch, whatever the size of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from scgpt_tools.data.prefetch import prefetched
from scgpt_tools.data.samplers import length_buckets
from scgpt_tools.models.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.tokenizer import Tokenizer

CellPooling = Literal["cls", "mean", "weighted"]

# Longest cells first within a block needs many cells to choose from; 4096 rows of counts are some 40 MB.
BLOCK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class EmbedPlan:
    """How to embed; the same for every cell."""

    tokenizer: Tokenizer
    features: FeatureTable
    pooling: CellPooling
    normalize: bool
    """Scale each embedding to unit length."""
    batch_size: int
    seed: int
    precision: str
    attention: str | None
    """Backend; ``None`` for the fastest."""
    prebinned: bool
    """Take values as :func:`scgpt_tools.pp.tokenize` wrote them."""


def embedded_rows(
    model: CellModel, source: RowSource, plan: EmbedPlan
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Embed every row of a table.

    Parameters
    ----------
    model
        In eval mode, on its device.
    source
        The table.
    plan
        How to do it.

    Yields
    ------
    Row numbers (b,) and their embeddings (b, dim), in the order of computing: by blocks, within one by length.
    """
    with torch.inference_mode(), autocast(plan.precision, model.device):
        for batch in prefetched(_batches(source, plan)):
            cells = model.embed_cells(batch, attention=plan.attention, pooling=plan.pooling).float()
            if plan.normalize:
                cells = F.normalize(cells, dim=1)
            yield batch.require("index").numpy(), cells.cpu().numpy()


def _batches(source: RowSource, plan: EmbedPlan) -> Iterator[TokenBatch]:
    for block in source.blocks(BLOCK_ROWS):
        lengths = plan.tokenizer.lengths(block.X, plan.features)
        for rows in length_buckets(lengths, batch_size=plan.batch_size):
            yield plan.tokenizer(
                block.X,
                plan.features,
                source.keys[block.index],
                rng=plan.seed,
                rows=rows,
                index=block.index,
                prebinned=plan.prebinned,
            )
