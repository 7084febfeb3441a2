"""Samplers of scModelForge: rare classes more often, little by little, and whole shards to each process.

The draws are those of the original, so that a run can be gone through again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scgpt_tools._labels import missing_labels
from scgpt_tools._validate import check_flag, check_integer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


class WeightedCells:
    """Draw cells by the rarity of their class, from all alike at first to each class alike after some epochs.

    Made to be the ``sampler`` of a :class:`torch.utils.data.DataLoader`; each pass is the next epoch.

    Parameters
    ----------
    labels
        Class of each cell.
    warmup_epochs
        Epochs in which the weights move from those of all cells alike to those by class; 0 begins with the latter.
    replacement
        Draw a cell more than once.
    seed
        Seed of all draws.

    Raises
    ------
    ValueError
        If a cell has no label.
    """

    def __init__(
        self, labels: ArrayLike | pd.Series, *, warmup_epochs: int = 0, replacement: bool = True, seed: int = 0
    ) -> None:
        column = pd.Series(np.asarray(labels))
        if n_missing := int(missing_labels(column).sum()):
            raise ValueError(f"Expected a label for every cell, found none for {n_missing} cells.")
        if column.empty:
            raise ValueError("Expected labels of cells, found none.")
        self.warmup_epochs = check_integer("warmup_epochs", warmup_epochs, least=0)
        self.replacement, self.seed = check_flag("replacement", replacement), check_integer("seed", seed, least=0)
        self.class_weights: dict[object, float] = (len(column) / column.value_counts(sort=False)).to_dict()
        """Number of cells over that of each class."""
        self._balanced = column.map(self.class_weights).to_numpy(dtype=np.float64)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the number of the next pass, as training loops do that resume."""
        self.epoch = check_integer("epoch", epoch, least=0)

    def weights(self, epoch: int | None = None) -> NDArray[np.float64]:
        """Compute the chance of each cell, with a sum of 1.

        Parameters
        ----------
        epoch
            Number of the pass; ``None`` for the next.
        """
        epoch = self.epoch if epoch is None else check_integer("epoch", epoch, least=0)
        share = 1.0 if not self.warmup_epochs else min(1.0, epoch / self.warmup_epochs)
        return (1 - share) / len(self._balanced) + share * self._balanced / self._balanced.sum()

    def __len__(self) -> int:
        return len(self._balanced)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        weights = torch.from_numpy(self.weights())
        self.epoch += 1
        return iter(torch.multinomial(weights, len(self), self.replacement, generator=generator).tolist())


class ShardedCells:
    """Give each process whole shards, which ones and in which order drawn anew each epoch.

    Parameters
    ----------
    sizes
        Cells of each shard, in the order of the cells.
    rank, processes
        Number of this process, and how many there are.
    shuffle
        Draw the order of shards and of the cells in each.
    drop_last
        Give every process as many cells as the one with fewest has.
    seed
        Seed of all draws.

    Raises
    ------
    ValueError
        If there are fewer shards than processes.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        rank: int = 0,
        processes: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        self.sizes = [check_integer(f"sizes[{place}]", size, least=0) for place, size in enumerate(sizes)]
        self.processes, self.rank = check_integer("processes", processes), check_integer("rank", rank, least=0)
        if self.rank >= self.processes:
            raise ValueError(f"Expected `rank` below {self.processes}, the number of processes, found {self.rank}.")
        if len(self.sizes) < self.processes:
            raise ValueError(f"Expected a shard for each of {self.processes} processes, found {len(self.sizes)}.")
        self.shuffle, self.drop_last = check_flag("shuffle", shuffle), check_flag("drop_last", drop_last)
        self.seed, self.epoch = check_integer("seed", seed, least=0), 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which all processes have to agree on."""
        self.epoch = check_integer("epoch", epoch, least=0)

    def __len__(self) -> int:
        order = self._shards(self._generator())
        if self.drop_last:
            return min(
                sum(self.sizes[shard] for shard in order[rank :: self.processes]) for rank in range(self.processes)
            )
        return sum(self.sizes[shard] for shard in order[self.rank :: self.processes])

    def __iter__(self) -> Iterator[int]:
        rng = self._generator()
        starts = np.concatenate(([0], np.cumsum(self.sizes)))
        cells: list[int] = []
        for shard in self._shards(rng)[self.rank :: self.processes]:
            own = np.arange(self.sizes[shard])
            if self.shuffle:
                rng.shuffle(own)
            cells.extend((own + starts[shard]).tolist())
        return iter(cells[: len(self)])

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed + self.epoch)

    def _shards(self, rng: np.random.Generator) -> list[int]:
        order = np.arange(len(self.sizes))
        if self.shuffle:
            rng.shuffle(order)
        return order.tolist()
