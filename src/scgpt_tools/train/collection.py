"""Files of cells to pre-train on: opened where they lie, divided, and read once to find their genes."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_fraction, check_integer
from scgpt_tools.config import settle_fields
from scgpt_tools.data.cell_splits import split_cells
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.epochs import Sampling, check_sampling
from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.stores import open_table
from scgpt_tools.settings import settings
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.names import column_names
from scgpt_tools.vocabulary import SPECIALS, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


# Cells whose bins are counted at once.
_COUNTED = 1024


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which cells to train on."""

    paths: tuple[str, ...]
    """h5ad and zarr files, relative to the data folder; ``*`` stands for any part of a name."""
    layer: str | None = None
    """Layer with the values; ``None`` takes ``X``.  Bins depend on ranks only, so counts and log values give the same."""
    genes: str | None = None
    """Column of ``var`` with gene symbols; ``None`` takes its index."""
    batch_key: str | None = None
    """Column of ``obs`` with the technical batch; needed for ``sampling: one_batch`` only."""
    modality: str | None = None
    """Modality of MuData files."""
    validation: float = 0.05
    """Share of the cells of each file to measure progress with."""
    test: float = 0.0
    """Share of the cells of each file that training never sees, not even to choose a checkpoint."""
    rng: int = 0
    """For the division, which depends on the names of cells and not on their order."""
    sampling: Sampling = "random"
    """``blocks`` for files that do not fit the memory: reads runs of neighbouring cells and shuffles among them."""
    block: int = 256
    """Cells of a run."""
    blocks: int = 64
    """Runs in memory at a time."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if not self.paths:
            raise ValueError("Expected at least one file in `paths`, found none.")
        for name in ("validation", "test"):
            check_fraction(name, getattr(self, name), one=False)
        for name in ("block", "blocks"):
            check_integer(name, getattr(self, name))
        check_fraction("validation + test", self.validation + self.test, one=False)
        check_integer("rng", self.rng, least=0)
        check_sampling(self.sampling)


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Which genes become tokens."""

    path: Path | None = None
    """A ``vocab.json``, or a table of genes (``.csv`` with the columns ``feature_name`` and ``id``) as DeepSC has it, to take,
    relative to the data folder; ``None`` collects the genes of the data."""
    min_cells: int = 1
    """Training cells that have to express a gene of the data."""
    min_coverage: float = 0.0
    """Warn if a smaller part of a file's genes is in the vocabulary."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_integer("min_cells", self.min_cells)
        check_fraction("min_coverage", self.min_coverage)


@dataclass(frozen=True, eq=False)
class Collection:
    """Open files and their division; cells are numbered through all of them."""

    config: DataConfig
    sources: tuple[RowSource, ...]
    parts: NDArray[np.str_]
    """(cells,) ``train``, ``validation`` or ``test``."""

    def cells(self, part: str) -> NDArray[np.int64]:
        """Numbers of the cells of a part."""
        return np.flatnonzero(self.parts == part)

    def of_source(self, number: int) -> NDArray[np.str_]:
        """Part of each cell of one file."""
        starts = np.cumsum([0, *(len(source) for source in self.sources)])
        return self.parts[starts[number] : starts[number + 1]]

    def count_cells(self) -> pd.DataFrame:
        """Count, gene by gene, the training cells that express it.

        Returns by gene: ``expressing`` and ``measured``, the training cells of the files that have the gene.
        """
        counted = [self._count(number) for number in range(len(self.sources))]
        return pd.concat(counted).groupby(level=0, sort=True).sum()

    def tables(self, vocabulary: Vocabulary, *, min_coverage: float) -> list[CellTable]:
        """Match every file to a vocabulary."""
        labels = self._batches()
        return [
            CellTable(
                source,
                FeatureTable.from_var(
                    source.var,
                    vocabulary,
                    column=self.config.genes,
                    min_coverage=min_coverage,
                    totals=source.totals,
                ),
                batch_id=batch_id,
            )
            for source, batch_id in zip(self.sources, labels, strict=True)
        ]

    def _count(self, number: int) -> pd.DataFrame:
        source, train = self.sources[number], self.of_source(number) == "train"
        expressing = np.zeros(source.n_columns, dtype=np.int64)
        blocks = settings.progress(source.blocks(), total=-(-len(source) // 4096), unit="block")
        for block in blocks:
            X = block.X[train[block.index]]
            expressing += np.bincount(X.indices[X.data > 0], minlength=source.n_columns)
        names = column_names(source.var, self.config.genes)
        table = pd.DataFrame(
            {"expressing": expressing, "measured": int(train.sum())}, index=pd.Index(names, dtype=object)
        )
        # A symbol that stands for several columns counts where it is seen most.
        return table[table.index.notna()].groupby(level=0).max()

    def _batches(self) -> Sequence[NDArray[np.int64] | None]:
        if self.config.batch_key is None:
            return [None] * len(self.sources)
        column = self.config.batch_key
        own = [read_classes(source.obs, column) for source in self.sources]
        names = tuple(sorted({name for classes in own for name in classes.names}))
        return [read_classes(source.obs, column, names=names).codes for source in self.sources]


@contextmanager
def open_collection(config: DataConfig, folder: Path) -> Iterator[Collection]:
    """Open the files of a configuration; matrices stay on disk."""
    with ExitStack() as opened:
        sources = [
            RowSource(opened.enter_context(open_table(path, modality=config.modality)), layer=config.layer)
            for path in find_files(config.paths, folder)
        ]
        parts = [
            split_cells(source.names.to_numpy(), test=config.test, val=config.validation, seed=config.rng)
            for source in sources
        ]
        division = np.concatenate(parts)
        yield Collection(config, tuple(sources), np.where(division == "val", "validation", division))


def find_files(paths: Sequence[str], folder: Path) -> list[Path]:
    """Files that some paths and patterns stand for, each once.

    ``paths``: names, absolute or relative to the folder; ``*`` stands for any part of a name.
    """
    found: dict[Path, None] = {}
    for path in paths:
        pattern = as_path("paths", path)
        root = Path(pattern.anchor) if pattern.is_absolute() else folder
        matches = sorted(root.glob(str(pattern.relative_to(pattern.anchor))))
        if not matches:
            raise FileNotFoundError(
                f"Expected a file at '{path}' in '{folder}', found none. Name the folder with `data`."
            )
        found |= dict.fromkeys(matches)
    return list(found)


def collect_vocabulary(
    counts: pd.DataFrame,
    config: VocabularyConfig,
    specials: tuple[str, ...] = SPECIALS,
    last: tuple[str, ...] = (),
) -> Vocabulary:
    """Vocabulary of the genes that enough cells express, between the special tokens."""
    genes = counts.index[counts["expressing"] >= config.min_cells]
    if not len(genes):
        raise ValueError(f"Expected genes expressed in at least {config.min_cells} training cells, found none.")
    return Vocabulary.from_genes(genes, specials).extended(last)


def count_bins(cells: CellDataModule, *, seed: int) -> list[int]:
    """How many values of the training cells are in each bin, from 1 on, as the model sees these cells.

    Raises
    ------
    ValueError
        If the model reads no bins beside values.
    """
    bins = cells.tokenizer.config.linear_bins
    if bins is None:
        raise ValueError(
            "Expected a tokenizer with `linear_bins`, such as that of the family 'deepsc', to count bins, found none."
        )
    counts = np.zeros(bins + 1, dtype=np.int64)
    for first in settings.progress(range(0, cells.train.size, _COUNTED), unit="block"):
        chosen = cells.train[first : first + _COUNTED]
        batch = cells.tokenize(cells.read(chosen), chosen, seed=seed)
        found = batch.require("bins")[batch.mask].numpy()
        counts += np.bincount(found[found <= bins], minlength=bins + 1)
    return counts[1:].tolist()
