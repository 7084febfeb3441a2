"""Run a model over the rows of a table: blocks of rows, buckets of like length, one result a cell.

Memory holds one block of rows and one minibatch, whatever the size of the table; where a device has no memory for a
minibatch, it is computed in parts (:class:`Fitting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F

from scgpt_tools._threads import in_threads
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.prefetch import prefetched
from scgpt_tools.data.samplers import length_buckets
from scgpt_tools.models.executor import divided, divisible
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import autocast
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools._types import AttentionBackend
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.nn.heads import ClassifierHead, RegressorHead
    from scgpt_tools.nn.reference_cells import ReferenceCellsHead
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
    batch_id: NDArray[np.int64] | None = None
    """(cells,) technical batch of each cell, for models that treat each by itself."""
    attention: AttentionBackend | None = None
    """Backend; ``None`` for the fastest."""


class Computed(NamedTuple):
    """Results of a walk through a table."""

    values: NDArray[np.float32]
    """(cells, width) in the order of the table."""
    expressed: NDArray[np.int64]
    """(cells, modalities) known features above zero, -1 where a cell was not measured."""


class Fitting:
    """A function of a batch that is given half of the cells, and half of those, where a device has no memory for more.

    It remembers how many fitted, and says so once for each time that it had to take fewer.
    """

    def __init__(self, function: Callable[[TokenBatch], Tensor]) -> None:
        self.function = function
        self.most: int | None = None

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Results of all cells."""
        n = len(batch)
        if self.most is None or n <= self.most:
            try:
                return self.function(batch)
            except RuntimeError as error:
                if n == 1 or not _is_out_of_memory(error):
                    raise
            # Only now is free what the failed attempt held.
            self.most = (n + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            warn_user(
                f"Expected memory for {n} cells at once on the device, found too little; going on with {self.most}. Pass "
                f"batch_size={self.most} to begin with as many."
            )
        most = self.most
        return torch.cat([self(batch.select(slice(start, start + most))) for start in range(0, n, most)])


def _is_out_of_memory(error: RuntimeError) -> bool:
    # CUDA's libraries have words of their own for a card that is nearly full.
    said = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or "backend out of memory" in said or "ALLOC_FAILED" in said


def compute(
    model: CellModel,
    source: Rows,
    plan: RowPlan,
    function: Callable[[TokenBatch], Tensor],
    *,
    finish: Callable[[Tensor], Tensor] | None = None,
    width: int,
    show_progress: bool | None = None,
) -> Computed:
    """Run a function over all cells.

    ``function`` goes from a batch to (b, width) results, ``finish`` does what is left to do with those of a minibatch.
    """
    total = len(source)
    results = np.empty((total, width), dtype=np.float32)
    expressed = np.full((total, max(len(plan.features.spans), 1)), -1, dtype=np.int64)

    def noted(batch: TokenBatch) -> Tensor:
        expressed[batch.require("index").numpy()] = batch.require("expressed").numpy()
        return function(batch)

    with evaluating(model), settings.progress((), total=total, unit="cell", show=show_progress) as bar:
        for rows, values in computed_rows(model, source, plan, noted, finish):
            results[rows] = values
            bar.update(len(rows))
    return Computed(results, expressed)


def computed_rows(
    model: CellModel,
    source: Rows,
    plan: RowPlan,
    compute: Callable[[TokenBatch], Tensor],
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Compute something for every row of a table.

    ``compute``: from a batch on the CPU to (b, width) results, such as :func:`cell_embeddings` of the model; on a CPU
    called with parts of minibatches, in several threads; ``finish``: what is left to do with the results of a whole
    minibatch, such as :func:`class_probabilities`.  Yields row numbers (b,) and their results (b, width), in the order
    of computing: by blocks, within one by length.
    """
    _keep_freed_memory()
    with (
        torch.inference_mode(),
        autocast(plan.precision, model.device),
        in_threads(several=model.device.type == "cuda" or divisible(model), device=model.device) as run,
    ):
        # A norm that takes the label of the first cell for all has to see the minibatch as it is.
        whole = model.config.embedder.norm == "domain_of_first"
        pieces = _pieces(model, prefetched(token_batches(source, plan)), compute if whole else Fitting(compute), finish)
        for computed in run(_Piece.computed, pieces):
            if computed is not None:
                rows, values = computed
                check_results(values, source.names[rows], precision=plan.precision)
                yield rows, values


def pooling_of(config: ModelConfig, pooling: CellPooling | None) -> CellPooling:
    """How the tokens of a cell become one vector; ``None`` takes the model's own way."""
    own = "mean" if config.pooling == "mean_with_padding" else config.pooling
    chosen = own if pooling is None else pooling
    if chosen == "cls" and not config.tokenizer.cls:
        raise ValueError("Expected pooling 'mean' or 'weighted' for a model without a cell token, found 'cls'.")
    return chosen


def cell_embeddings(
    model: CellModel,
    batch: TokenBatch,
    *,
    pooling: CellPooling = "cls",
    normalize: bool = True,
    attention: str | None = None,
) -> Tensor:
    """Embed cells, (B, D) float32, by a model in eval mode; of unit length if ``normalize``."""
    cells = model.embed_cells(batch, attention=attention, pooling=pooling).float()
    return F.normalize(cells, dim=1) if normalize else cells


def class_probabilities(model: CellModel, cells: Tensor) -> Tensor:
    """(B, C) float32 probabilities from embeddings (B, D), by the head ``cell_type``, which reads these alone."""
    head = cast("ClassifierHead", model.heads["cell_type"])
    return head.logits(cells).float().softmax(dim=1)


def class_probabilities_and_distance(model: CellModel, cells: Tensor) -> Tensor:
    """(B, C + 1) float32: those, and the distance from the cells that the model keeps of its training."""
    head = cast("ReferenceCellsHead", model.heads["reference_cells"])
    with torch.autocast(cells.device.type, enabled=False):  # small differences of numbers near 1
        distances = head.distances(cells)
    return torch.cat((class_probabilities(model, cells), distances[:, None]), dim=1)


def target_numbers(model: CellModel, cells: Tensor) -> Tensor:
    """(B, T) float32 numbers in the units of the data from embeddings (B, D), by the head ``targets``."""
    head = cast("RegressorHead", model.heads["targets"])
    return head.in_units(head.logits(cells).float())


def expression_of(model: CellModel, *, attention: str | None = None) -> Callable[[TokenBatch], Tensor]:
    """A function that predicts the expression of tokens, (B, L) float32 on the CPU; there it takes several threads."""

    def predict(cells: TokenBatch) -> Tensor:
        output = model(cells.to(model.device), ("expression",), attention=attention)
        return output["expression"].float().cpu()

    fitting = Fitting(predict)

    def predict_all(batch: TokenBatch) -> Tensor:
        with in_threads(several=divisible(model)) as run:
            return torch.cat(list(run(fitting, divided(model, batch))))

    return predict_all


def check_results(values: NDArray[np.float32], names: pd.Index, *, precision: str) -> None:
    """Refuse results (b, width) that are not finite, whatever the task; ``names`` (b,) are those of the cells."""
    bad = np.asarray(~np.isfinite(values).all(axis=1))
    if bad.any():
        raise ValueError(
            f"Expected finite results, found NaN or infinite numbers for {int(bad.sum())} of {len(bad)} cells in the "
            f"first minibatch that has such (first: {str(names[int(bad.argmax())])!r}). The weights may be damaged, by "
            f"training in too large steps for example, or numbers may have grown too large for {precision!r}: load the "
            "model anew, or pass precision='fp32'."
        )


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to 64 MiB, for what is needed next.

    By default glibc gives large blocks back to the system at once, and each new one comes again page by page, a tenth of
    the time in bf16.  It learns to keep blocks as large as those that it has seen freed, 32 MiB at most; hence one of
    about that size, which is never touched.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def token_batches(source: Rows, plan: RowPlan) -> Iterator[TokenBatch]:
    """Minibatches of cells of like length, in the order of computing."""
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
            yield (
                batch
                if plan.batch_id is None
                else batch.replace(batch_id=torch.from_numpy(plan.batch_id[block.index[rows]]))
            )


class _Minibatch:
    """A minibatch that is computed in parts; whoever is done last puts the results together."""

    def __init__(
        self,
        batch: TokenBatch,
        n_parts: int,
        compute: Callable[[TokenBatch], Tensor],
        finish: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.batch, self.compute, self.finish = batch, compute, finish
        self._results: list[Tensor | None] = [None] * n_parts
        self._left, self._lock = n_parts, Lock()

    def add(self, place: int, result: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Take a result; after the last one return the rows and the results of all."""
        with self._lock:
            self._results[place] = result
            self._left -= 1
            if self._left:
                return None
        whole = torch.cat(cast("list[Tensor]", self._results))
        whole = whole if self.finish is None else self.finish(whole)
        return self.batch.require("index").numpy(), whole.float().cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Piece:
    """One part of a minibatch."""

    of: _Minibatch
    place: int
    cells: TokenBatch

    def computed(self) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        return self.of.add(self.place, self.of.compute(self.cells))


def _pieces(
    model: CellModel,
    batches: Iterator[TokenBatch],
    compute: Callable[[TokenBatch], Tensor],
    finish: Callable[[Tensor], Tensor] | None,
) -> Iterator[_Piece]:
    for batch in batches:
        parts = divided(model, batch)
        whole = _Minibatch(batch, len(parts), compute, finish)
        yield from (_Piece(whole, place, part) for place, part in enumerate(parts))
