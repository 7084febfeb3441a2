"""Cells in shards as scModelForge writes them: arrays that are mapped into memory, and a manifest.

Each shard is a folder with ``X.npy`` (float32) and ``gene_indices.npy`` (int64), whose rows are the values above zero of a
cell and their token ids, with zeros behind; ``n_genes.npy``, ``obs.parquet`` and ``metadata.json``.  Unlike the original's,
the reader compares the vocabulary, which lies beside the manifest as ``gene_vocab.json``.  There too are the names of the
cells, ``obs_names.npy`` (bytes of UTF-8), which draws and divisions depend on, and ``measured_genes.json``, the genes that
the table had, in its order, which ties of ranks are broken by; a gene that it lacked is no gene without molecules.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgpt_tools._files import as_path, read_json, written_together
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_integer, check_texts
from scgpt_tools.data.rows import RowSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.vocabulary import Vocabulary

MANIFEST, OBS, GENES, NAMES = "manifest.json", "obs.parquet", "gene_vocab.json", "obs_names.npy"
MEASURED = "measured_genes.json"


@dataclass(frozen=True, eq=False)
class Shard:
    """Some cells, of which nothing is read before it is asked for."""

    values: NDArray[np.float32]
    """(n, M) values above zero, then zeros."""
    genes: NDArray[np.int64]
    """(n, M) token ids, then zeros."""
    n_genes: NDArray[np.int64]
    """(n,) how many are there."""
    obs: pd.DataFrame
    """What is known of the cells."""

    def rows(self, start: int, stop: int) -> Shard:
        """Some neighbouring cells, of which nothing is read either."""
        some = slice(start, stop)
        return Shard(self.values[some], self.genes[some], self.n_genes[some], self.obs.iloc[some])

    def matrix(self, n_tokens: int) -> sp.csr_matrix:
        """Put the values into a table with a column for each token.

        Parameters
        ----------
        n_tokens
            Size of the vocabulary.
        """
        there = np.arange(self.values.shape[1]) < self.n_genes[:, None]
        starts = np.concatenate(([0], np.cumsum(self.n_genes)))
        found = sp.csr_matrix((self.values[there], self.genes[there], starts), shape=(len(self.n_genes), n_tokens))
        found.sort_indices()
        return found


def write_shards(
    source: RowSource,
    features: FeatureTable,
    vocabulary: Vocabulary,
    folder: str | PathLike[str],
    *,
    shard_size: int = 500_000,
    obs_keys: Sequence[str] = (),
    absent: str | None = None,
) -> Path:
    """Write cells in shards, one after another.

    Parameters
    ----------
    source
        The cells.
    features
        Which columns are which tokens; other genes are left out.
    vocabulary
        What ``features`` were matched to; its hash goes to the manifest.
    folder
        Where to write; must hold no manifest yet.
    shard_size
        Cells of a shard.
    obs_keys
        Columns of ``obs`` to keep (extra ``text``, for pyarrow), of the kind that they are: categories, numbers, truth values
        and texts, with missing values missing; without any no ``obs.parquet`` is written.
    absent
        What stands for a column that is not there; ``None`` refuses it.

    Returns
    -------
    The folder.

    Raises
    ------
    FileExistsError
        If the folder holds shards already.
    ImportError
        If columns of ``obs`` are kept and pyarrow is not installed.
    KeyError
        If a column of ``obs`` is not there.
    """
    check_integer("shard_size", shard_size)
    place, keys = as_path("folder", folder), check_texts("obs_keys", obs_keys, least=0)
    if keys:
        optional("pyarrow", extra="text")
    missing = [key for key in keys if key not in source.obs.columns]
    if missing and absent is None:
        raise KeyError(f"Expected the columns {missing} in obs, found {list(map(str, source.obs.columns))[:8]}.")
    if (place / MANIFEST).exists():
        raise FileExistsError(f"Expected a folder without shards, found {MANIFEST} in {str(place)!r}. Choose another.")
    # As a whole: of which kind a column is must not depend on the cells of a shard.
    obs = pd.DataFrame(
        {key: np.full(len(source), absent) if key in missing else _kept(source.obs[key]) for key in keys},
        index=range(len(source)),
    )
    sizes = []
    for number, start in enumerate(range(0, len(source), shard_size)):
        cells = np.arange(start, min(start + shard_size, len(source)))
        _write(place / f"shard_{number:03d}", source.take(cells), features, obs.iloc[cells].reset_index(drop=True))
        sizes.append(len(cells))
    manifest = {
        "n_shards": len(sizes),
        "total_cells": len(source),
        "shard_sizes": sizes,
        "vocab_hash": vocabulary_hash(vocabulary),
    }
    measured = [vocabulary.tokens[number] for number in features.ids]
    with written_together(place) as aside:
        for name, genes in ((GENES, _genes(vocabulary)), (MEASURED, measured)):
            (aside / name).write_text(json.dumps(genes, ensure_ascii=False) + "\n", encoding="utf-8")
        np.save(aside / NAMES, np.char.encode(source.names.to_numpy(dtype=str), "utf-8"))
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return place


def open_shards(folder: str | PathLike[str], vocabulary: Vocabulary) -> list[Shard]:
    """Open shards without reading them.

    Parameters
    ----------
    folder
        What :func:`write_shards` or scModelForge wrote.
    vocabulary
        The one that token ids are of.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ImportError
        If the shards have columns of ``obs`` and pyarrow is not installed.
    ValueError
        If the shards were written with another vocabulary.
    """
    return _open_all(as_path("folder", folder), vocabulary_hash(vocabulary))


def _open_all(place: Path, written_with: str) -> list[Shard]:
    if not is_sharded(place):
        raise FileNotFoundError(f"Expected {MANIFEST} in the folder of shards {str(place)!r}, found none.")
    manifest = read_json(place / MANIFEST)
    if manifest.get("vocab_hash") != written_with:
        raise ValueError(
            f"Expected shards of this vocabulary in {str(place)!r}, found those of another: their token ids would stand for "
            "other genes. Write them again."
        )
    return [
        _open(place / f"shard_{number:03d}") for number in range(check_integer("n_shards", manifest.get("n_shards")))
    ]


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds shards."""
    return (folder / MANIFEST).is_file()


def shard_rows(folder: str | PathLike[str]) -> RowSource:
    """Rows of all shards, as of a table whose genes are those of their vocabulary; values are mapped, not read.

    Raises
    ------
    FileNotFoundError
        If a file is not there, such as the vocabulary, which scModelForge does not write.
    ValueError
        If the shards were written with another vocabulary.
    """
    place = as_path("folder", folder)
    if not (place / GENES).is_file():
        raise FileNotFoundError(
            f"Expected {GENES} in the folder of shards {str(place)!r}, the ids of genes that they were written with, found "
            "none. Put the vocabulary there under that name."
        )
    ids = read_json(place / GENES, what="one object, gene to id")
    shards = _open_all(place, _hash_of(ids))
    starts = np.cumsum([0, *(len(shard.n_genes) for shard in shards)])
    obs = pd.concat([shard.obs for shard in shards], ignore_index=True)
    obs.index = pd.Index(_names(place) or [f"{place.name}-{number}" for number in range(len(obs))])
    n_tokens = max(ids.values(), default=-1) + 1
    if (place / MEASURED).is_file():
        ids = {gene: ids[gene] for gene in _measured(place / MEASURED, ids)}
    columns = np.array(list(ids.values()), dtype=np.int64)

    def read(start: int, stop: int) -> sp.csr_matrix:
        first, last = np.searchsorted(starts, [start, max(stop - 1, start)], side="right") - 1
        parts = []
        for number in range(first, last + 1):
            low, high = max(start - starts[number], 0), min(stop - starts[number], starts[number + 1] - starts[number])
            parts.append(shards[number].rows(int(low), int(high)).matrix(n_tokens))
        return sp.vstack(parts, format="csr")[:, columns]

    return RowSource.from_reader(AnnData(obs=obs, var=pd.DataFrame(index=list(ids))), read)


def vocabulary_hash(vocabulary: Vocabulary) -> str:
    """MD5 of the genes and their ids, as scModelForge has it; it tells vocabularies apart and protects from nothing."""
    return _hash_of(_genes(vocabulary))


def _genes(vocabulary: Vocabulary) -> dict[str, int]:
    return {token: number for number, token in enumerate(vocabulary) if not vocabulary.is_special(token)}


def _hash_of(genes: Mapping[str, int]) -> str:
    return hashlib.md5(json.dumps(genes, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _write(folder: Path, X: sp.csr_matrix, features: FeatureTable, obs: pd.DataFrame) -> None:
    known = sp.csr_matrix(X)[:, features.columns]
    known.data[known.data < 0] = 0
    known.eliminate_zeros()
    known.sort_indices()
    counts = np.diff(known.indptr).astype(np.int64)
    most = int(max(counts, default=0))
    values, genes = np.zeros((len(counts), most), np.float32), np.zeros((len(counts), most), np.int64)
    there = np.arange(most) < counts[:, None]
    values[there], genes[there] = known.data, features.ids[known.indices]
    with written_together(folder) as aside:
        for name, array in (("X", values), ("gene_indices", genes), ("n_genes", counts)):
            np.save(aside / f"{name}.npy", array)
        if len(obs.columns):
            obs.to_parquet(aside / OBS)
        said = {"n_cells": len(counts), "max_genes": most}
        (aside / "metadata.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _kept(column: pd.Series[Any]) -> Any:
    """A column of ``obs`` as one that parquet keeps: of mixed kinds as texts."""
    kind: Any = column.dtype
    if isinstance(kind, pd.CategoricalDtype) and not pd.api.types.is_string_dtype(kind.categories):
        # Parquet has categories of texts only.
        column = pd.Series(pd.array(kind.categories.to_numpy()).take(column.cat.codes, allow_fill=True))
    if column.dtype != object:
        return column.array
    known = column.notna()
    if known.any() and all(isinstance(value, bool | np.bool_) for value in column[known]):
        return column.astype("boolean").array
    return column.astype(str).astype("string").where(known).array


def _open(folder: Path) -> Shard:
    values, genes, n_genes = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("X", "gene_indices", "n_genes")
    )
    obs = pd.DataFrame(index=range(len(n_genes)))
    if (folder / OBS).is_file():
        optional("pyarrow", extra="text")
        obs = pd.read_parquet(folder / OBS)
    return Shard(values, genes, n_genes, obs)


def _measured(path: Path, ids: Mapping[str, int]) -> list[str]:
    """Genes that the table of some shards had."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, list) or not all(isinstance(gene, str) and gene in ids for gene in found):
        raise ValueError(f"Expected {str(path)!r} to list genes of {GENES}, found others. Write the shards again.")
    return found


def _names(folder: Path) -> list[str] | None:
    """Names of the cells of some shards; ``None`` where there are none, as in the original's."""
    if not (folder / NAMES).is_file():
        return None
    found: list[str] = np.char.decode(np.load(folder / NAMES, allow_pickle=False), "utf-8").tolist()
    return found
