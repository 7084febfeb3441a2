"""Which cells go into a minibatch together: cells of like length, or cells of one batch label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._labels import missing_labels
from scgpt_tools._validate import check_flag, check_integer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


def length_buckets(lengths: ArrayLike, *, batch_size: int, max_tokens: int | None = None) -> list[NDArray[np.int64]]:
    """Group cells of like length, so that little of a minibatch is padding.

    ``max_tokens``: most tokens of a group, padding included; a longer cell is alone.  Returns positions in ``lengths``,
    each in one group; longest cells first, so that memory runs out at once if it does.
    """
    check_integer("batch_size", batch_size)
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < order.size:
        size = batch_size
        if max_tokens is not None:
            longest = max(int(lengths[order[start]]), 1)
            size = min(size, max(check_integer("max_tokens", max_tokens) // longest, 1))
        groups.append(order[start : start + size])
        start += size
    return groups


class SubsetBatches:
    """Minibatches that never mix subsets, such as the cells of one technical batch (scGPT ``SubsetsBatchSampler``).

    Can be iterated any number of times; each pass is another order, which the seed and the number of the pass decide.
    Made to be the ``batch_sampler`` of a :class:`torch.utils.data.DataLoader`.

    Parameters
    ----------
    subsets
        Positions of the cells of each subset.
    batch_size
        Cells of a minibatch; the last one of a subset may be smaller.
    shuffle
        Draw the order of cells within a subset.
    shuffle_batches
        Draw the order of minibatches; else one subset follows the other.
    drop_last
        Leave out minibatches that are too small.
    seed
        Seed of all draws.
    """

    def __init__(
        self,
        subsets: Sequence[ArrayLike],
        batch_size: int,
        *,
        shuffle: bool = True,
        shuffle_batches: bool = True,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        self.subsets = [np.asarray(subset, dtype=np.int64) for subset in subsets]
        self.batch_size = check_integer("batch_size", batch_size)
        self.shuffle = check_flag("shuffle", shuffle)
        self.shuffle_batches = check_flag("shuffle_batches", shuffle_batches)
        self.drop_last = check_flag("drop_last", drop_last)
        self.seed = check_integer("seed", seed, least=0)
        self.epoch = 0

    @classmethod
    def from_labels(
        cls,
        labels: ArrayLike | pd.Series,
        batch_size: int,
        *,
        shuffle: bool = True,
        shuffle_batches: bool = True,
        drop_last: bool = False,
        seed: int = 0,
    ) -> SubsetBatches:
        """Make one subset of the cells of each label."""
        column = pd.Series(np.asarray(labels))
        if n_missing := int(missing_labels(column).sum()):
            raise ValueError(f"Expected a label for every cell, found none for {n_missing} cells.")
        codes, names = pd.factorize(column, sort=True)
        return cls(
            [np.flatnonzero(codes == code) for code in range(len(names))],
            batch_size,
            shuffle=shuffle,
            shuffle_batches=shuffle_batches,
            drop_last=drop_last,
            seed=seed,
        )

    def __len__(self) -> int:
        return sum(self._n_batches(subset) for subset in self.subsets)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        batches = [batch for subset in self.subsets for batch in self._split(subset, rng)]
        order = rng.permutation(len(batches)) if self.shuffle_batches else range(len(batches))
        for place in order:
            yield batches[place].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the number of the next pass, as training loops do that resume."""
        self.epoch = check_integer("epoch", epoch, least=0)

    def _n_batches(self, subset: NDArray[np.int64]) -> int:
        return subset.size // self.batch_size if self.drop_last else -(-subset.size // self.batch_size)

    def _split(self, subset: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        ordered = rng.permutation(subset) if self.shuffle else subset
        starts = range(0, self._n_batches(subset) * self.batch_size, self.batch_size)
        return [ordered[start : start + self.batch_size] for start in starts]
