"""Minibatches as dictionaries, part by part, and what the wrappers read from a table for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from scgpt_tools._keys import SplitKeys
from scgpt_tools._lookup import absent
from scgpt_tools.data.epochs import in_batches
from scgpt_tools.data.module import CellDataModule
from scgpt_tools.data.parts import read_parts
from scgpt_tools.data.rows import table_of
from scgpt_tools.screens.batches import PerturbationBatches
from scgpt_tools.screens.perturbation_data import PerturbationData
from scgpt_tools.tokens.features import FeatureTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.data.epochs import Batches
    from scgpt_tools.data.module import Part
    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.vocabulary import Vocabulary

Dataset: TypeAlias = PerturbationData | AnnData
BatchDict: TypeAlias = "dict[str, Tensor]"
Parts: TypeAlias = "dict[str, NDArray[np.int64]]"

ALL = "all"
TRAIN, VALIDATION = "train", ("val", "valid")


class CellsInParts(CellDataModule):
    """Cells of one part, in their order or shuffled."""

    shuffle: bool = True
    drop_last: bool = False

    def epoch(self, part: Part, number: int, *, batch_size: int, seed: int) -> Batches:
        """Cell numbers of each minibatch."""
        batches = (
            super().epoch(part, number, batch_size=batch_size, seed=seed)
            if self.shuffle
            else in_batches(self.train, batch_size)
        )
        return [batch for batch in batches if len(batch) == batch_size] if self.drop_last else batches


class PairsInParts(CellsInParts, PerturbationBatches):
    """Pairs of a control and a perturbed cell of one part, in their order or shuffled."""


class BatchLoader:
    """Minibatches of one part as dictionaries of tensors on the CPU.

    Every walk begins anew.  A shuffled part comes in another order each time, and other values are hidden; any other
    part is the same each time.

    Parameters
    ----------
    data
        Cells of the part, as those to train on.
    shuffle
        Whether they come in another order each time.
    as_dict
        Names the tensors of a minibatch.
    batch_size
        Cells of a minibatch.
    workers
        Threads that prepare minibatches ahead.
    seed
        Seed of all draws.
    """

    def __init__(
        self,
        data: CellDataModule,
        as_dict: Callable[[TokenBatch], BatchDict],
        *,
        shuffle: bool,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        self.data, self.batch_size, self.shuffle = data, batch_size, shuffle
        self._as_dict = as_dict
        self._loader = data.loader("train", batch_size=batch_size, rng=seed, workers=workers)
        self._walks = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[BatchDict]:
        return map(self._as_dict, self.tokens())

    def tokens(self) -> Iterator[TokenBatch]:
        """Walk through the same minibatches as this package has them."""
        self._loader.load_state_dict({"epoch": self._walks, "batch": 0})
        self._walks += self.shuffle
        return iter(self._loader)


def as_screen(dataset: Dataset) -> PerturbationData:
    """The data set as one with conditions; a table is wrapped, and read when a condition is needed."""
    return dataset if isinstance(dataset, PerturbationData) else PerturbationData(table_of(dataset))


def parts_of(adata: AnnData) -> Parts:
    """Rows of each part.

    Returns rows by the names in ``obs["split"]``, training, validation and test first; without that column all rows as
    ``"all"``.
    """
    key = SplitKeys().obs
    if key not in adata.obs:
        return {ALL: np.arange(adata.n_obs)}
    found = read_parts(adata.obs, key, also=VALIDATION[1:], others=True)
    names = pd.unique(found[~pd.isna(found)])
    order = [name for name in (TRAIN, *VALIDATION, "test") if name in names]
    return {str(name): np.flatnonzero(found == name) for name in [*order, *(n for n in names if n not in order)]}


def training_parts(adata: AnnData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train and to validate on: all and none where there is no ``obs["split"]``."""
    parts = parts_of(adata)
    if ALL in parts:
        return parts[ALL], parts[ALL][:0]
    if TRAIN not in parts:
        raise ValueError(absent(TRAIN, parts, f"part in obs[{SplitKeys().obs!r}] named"))
    held_out = [parts[name] for name in VALIDATION if name in parts]
    return parts[TRAIN], np.concatenate([*held_out, parts[TRAIN][:0]])


def in_parts(
    adata: AnnData, wanted: str | None, make: Callable[[str, NDArray[np.int64]], BatchLoader]
) -> BatchLoader | dict[str, BatchLoader]:
    """Loaders of the parts asked for.

    ``wanted``: name of a part, ``"all"`` for all cells, or ``None`` for a dictionary of the parts that there are.
    """
    parts = parts_of(adata)
    if wanted is None:
        return {name: make(name, rows) for name, rows in parts.items()}
    if wanted == ALL:
        return make(ALL, np.arange(adata.n_obs))
    names = VALIDATION if wanted in VALIDATION else (wanted,)
    found = [name for name in names if name in parts]
    if not found:
        raise ValueError(absent(wanted, [*parts, ALL], f"part in obs[{SplitKeys().obs!r}] named"))
    return make(found[0], parts[found[0]])


def match(
    source: RowSource, vocabulary: Vocabulary, genes: tuple[str, ...] | None, *, duplicates: Duplicates = "most_counts"
) -> FeatureTable:
    """Match the columns of a table to tokens.

    ``genes``: genes to read; ``None`` for all.
    """
    features = FeatureTable.from_var(source.var, vocabulary, duplicates=duplicates, totals=source.totals)
    if genes is None:
        return features
    keep = np.isin(features.names, np.array(genes, dtype=object))
    if not keep.any():
        raise ValueError(f"Expected columns of the {len(genes)} genes in `gene_list`, found none.")
    picked: dict[str, Any] = {name: getattr(features, name)[keep] for name in ("columns", "ids", "names")}
    return replace(features, **picked)
