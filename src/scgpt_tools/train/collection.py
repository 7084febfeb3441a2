"""Files of cells to pre-train on: opened where they lie, divided, and read once to find their genes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_flag, check_fraction, check_integer
from scgpt_tools.config import settle_fields
from scgpt_tools.data.cell_splits import split_cells
from scgpt_tools.data.census import CensusConfig, open_census
from scgpt_tools.data.classes import read_classes
from scgpt_tools.data.epochs import Sampling, check_sampling
from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.shards import is_sharded, shard_rows
from scgpt_tools.data.stores import find_urls, is_url, open_table, open_url
from scgpt_tools.settings import settings
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.gene_lists import GeneList, Organism, listed_genes, names_for_human, symbols_of_ids
from scgpt_tools.tokens.names import column_names, unversioned
from scgpt_tools.tokens.selection import MinibatchGenes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.vocabulary import Vocabulary


# Cells whose bins are counted at once.
_COUNTED = 1024


@dataclass(frozen=True, kw_only=True)
class OrthologConfig:
    """Read genes of another organism as those of human, by a table of orthologues."""

    of: Organism = "mouse"
    table: Path | None = None
    """A table in place of the bundled one, relative to the data folder; see
    :func:`~scgpt_tools.tokens.gene_lists.read_orthologs`."""
    one_to_many: bool = False
    """Take genes with several orthologues too: each goes by the first in the table."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_flag("one_to_many", self.one_to_many)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which cells to train on."""

    paths: tuple[str, ...] = ()
    """h5ad and zarr files and folders of shards, relative to the data folder; ``*`` stands for any part of a name.
    Addresses such as ``s3://bucket/*.h5ad`` are read through fsspec, piece by piece."""
    storage: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the file system of addresses, such as ``{anon: true}``."""
    census: CensusConfig | None = None
    """Cells of CELLxGENE Census, beside files or alone."""
    layer: str | None = None
    """Layer with the values; ``None`` takes ``X``.  Bins depend on ranks only, so counts and log values give the same."""
    genes: str | None = None
    """Column of ``var`` with gene symbols; ``None`` takes its index."""
    orthologs: OrthologConfig | None = None
    """Read genes of another organism as those of human; names that are no genes of it stay as they are."""
    label_key: str | None = None
    """Column of ``obs`` with the class of each cell; needed for ``sampling: balanced`` only."""
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
    """``blocks`` for files that do not fit the memory: reads runs of neighbouring cells and shuffles among them.
    ``balanced`` draws each class of ``label_key`` as often, ``one_batch`` minibatches of one technical batch."""
    curriculum: int = 0
    """Epochs in which ``sampling: balanced`` goes from all cells alike to each class alike; 0 begins with the latter."""
    replacement: bool = True
    """Let ``sampling: balanced`` draw a cell more than once."""
    minibatch_genes: MinibatchGenes | None = None
    """Genes that a minibatch shows; ``None`` for all."""
    block: int = 256
    """Cells of a run."""
    blocks: int = 64
    """Runs in memory at a time."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if not self.paths and self.census is None:
            raise ValueError("Expected at least one file in `paths`, or a `census`, found none.")
        for name, needed in (("balanced", "label_key"), ("one_batch", "batch_key")):
            if self.sampling == name and getattr(self, needed) is None:
                raise ValueError(f"Expected `{needed}`, a column of obs, for sampling={name!r}, found None.")
        check_integer("curriculum", self.curriculum, least=0)
        check_flag("replacement", self.replacement)
        if self.sampling != "balanced" and (self.curriculum or not self.replacement):
            raise ValueError(
                f"`curriculum` and `replacement` go with sampling='balanced' only, found {self.sampling!r}."
            )
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
    relative to the data folder."""
    name: GeneList | None = None
    """A bundled list of genes, such as ``human_protein_coding``, which Ensembl ids match as well.  Without this and without
    ``path`` the genes of the data are collected."""
    min_cells: int = 1
    """Training cells that have to express a gene of the data, or of the list."""
    highly_variable: int | None = None
    """Keep so many highly variable genes of these, by the dispersions of training cells."""
    min_coverage: float = 0.0
    """Warn if a smaller part of a file's genes is in the vocabulary."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_integer("min_cells", self.min_cells)
        if self.highly_variable is not None:
            check_integer("highly_variable", self.highly_variable)
        if self.path is not None and (self.name is not None or self.highly_variable is not None):
            raise ValueError(
                f"Expected `path` of a vocabulary alone, found {self.name=} and {self.highly_variable=} beside it."
            )
        check_fraction("min_coverage", self.min_coverage)


@dataclass(frozen=True, eq=False)
class Collection:
    """Open files and their division; cells are numbered through all of them."""

    config: DataConfig
    sources: tuple[RowSource, ...]
    parts: NDArray[np.str_]
    """(cells,) ``train``, ``validation`` or ``test``."""
    translation: Mapping[str, str] = field(default_factory=dict)
    """Names to read genes by, of those that go by others."""

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

    def rows_of(self, cells: NDArray[np.int64]) -> list[tuple[RowSource, NDArray[np.int64]]]:
        """Each file with the rows of some cells there."""
        starts = np.cumsum([0, *(len(source) for source in self.sources)])
        return [
            (source, cells[(cells >= start) & (cells < stop)] - start)
            for source, start, stop in zip(self.sources, starts, starts[1:], strict=False)
        ]

    def names(self, number: int) -> list[str | None]:
        """Names of the genes of a file, translated."""
        names = column_names(self.sources[number].var, self.config.genes)
        return [None if name is None else self.translation.get(unversioned(name), name) for name in names]

    def tables(self, vocabulary: Vocabulary, *, min_coverage: float) -> list[CellTable]:
        """Match every file to a vocabulary."""
        batches, labels = self._classes(self.config.batch_key), self._classes(self.config.label_key)
        return [
            CellTable(
                source,
                FeatureTable.from_var(
                    source.var,
                    vocabulary,
                    column=self.config.genes,
                    symbols=self.translation or None,
                    min_coverage=min_coverage,
                    totals=source.totals,
                ),
                batch_id=batch_id,
                label=label,
            )
            for source, batch_id, label in zip(self.sources, batches, labels, strict=True)
        ]

    def _count(self, number: int) -> pd.DataFrame:
        source, train = self.sources[number], self.of_source(number) == "train"
        expressing = np.zeros(source.n_columns, dtype=np.int64)
        blocks = settings.progress(source.blocks(), total=-(-len(source) // 4096), unit="block")
        for block in blocks:
            X = block.X[train[block.index]]
            expressing += np.bincount(X.indices[X.data > 0], minlength=source.n_columns)
        table = pd.DataFrame(
            {"expressing": expressing, "measured": int(train.sum())}, index=pd.Index(self.names(number), dtype=object)
        )
        # A symbol that stands for several columns counts where it is seen most.
        return table[table.index.notna()].groupby(level=0).max()

    def _classes(self, column: str | None) -> Sequence[NDArray[np.int64] | None]:
        """Numbers of the classes of a column, the same in all files."""
        if column is None:
            return [None] * len(self.sources)
        # A cell without a label is not drawn where classes are; one without a batch has no minibatch.
        allow = column != self.config.batch_key
        own = [read_classes(source.obs, column, allow_unknown=allow) for source in self.sources]
        names = tuple(sorted({name for classes in own for name in classes.names}))
        return [read_classes(source.obs, column, names=names, allow_unknown=allow).codes for source in self.sources]


@contextmanager
def open_collection(
    config: DataConfig, folder: Path, *, genes: GeneList | None = None, columns: Sequence[str] = ()
) -> Iterator[Collection]:
    """Open the files of a configuration; matrices stay on disk.

    ``genes``: list that Ensembl ids are matched to; ``columns``: of ``obs`` that will be read beside those named.
    """
    read = [name for name in (config.label_key, config.batch_key, *columns) if name is not None]
    with ExitStack() as opened:
        sources = [
            opened.enter_context(_open(place, config)) for place in find_files(config.paths, folder, config.storage)
        ]
        if config.census is not None:
            sources.append(opened.enter_context(open_census(config.census, columns=tuple(read))))
        parts = [
            split_cells(source.names.to_numpy(), test=config.test, val=config.validation, seed=config.rng)
            for source in sources
        ]
        division = np.concatenate(parts)
        names = {} if genes is None else symbols_of_ids(genes)
        if (orthologs := config.orthologs) is not None:
            table = None if orthologs.table is None else folder / orthologs.table.expanduser()
            names |= names_for_human(orthologs.of, table, one_to_many=orthologs.one_to_many)
        yield Collection(config, tuple(sources), np.where(division == "val", "validation", division), names)


@contextmanager
def _open(place: Path | str, config: DataConfig) -> Iterator[RowSource]:
    if isinstance(place, Path) and is_sharded(place):
        if config.layer is not None or config.modality is not None:
            raise ValueError(
                f"Expected no `layer` and no `modality` for the shards in '{place}', which have one matrix."
            )
        yield shard_rows(place)
        return
    table = (
        open_table(place, modality=config.modality)
        if isinstance(place, Path)
        else open_url(place, modality=config.modality, storage=config.storage)
    )
    with table as adata:
        yield RowSource(adata, layer=config.layer)


def find_files(paths: Sequence[str], folder: Path, storage: Mapping[str, Any] | None = None) -> list[Path | str]:
    """Files and addresses that some paths and patterns stand for, each once.

    ``paths``: names, absolute or relative to the folder, or addresses; ``*`` stands for any part of a name; ``storage``:
    arguments of the file system of addresses.
    """
    found: dict[Path | str, None] = {}
    for path in paths:
        if is_url(path):
            there = find_urls(path, storage=storage or {})
            if not there:
                raise FileNotFoundError(f"Expected a file at '{path}', found none.")
            found |= dict.fromkeys(there)
            continue
        pattern = as_path("paths", path)
        root = Path(pattern.anchor) if pattern.is_absolute() else folder
        matches = sorted(root.glob(str(pattern.relative_to(pattern.anchor))))
        if not matches:
            raise FileNotFoundError(
                f"Expected a file at '{path}' in '{folder}', found none. Name the folder with `data`."
            )
        found |= dict.fromkeys(matches)
    return list(found)


def expressed_genes(counts: pd.DataFrame, config: VocabularyConfig) -> list[str]:
    """Genes of the data, or of the list, that enough training cells express."""
    enough = counts.index[counts["expressing"] >= config.min_cells]
    genes = list(enough)
    if config.name is not None:
        # By name and with a number of cells a list is what it is, whatever the data.
        known = set(enough)
        genes = [gene for gene in listed_genes(config.name) if config.min_cells <= 1 or gene in known]
    if not genes:
        raise ValueError(f"Expected genes expressed in at least {config.min_cells} training cells, found none.")
    return genes


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
