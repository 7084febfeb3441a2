"""Walk through the rows of a table with a model: blocks of rows, buckets of like length, one result a cell.

Memory holds one block of rows and one minibatch, whatever the size of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F

from scgpt_tools.data.prefetch import prefetched
from scgpt_tools.data.samplers import length_buckets
from scgpt_tools.models.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.data.rows import Rows
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.nn.heads import ClassifierHead
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.tokenizer import Tokenizer

CellPooling = Literal["cls", "mean", "weighted"]

# Longest cells first within a block needs many cells to choose from; 4096 rows of counts are some 40 MB.
BLOCK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """How to walk through a table; the same for every cell."""

    tokenizer: Tokenizer
    features: FeatureTable
    batch_size: int
    seed: int
    precision: str
    prebinned: bool = False
    """Take values as :func:`scgpt_tools.pp.tokenize` wrote them."""
    batch: NDArray[np.int64] | None = None
    """(cells,) technical batch of each cell, for models that treat each by itself."""


def computed_rows(
    model: CellModel, source: Rows, plan: RowPlan, compute: Callable[[TokenBatch], Tensor]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Compute something for every row of a table.

    Parameters
    ----------
    model
        In eval mode, on its device.
    source
        The table.
    plan
        How to walk.
    compute
        From a batch on the CPU to (b, width) results, such as :func:`cell_embeddings` of the model.

    Yields
    ------
    Row numbers (b,) and their results (b, width), in the order of computing: by blocks, within one by length.

    Raises
    ------
    ValueError
        If a result is not finite.
    """
    _keep_freed_memory()
    with torch.inference_mode(), autocast(plan.precision, model.device):
        for batch in prefetched(_batches(source, plan)):
            rows, values = batch.require("index").numpy(), compute(batch).float().cpu().numpy()
            _refuse_strange(values, rows, source, plan)
            yield rows, values


def cell_embeddings(
    model: CellModel,
    batch: TokenBatch,
    *,
    pooling: CellPooling = "cls",
    normalize: bool = True,
    attention: str | None = None,
) -> Tensor:
    """Embed cells.

    Parameters
    ----------
    model
        In eval mode.
    batch
        Cells.
    pooling
        How the tokens of a cell become one vector.
    normalize
        Scale each embedding to unit length.
    attention
        Backend; ``None`` for the fastest.

    Returns
    -------
    (B, D) float32.
    """
    cells = model.embed_cells(batch, attention=attention, pooling=pooling).float()
    return F.normalize(cells, dim=1) if normalize else cells


def class_probabilities(model: CellModel, batch: TokenBatch, *, attention: str | None = None) -> Tensor:
    """Classify cells with the head ``cell_type``.

    Parameters
    ----------
    model
        In eval mode, with that head.
    batch
        Cells.
    attention
        Backend; ``None`` for the fastest.

    Returns
    -------
    (B, C) float32 probabilities.
    """
    head = cast("ClassifierHead", model.heads["cell_type"])
    # The head reads the cell embedding alone, so the last layer need not compute the other tokens.
    return head.logits(model.embed_cells(batch, attention=attention)).float().softmax(dim=1)


def _refuse_strange(values: NDArray[np.float32], rows: NDArray[np.int64], source: Rows, plan: RowPlan) -> None:
    """No result that is not a number gets past the walk, whatever the task."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(
            f"Expected finite results, found NaN or infinite numbers for {int(bad.sum())} of {len(rows)} cells in the "
            f"first minibatch that has such (first: {str(source.names[rows[bad.argmax()]])!r}). The weights may be "
            f"damaged, or numbers may have grown too large for {plan.precision!r}: load the model anew, or pass "
            "precision='fp32'."
        )


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to 64 MiB, for what is needed next.

    By default glibc gives large blocks back to the system at once, and each new one comes again page by page, a tenth of
    the time in bf16.  It learns to keep blocks as large as those that it has seen freed, 32 MiB at most; hence one of
    about that size, which is never touched.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _batches(source: Rows, plan: RowPlan) -> Iterator[TokenBatch]:
    for block in source.blocks(BLOCK_ROWS):
        lengths = plan.tokenizer.lengths(block.X, plan.features)
        for rows in length_buckets(lengths, batch_size=plan.batch_size):
            batch = plan.tokenizer(
                block.X,
                plan.features,
                source.keys[block.index],
                rng=plan.seed,
                rows=rows,
                index=block.index,
                prebinned=plan.prebinned,
            )
            yield batch if plan.batch is None else batch.replace(batch=torch.from_numpy(plan.batch[block.index[rows]]))
