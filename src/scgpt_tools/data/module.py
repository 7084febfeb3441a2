"""From tables of cells to minibatches of tokens for training.

A :class:`CellTable` is one file with its columns matched to tokens; a :class:`CellDataModule` is one or several of them
with a tokenizer, a corruption and a division into training and validation cells; a :class:`CellLoader` visits one part.
Every draw depends on the seed, the epoch and the minibatch or the cell, never on what was drawn before.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from scgpt_tools._validate import as_seed, check_choice, check_flag, check_integer
from scgpt_tools.data import epochs
from scgpt_tools.data.assembly import assemble
from scgpt_tools.tokens.selection import kept, tokens_of_minibatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike
    from scgpt_tools.data.epochs import Sampling
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.corruptions import Corruption
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.selection import MinibatchGenes
    from scgpt_tools.tokens.tokenizer import Tokenizer

Part: TypeAlias = Literal["train", "validation"]

# What keeps the draws of different things apart although they start from one seed.
_ORDER, _TOKENS, _CORRUPTION, _GENES = 1, 2, 3, 4
# Validation cells are hidden alike in every epoch, so that their losses compare.
_VALIDATION_EPOCH = 2**31
# Cells of a run, and runs that are shuffled together, of which descriptions of runs that were begun before say nothing.
_RUNS = (256, 64)
# Cells that are looked at together before training.
_LOOK = 4096


@dataclass(frozen=True, eq=False)
class CellTable:
    """Cells of one table, ready to be tokenized."""

    source: Rows
    features: FeatureTable
    """Which columns are which tokens."""
    batch_id: NDArray[np.int64] | None = None
    """(cells,) technical batch of each cell."""
    label: NDArray[np.int64] | None = None
    """(cells,) class of each cell, negative for unknown."""
    targets: NDArray[np.float32] | None = None
    """(cells, targets) numbers of each cell, NaN for unknown."""

    def __post_init__(self) -> None:
        for name in ("batch_id", "label"):
            found = getattr(self, name)
            if found is not None and found.shape != (len(self.source),):
                raise ValueError(f"Expected `{name}` to hold one number per cell, found shape {found.shape}.")
        if self.targets is not None and self.targets.shape[:1] != (len(self.source),):
            raise ValueError(f"Expected `targets` to hold a row per cell, found shape {self.targets.shape}.")


class CellDataModule:
    """Cells to train on.

    Parameters
    ----------
    tables
        One or several tables; cells are numbered through all of them.
    tokenizer
        How cells become tokens.
    corruption
        What is hidden from the network; ``None`` hides nothing.
    train, validation
        Numbers of the cells of each part; ``None`` trains on all that do not validate.
    sampling
        How training cells are drawn; validation cells come in their order.
    block, blocks
        Cells of a run and runs that are shuffled together, for ``sampling="blocks"``; so many cells are in memory.
    curriculum
        Epochs in which ``sampling="balanced"`` goes from all cells alike to each class alike; 0 begins with the latter.
    replacement
        Let it draw a cell more than once.
    minibatch_genes
        Which genes the cells of a minibatch show; ``None`` for all.  Of several processes, each reads the cells of all,
        so that all choose alike.
    """

    def __init__(
        self,
        tables: Sequence[CellTable],
        tokenizer: Tokenizer,
        *,
        corruption: Corruption | None = None,
        train: ArrayLike | None = None,
        validation: ArrayLike | None = None,
        sampling: Sampling = "random",
        block: int = _RUNS[0],
        blocks: int = _RUNS[1],
        curriculum: int = 0,
        replacement: bool = True,
        minibatch_genes: MinibatchGenes | None = None,
    ) -> None:
        if not tables:
            raise ValueError("Expected at least one table of cells, found none.")
        self.tables = tuple(tables)
        self.tokenizer = tokenizer
        self.corruption = corruption
        self.sampling: Sampling = epochs.check_sampling(sampling)
        self.block, self.blocks = check_integer("block", block), check_integer("blocks", blocks)
        self.curriculum = check_integer("curriculum", curriculum, least=0)
        self.replacement = check_flag("replacement", replacement)
        self.minibatch_genes = minibatch_genes
        self.starts = np.cumsum([0, *(len(table.source) for table in self.tables)])
        """Number of the first cell of each table, and of all cells together."""
        self.validation = _cells(validation if validation is not None else [], len(self), "validation")
        rest = np.setdiff1d(np.arange(len(self)), self.validation)
        self.train = rest if train is None else _cells(train, len(self), "train")
        self._check_parts()
        self.batch_id = self._joined("batch_id", needed=sampling == "one_batch")
        self.label = self._joined("label", needed=sampling == "balanced")
        self.targets = self._joined("targets", needed=False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def loader(self, part: Part, *, batch_size: int, rng: RngLike = 0, workers: int = 0) -> CellLoader:
        """Minibatches of one part.

        Parameters
        ----------
        part
            ``"train"`` or ``"validation"``.
        batch_size
            Cells of a minibatch in each process.
        rng
            Whole number, generator or ``None`` (fresh entropy) for the order of cells, the genes of long cells and what
            is hidden.
        workers
            Threads that prepare minibatches ahead; 0 prepares each when it is asked for.  The minibatches are the same.

        Returns
        -------
        An iterable with a length, which knows its place.
        """
        check_choice("part", part, ("train", "validation"))
        return CellLoader(self, part, batch_size=batch_size, seed=as_seed(rng), workers=workers)

    def epoch(self, part: Part, number: int, *, batch_size: int, seed: int) -> epochs.Batches:
        """Cell numbers of each minibatch of an epoch, of all processes together."""
        if part == "validation":
            return epochs.in_batches(self.validation, batch_size)
        rng = np.random.default_rng([_ORDER, seed, number])
        if self.sampling == "one_batch":
            return epochs.by_label(self.train, self._of_train(self.batch_id), batch_size, seed=seed, epoch=number)
        if self.sampling == "balanced":
            share = min(1.0, number / self.curriculum) if self.curriculum else 1.0
            labels = self._of_train(self.label)
            order = epochs.balanced(self.train, labels, rng, share=share, replacement=self.replacement)
        elif self.sampling == "blocks":
            order = epochs.block_shuffled(
                self.train, rng, block=self.block, blocks=self.blocks, bounds=self.starts[1:-1]
            )
        else:
            order = epochs.shuffled(self.train, rng)
        return epochs.in_batches(order, batch_size)

    def needed(self, cells: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
        """Cells to read for some that are tokenized with a seed, ascending."""
        return np.unique(cells)

    def read(self, cells: NDArray[np.int64]) -> list[Any]:
        """Rows of the given cells, ascending, table by table."""
        return [
            (number, mine, table.source.take(mine - start))
            for number, (table, start, stop) in enumerate(zip(self.tables, self.starts, self.starts[1:], strict=False))
            if (mine := cells[(cells >= start) & (cells < stop)]).size
        ]

    def tokenize(self, rows: list[Any], cells: NDArray[np.int64], *, seed: int) -> TokenBatch:
        """Token batch of some cells among rows that were read."""
        return self._tokenize(rows, cells, seed=seed, genes=None)

    def tokenize_chosen(
        self, rows: list[Any], cells: NDArray[np.int64], together: NDArray[np.int64], *, seed: int, draw: int
    ) -> TokenBatch:
        """The same with the genes alone that are chosen for a minibatch.

        ``together``: cells of the whole minibatch, among which genes are chosen; ``draw``: seed of the choice.
        """
        if self.minibatch_genes is None:
            return self.tokenize(rows, cells, seed=seed)
        parts = [
            (X[np.searchsorted(mine, together[np.isin(together, mine)])], self.tables[number].features)
            for number, mine, X in rows
        ]
        n_tokens = len(self.tokenizer.vocabulary)
        genes = tokens_of_minibatch(parts, n_tokens, self.minibatch_genes, draw)
        return self._tokenize(rows, cells, seed=seed, genes=genes)

    def _tokenize(
        self, rows: list[Any], cells: NDArray[np.int64], *, seed: int, genes: NDArray[np.bool_] | None
    ) -> TokenBatch:
        parts = []
        for number, mine, X in rows:
            asked = cells[np.isin(cells, mine)]
            if asked.size:
                table = self.tables[number]
                features = table.features if genes is None else kept(table.features, genes[table.features.ids])
                keys = table.source.keys[mine - self.starts[number]]
                places = np.searchsorted(mine, asked)
                parts.append(self.tokenizer(X, features, keys, rng=seed, rows=places, index=mine))
        batch = assemble(parts, cells, self.tokenizer.padding)
        return batch.replace(
            batch_id=_labels(self.batch_id, cells),
            label=_labels(self.label, cells),
            targets=_labels(self.targets, cells),
        )

    @property
    def used(self) -> NDArray[np.int64]:
        """Numbers of the cells whose values are read, ascending."""
        return np.union1d(self.train, self.validation)

    def look(self, *, digest: bool = False) -> str | None:
        """Read the values of all cells that are used, where they are in memory, so that bad ones are found at once.

        Parameters
        ----------
        digest
            Whether to compute a checksum of what was read.

        Returns
        -------
        The checksum, ``None`` without one.

        Raises
        ------
        ValueError
            If a value is negative, missing or infinite; the message names its cell and gene.
        """
        found = hashlib.sha256()
        for table, start, stop in zip(self.tables, self.starts, self.starts[1:], strict=False):
            if not table.source.in_memory:
                continue
            mine = self.used[(self.used >= start) & (self.used < stop)] - start
            for first in range(0, mine.size, _LOOK):
                X = table.source.take(mine[first : first + _LOOK])
                if digest:
                    for array, kind in ((X.indptr, np.int64), (X.indices, np.int64), (X.data, np.float32)):
                        found.update(np.asarray(array, dtype=kind).tobytes())
        return found.hexdigest() if digest else None

    def describe(self) -> dict[str, Any]:
        """What the cells are, as plain values that two calls can be compared by.

        Returns
        -------
        Numbers of cells, checksums of names, values in memory, matched genes, labels, batches and parts, and how cells are
        drawn.
        """
        runs = (self.block, self.blocks) if self.sampling == "blocks" else None
        return {
            "cells": {"number": len(self), "names": checksum(*(table.source.keys for table in self.tables))},
            "genes": {
                "number": [len(table.features) for table in self.tables],
                "tokens": checksum(
                    *(array for table in self.tables for array in (table.features.columns, table.features.ids))
                ),
            },
            "values": self.look(digest=True),
            "label of each cell": checksum(self.label),
            **({} if self.targets is None else {"targets of each cell": checksum(self.targets)}),
            "batch of each cell": checksum(self.batch_id),
            "training cells": {"number": int(self.train.size), "which": checksum(self.train)},
            "validation cells": {"number": int(self.validation.size), "which": checksum(self.validation)},
            "sampling": self.sampling,
            **({} if runs in (None, _RUNS) else {"cells of a run, and runs together": list(runs)}),
            **({"curriculum": self.curriculum} if self.curriculum else {}),
            **({} if self.replacement else {"replacement": False}),
            **({} if self.minibatch_genes is None else {"genes of a minibatch": vars(self.minibatch_genes).copy()}),
        }

    def _of_train(self, labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
        assert labels is not None, "checked when the module was made"  # noqa: S101
        return labels[self.train]

    def _check_parts(self) -> None:
        if not self.train.size:
            raise ValueError(f"Expected cells to train on, found none of {len(self)}.")
        both = np.intersect1d(self.train, self.validation)
        if both.size:
            raise ValueError(f"Expected no cell in both parts, found {both.size} of them, the first being {both[0]}.")

    def _joined(self, name: str, *, needed: bool) -> NDArray[Any] | None:
        parts = [getattr(table, name) for table in self.tables]
        if all(part is not None for part in parts):
            return np.concatenate(parts)
        if needed or any(part is not None for part in parts):
            absent = [number for number, part in enumerate(parts) if part is None]
            raise ValueError(f"Expected a `{name}` for the cells of every table, found none for tables {absent}.")
        return None


class _Minibatch(NamedTuple):
    """Cell numbers of a minibatch."""

    own: NDArray[np.int64]
    """Those of this process."""
    read: NDArray[np.int64]
    """Those whose values are read: where genes are chosen by minibatch, those of all processes."""


class CellLoader:
    """Visits the cells of one part, epoch after epoch, and can go on from any minibatch.

    ``state_dict`` and ``load_state_dict`` keep the place: Lightning calls them when it writes and reads checkpoints.
    """

    # Minibatches that are read from the source at once: as much as blocks need, and enough to make reads worthwhile.
    AHEAD = 16

    def __init__(self, data: CellDataModule, part: Part, *, batch_size: int, seed: int, workers: int) -> None:
        self.data, self.part = data, part
        self.batch_size = check_integer("batch_size", batch_size)
        self.seed = seed
        self.workers = check_integer("workers", workers, least=0)
        self.place = {"epoch": 0, "batch": 0}

    def __len__(self) -> int:
        return len(self._epoch(0))

    def __iter__(self) -> Iterator[TokenBatch]:
        epoch, start = self.place["epoch"], self.place["batch"]
        batches = self._epoch(epoch)
        for number, batch in enumerate(self._prepared(batches, epoch, start), start=start):
            # The place is that of the next minibatch while this one is worked on.
            last = number + 1 == len(batches)
            self.place = {"epoch": epoch + 1, "batch": 0} if last else {"epoch": epoch, "batch": number + 1}
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and minibatch that come next."""
        return dict(self.place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place."""
        self.place = {name: int(state[name]) for name in ("epoch", "batch")}

    def _epoch(self, number: int) -> list[_Minibatch]:
        rank, processes = epochs.this_process()
        batches = self.data.epoch(self.part, number, batch_size=self.batch_size * processes, seed=self.seed)
        own = epochs.for_process(batches, rank, processes)
        if self.data.minibatch_genes is None:
            return [_Minibatch(cells, cells) for cells in own]
        parts = [epochs.for_process(batches, each, processes) for each in range(processes)]
        return [_Minibatch(cells, np.concatenate(all_cells)) for cells, *all_cells in zip(own, *parts, strict=True)]

    def _prepared(self, batches: list[_Minibatch], epoch: int, start: int) -> Iterator[TokenBatch]:
        chunks = deque(range(start, len(batches), self._chunk))
        if not self.workers:
            for chunk in chunks:
                rows = self._rows(batches, chunk, epoch)
                for number in self._numbers(batches, chunk):
                    yield self._batch(rows, batches[number], epoch, number)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: deque[Any] = deque()
            while chunks or waiting:
                while chunks and len(waiting) <= self.workers:
                    waiting.append(pool.submit(self._chunk_of_batches, batches, chunks.popleft(), epoch))
                yield from waiting.popleft().result()

    @property
    def _chunk(self) -> int:
        """Minibatches that are read together."""
        if self.data.sampling == "blocks" and self.part == "train":
            return max(1, self.data.block * self.data.blocks // self.batch_size)
        return self.AHEAD

    def _numbers(self, batches: list[_Minibatch], chunk: int) -> range:
        return range(chunk, min(chunk + self._chunk, len(batches)))

    def _rows(self, batches: list[_Minibatch], chunk: int, epoch: int) -> list[Any]:
        cells = np.concatenate([batches[number].read for number in self._numbers(batches, chunk)])
        return self.data.read(self.data.needed(cells, seed=self._seed_of_tokens(epoch)))

    def _seed_of_tokens(self, epoch: int) -> int:
        """One of all cells of the epoch, for the draws of a cell are set apart by its name; so they differ in the next."""
        return _seed(_TOKENS, self.seed, _VALIDATION_EPOCH if self.part == "validation" else epoch)

    def _chunk_of_batches(self, batches: list[_Minibatch], chunk: int, epoch: int) -> list[TokenBatch]:
        rows = self._rows(batches, chunk, epoch)
        return [self._batch(rows, batches[number], epoch, number) for number in self._numbers(batches, chunk)]

    def _batch(self, rows: list[Any], cells: _Minibatch, epoch: int, number: int) -> TokenBatch:
        epoch = _VALIDATION_EPOCH if self.part == "validation" else epoch
        batch = self.data.tokenize_chosen(
            rows,
            cells.own,
            cells.read,
            seed=self._seed_of_tokens(epoch),
            draw=_seed(_GENES, self.seed, epoch, number),
        )
        if self.data.corruption is None:
            return batch
        return self.data.corruption(batch, np.random.default_rng([_CORRUPTION, self.seed, epoch, number]))


def checksum(*parts: NDArray[Any] | Sequence[str] | None) -> str | None:
    """SHA-256 of arrays of numbers and lists of texts; ``None`` if one is absent."""
    found = hashlib.sha256()
    for part in parts:
        if part is None:
            return None
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(list(part)).encode())
    return found.hexdigest()


def _seed(*numbers: int) -> int:
    return int(np.random.default_rng(list(numbers)).integers(2**62))


def _cells(numbers: ArrayLike, n_cells: int, name: str) -> NDArray[np.int64]:
    cells = np.unique(np.asarray(numbers, dtype=np.int64))
    if cells.size and not (0 <= cells[0] and cells[-1] < n_cells):
        raise ValueError(f"Expected `{name}` to hold numbers of {n_cells} cells, found {cells[0]} to {cells[-1]}.")
    return cells


def _labels(labels: NDArray[Any] | None, cells: NDArray[np.int64]) -> torch.Tensor | None:
    return None if labels is None else torch.from_numpy(labels[cells])
