"""In which order cells are visited in an epoch, and which of them share a minibatch.

An epoch is a list of minibatches, each an array of cell numbers.  It is a function of the seed and the number of the
epoch only, so that a training run that was cut off finds its place again, and every process of a distributed run knows
what the others do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import torch.distributed as dist

from scgpt_tools._validate import check_choice, check_integer
from scgpt_tools.data.samplers import SubsetBatches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

Sampling: TypeAlias = Literal["random", "blocks", "balanced", "one_batch"]
"""``random`` shuffles all cells; ``blocks`` shuffles runs of neighbours, then cells among some of them, as reading from
disk wants; ``balanced`` draws cells so that every class is as frequent; ``one_batch`` shuffles cells within their
technical batch and never mixes two of them in a minibatch."""

Batches: TypeAlias = "list[NDArray[np.int64]]"


def shuffled(cells: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle cells."""
    return rng.permutation(cells)


def block_shuffled(
    cells: NDArray[np.int64], rng: np.random.Generator, *, block: int, blocks: int, bounds: ArrayLike = ()
) -> NDArray[np.int64]:
    """Shuffle runs of neighbouring cells, then the cells among several runs at a time.

    Whoever reads ``block * blocks`` cells of the result reads few runs of the file, each from its start to its end.

    ``bounds``: numbers at which a new file begins; no run goes across.
    """
    check_integer("block", block)
    check_integer("blocks", blocks)
    files = np.split(cells, np.searchsorted(cells, np.asarray(bounds, dtype=np.int64)))
    runs = [run for file in files for run in _cut(file, block)]
    order = rng.permutation(len(runs))
    pools = [np.concatenate([runs[run] for run in pool]) for pool in _cut(order, blocks)]
    return np.concatenate([rng.permutation(pool) for pool in pools]) if pools else cells


def balanced(
    cells: NDArray[np.int64],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    share: float = 1.0,
    replacement: bool = True,
) -> NDArray[np.int64]:
    """Draw as many cells as there are, each class as often as any other.

    ``labels``: class of each of these cells; a negative one is never drawn; ``share``: how much of the chances is by class,
    the rest being the same for all cells; ``replacement``: draw a cell more than once; without, all come, those of rare
    classes early.
    """
    known = labels >= 0
    if not known.any():
        raise ValueError("Expected labelled cells for sampling='balanced', found none.")
    counts = np.bincount(labels[known])
    by_class = np.where(known, 1.0 / np.maximum(counts[np.maximum(labels, 0)], 1), 0.0)
    chances = share * by_class / by_class.sum() + (1 - share) * known / known.sum()
    size = cells.size if replacement else int(known.sum())
    return rng.choice(cells, size=size, p=chances / chances.sum(), replace=replacement)


def by_label(cells: NDArray[np.int64], labels: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> Batches:
    """Minibatches of cells with the same label."""
    batches = SubsetBatches.from_labels(labels, batch_size, seed=seed)
    batches.set_epoch(epoch)
    return [cells[places] for places in batches]


def in_batches(order: NDArray[np.int64], batch_size: int) -> Batches:
    """Cut an order of cells into minibatches; the last one may be smaller."""
    return _cut(order, check_integer("batch_size", batch_size))


def this_process() -> tuple[int, int]:
    """Count the processes that train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def for_process(batches: Sequence[NDArray[np.int64]], rank: int, processes: int) -> Batches:
    """Part of each minibatch that one process of several works on.

    Returns as many minibatches for each process, of the same size in all: up to ``processes - 1`` cells of a minibatch
    that does not divide are left out, and minibatches too small for all.
    """
    if processes == 1:
        return list(batches)
    sizes = [len(batch) // processes for batch in batches]
    return [batch[rank * size : (rank + 1) * size] for batch, size in zip(batches, sizes, strict=True) if size]


def check_sampling(sampling: Sampling) -> Sampling:
    """One of the orders that exist."""
    return check_choice("sampling", sampling, get_args(Sampling))


def _cut(order: NDArray[np.int64], size: int) -> Batches:
    return [order[start : start + size] for start in range(0, order.size, size)]
