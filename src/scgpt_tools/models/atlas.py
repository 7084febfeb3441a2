"""An index of millions of annotated cells, in faiss' compressed form and scGPT's files.

A folder holds ``index.faiss`` (the vectors, as faiss writes them), ``meta.h5ad`` (HDF5 with ``meta_labels``, the class of
each cell as text) and ``index_config.json``, as scGPT's script for atlases leaves them.  Those that are written here have
more entries in the second and third, which scGPT does not look at: how the vectors were made, checksums, and held-out
cells.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from scgpt_tools._files import as_path, checksum_of, placed, read_json, read_steadily, settle, written_together
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_integer
from scgpt_tools._warnings import warn_user
from scgpt_tools.models.calibration import Calibration, draw_held_out, hold_out
from scgpt_tools.models.neighbours import Neighbours
from scgpt_tools.models.reference import check_checksums, finite_queries, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

VECTORS, LABELS, ABOUT = "index.faiss", "meta.h5ad", "index_config.json"
COMPRESSED, SCGPT = "compressed", "scgpt"
"""One byte for each dimension, and scGPT's own form; both with as many lists as suit the number of cells."""

_NAMES = (VECTORS, LABELS, ABOUT)
_META_LABELS, _HELD_OUT = "meta_labels", "held_out"
_ARRAYS = ("codes", "weights", "neighbours", "distances")
# Our own entries of index_config.json are under one key.
_OURS = "scgpt_tools"
# Queries that are looked for, and labels that are read or written, at once.
_ROWS, _LABEL_ROWS = 65_536, 1_000_000
# Bytes of an index from which on its size is said.
_MUCH = 1e9
# What faiss wants to train on for each centre of a cluster, and what it gets where there are as many; a code of a part
# of a vector has 256 centres, in the descriptions with these words.
_LEAST_OF_A_CENTRE, _OF_A_CENTRE, _CENTRES = 39, 64, 256
_LEARNED = ("PQ", "RQ", "LSQ")
# Lists to probe, by the number of lists, as scGPT sets them.
_PROBES = ((1_000, 16), (4_000, 32), (16_000, 64), (math.inf, 128))


@dataclass(frozen=True, eq=False)
class AtlasIndex:
    """Vectors of annotated cells in an index of faiss, as scGPT keeps atlases :cite:p:`Cui2024`.

    Compressed vectors are no longer the ones that went in: neighbours are nearly the nearest, and distances approximate.

    Parameters
    ----------
    index
        The index of faiss, of squared Euclidean distances.
    codes
        (cells,) class of each cell, as a position in ``classes``.
    classes
        Names of the classes.
    source
        How the vectors were made, as :func:`scgpt_tools.tl.embed` leaves it in ``uns``; empty if unknown.
    calibration
        Cells of the reference that were mapped to the others, or ``None``.
    description
        What the index was made by, for faiss' ``index_factory``.
    probes
        Lists that are looked into for a query; ``None`` takes scGPT's number, 16 to 128 by the number of lists.
    """

    index: Any
    codes: NDArray[np.integer[Any]]
    classes: tuple[str, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    description: str = ""
    probes: int | None = None

    def __post_init__(self) -> None:
        faiss = _faiss()
        if self.index.metric_type != faiss.METRIC_L2:
            raise ValueError("Expected an index of Euclidean distances, found one of another metric. Build it anew.")
        if self.codes.shape != (self.index.ntotal,) or not self.index.ntotal:
            raise ValueError(
                f"Expected one class for each of {self.index.ntotal:,} cells of the index, found {len(self.codes):,}."
            )
        if self.codes.min() < 0 or self.codes.max() >= len(self.classes):
            raise ValueError(
                f"Expected classes numbered below {len(self.classes)}, found {self.codes.min()} to {self.codes.max()}."
            )

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        about = f"{len(self)} cells, {self.dim} dimensions, {len(self.classes)} classes"
        return f"AtlasIndex({about}, {self.description!r})"

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return self.index.d

    @property
    def proportions(self) -> NDArray[np.float64]:
        """(classes,) share of the cells of each class."""
        return np.bincount(self.codes, minlength=len(self.classes)) / len(self)

    def search(
        self,
        vectors: ArrayLike,
        k: int = 10,
        *,
        probes: int | None = None,
        among: NDArray[np.bool_] | None = None,
    ) -> Neighbours:
        """Find nearly the nearest cells.

        Parameters
        ----------
        vectors
            (N, dimensions) cells to look for.
        k
            Number of neighbours; fewer where the reference has fewer cells.
        probes
            Lists to look into, more for a better recall; ``None`` takes :attr:`probes`.  Queries for which these hold
            fewer than ``k`` cells get more.
        among
            (cells,) which cells of the reference to look among; ``None`` takes all.

        Returns
        -------
        Rows of the reference and squared Euclidean distances, which are approximate if the vectors are compressed.

        Raises
        ------
        ValueError
            If the dimensions differ or a vector is not finite.
        """
        check_integer("k", k)
        queries = finite_queries(vectors, self.dim)
        k = min(k, len(self) if among is None else int(among.sum()))
        lists = _lists(self.index)
        probes = min(_probes(self.index, self.probes) if probes is None else check_integer("probes", probes), lists)
        rows = np.empty((len(queries), k), dtype=np.int64)
        distances = np.empty((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries), _ROWS):
            some = slice(start, start + _ROWS)
            distances[some], rows[some] = _search(self.index, queries[some], k, probes, among)
        wanting = np.flatnonzero((rows < 0).any(axis=1))
        while wanting.size and probes < lists:
            probes = min(4 * probes, lists)
            distances[wanting], rows[wanting] = _search(self.index, queries[wanting], k, probes, among)
            wanting = wanting[(rows[wanting] < 0).any(axis=1)]
        if wanting.size:
            raise ValueError(
                f"Expected {k} neighbours of every cell in the index, found fewer. Take one with lists ('IVF...') or 'Flat'."
            )
        return Neighbours(rows, distances)

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the index to a folder that scGPT's own ``load_index`` reads as well.

        Parameters
        ----------
        folder
            Where to write; it is made if there is none.  An index that is there is replaced.

        Returns
        -------
        The folder.

        Raises
        ------
        FileExistsError
            If the folder holds files of these names that are no index.
        """
        path = as_path("folder", folder)
        check_atlas_place(path)
        with written_together(path) as aside:
            _faiss().write_index(self.index, str(aside / VECTORS))
            _write_labels(aside / LABELS, self)
            own = {
                "source": plain(self.source),
                "across": "" if self.calibration is None else self.calibration.across,
                "checksums": {name: checksum_of(aside / name) for name in (VECTORS, LABELS)},
            }
            about = {
                "gpu": False,
                "meta_key": str(self.source.get("label_key", "cell_type")),
                "index_desc": self.description,
                "num_embeddings": len(self),
                "num_features": self.dim,
                "nprobe": _probes(self.index, self.probes) if _inverted(self.index) is not None else None,
                _OURS: own,
            }
            (aside / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> AtlasIndex:
        """Read an index of ours or of scGPT's from a folder into memory.

        Parameters
        ----------
        folder
            Where :meth:`save`, or scGPT's ``build_atlas_index_faiss.py``, wrote.

        Returns
        -------
        The index.

        Raises
        ------
        ImportError
            If faiss is not installed (extra ``index``).
        FileNotFoundError
            If a file is missing.
        ValueError
            If a file is damaged, or not the one that was saved with the others.
        """
        path = as_path("folder", folder)
        return read_steadily(path, _NAMES, lambda: _read(cls, path))

    @classmethod
    def build(
        cls,
        blocks: Callable[[], Iterable[NDArray[np.float32]]],
        codes: NDArray[np.integer[Any]],
        classes: tuple[str, ...],
        *,
        dim: int,
        description: str = COMPRESSED,
        source: Mapping[str, Any] | None = None,
        batches: NDArray[np.int64] | None = None,
        across: str = "",
        n_held_out: int = 0,
        rng: np.random.Generator | None = None,
    ) -> AtlasIndex:
        """Build an index from vectors that are read in blocks, twice: to learn from a sample of them, and to add them.

        Parameters
        ----------
        blocks
            Gives the vectors of all cells in their order, (n, dimensions) at a time.
        codes, classes, source
            As of the index; classes without cells are left out.
        dim
            Dimensions of the vectors.
        description
            For faiss' ``index_factory``, or :data:`COMPRESSED` or :data:`SCGPT`.
        batches, across
            (cells,) batch of each cell, and the column that they are from: held-out cells are looked up in other
            batches; ``None`` leaves out the cell alone.
        n_held_out
            How many cells to map to the others; of many classes more, for 50 of each.
        rng
            Draws the sample and the held-out cells; ``None`` is seeded with 0.

        Returns
        -------
        The index.

        Raises
        ------
        ImportError
            If faiss is not installed (extra ``index``).
        ValueError
            If faiss does not understand the description, or there are too few cells to train it on.

        Warns
        -----
        UserWarning
            If the index takes more memory than the machine has.
        """
        rng = np.random.default_rng(0) if rng is None else rng
        codes, classes = _occurring(codes, classes)
        n = len(codes)
        description = _description(description, n, dim)
        index = _made(description, dim)
        _say_size(index, n, description)
        wanted = 0 if index.is_trained else _training_cells(index, n, description)
        training = np.sort(rng.choice(n, wanted, replace=False))
        held_out = draw_held_out(codes, n_held_out, rng) if n_held_out else np.zeros(0, dtype=np.int64)
        sample, own = _picked(blocks(), training, held_out, dim)
        if wanted:
            try:
                index.train(sample)
            except RuntimeError as error:
                raise ValueError(_too_few(description, n, str(error))) from None
        del sample
        for block in blocks():
            index.add(np.ascontiguousarray(block, dtype=np.float32))
        built = cls(index, codes, classes, dict(source or {}), description=description)
        if not held_out.size:
            return built
        calibration = hold_out(built, held_out, own, batches, across)
        return cls(index, codes, classes, built.source, calibration, description)


def is_atlas(folder: Path) -> bool:
    """Whether a folder holds an index of this kind."""
    return folder.is_dir() and placed(folder, VECTORS) is not None


def check_atlas_place(folder: Path, *, overwrite: bool = True) -> None:
    """Refuse a folder in which something else has the names of an index, or an index that is not to be replaced."""
    if not folder.is_dir():
        return
    settle(folder)
    there = [name for name in _NAMES if (folder / name).exists()]
    if there and not (overwrite and _is_index(folder)):
        advice = "Choose another folder, or remove those." if overwrite else "Allow overwriting it."
        raise FileExistsError(
            f"Expected a folder for a reference, found {', '.join(there)} in {str(folder)!r}, which saving would replace. "
            f"{advice}"
        )


def _is_index(folder: Path) -> bool:
    try:
        return {"index_desc", "num_embeddings"} <= read_json(folder / ABOUT).keys()
    except (OSError, ValueError):
        return False


def _faiss() -> Any:
    return optional("faiss", extra="index")


# Building -------------------------------------------------------------------------------------------------------------


def _description(description: str, n: int, dim: int) -> str:
    """What faiss is told; scGPT's is for 33 million cells, and fewer cells get fewer lists."""
    if description not in (COMPRESSED, SCGPT):
        return description
    lists = 2 ** int(math.log2(max(1, min(4 * math.sqrt(n), n / _LEAST_OF_A_CENTRE))))
    if description == COMPRESSED:
        return f"IVF{lists},SQ8"
    kept = min(64, dim)
    parts = max(size for size in range(1, 17) if kept % size == 0)
    return f"PCA{kept},IVF{lists}_HNSW32,PQ{parts}"


def _occurring(codes: NDArray[np.integer[Any]], classes: tuple[str, ...]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Classes that have cells, in the order in which they are read from a file."""
    used = sorted(classes[number] for number in np.unique(codes))
    places = pd.Index(used).get_indexer(pd.Index(classes))
    return places[codes].astype(np.int32), tuple(used)


def _made(description: str, dim: int) -> Any:
    faiss = _faiss()
    try:
        return faiss.index_factory(dim, description, faiss.METRIC_L2)
    except RuntimeError as error:
        raise ValueError(
            f"Expected `index` to be 'exact', {COMPRESSED!r}, {SCGPT!r} or a description for faiss' index_factory such as "
            f"'IVF1024,SQ8', found {description!r} ({_said(error)})."
        ) from None


def _size_of(index: Any, n: int) -> int | None:
    """Bytes in memory of an index of so many cells: codes, numbers in lists, links of a graph, and centres.

    ``None`` where faiss does not know.
    """
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _size_of(index.index, n)
    if isinstance(index, faiss.IndexRefine):
        return _sum(_size_of(index.base_index, n), _size_of(index.refine_index, n))
    if isinstance(index, faiss.IndexIVF):
        return _sum(n * (int(index.code_size) + 8), _size_of(index.quantizer, index.nlist))
    if isinstance(index, faiss.IndexHNSW):
        lowest, other = (index.hnsw.nb_neighbors(level) for level in (0, 1))
        # One cell in `other` reaches the next level, and so on; a link takes four bytes, the place of a cell's links twelve.
        links = 4 * (lowest + other / (other - 1)) + 12
        return _sum(_size_of(index.storage, n), round(n * links))
    try:
        return n * int(index.sa_code_size())
    except RuntimeError:
        return None


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _say_size(index: Any, n: int, description: str) -> None:
    """Say what an index will take before it is built."""
    size, there = _size_of(index, n), _memory()
    if size is None or size < _MUCH:
        return
    logger.info("The index %r of %s cells takes about %.1f GB of memory.", description, f"{n:,}", size / 1e9)
    if there is not None and size > there:
        warn_user(
            f"Expected an index that fits into the {there / 1e9:.1f} GB of memory that this machine has, found {description!r} "
            f"of {n:,} cells, which takes about {size / 1e9:.1f} GB. Take {SCGPT!r}, which takes some 30 bytes a cell, or index "
            "fewer cells."
        )


def _memory() -> int | None:
    """Bytes of memory of this machine, where the system says."""
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", ()))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else None


def _training_cells(index: Any, n: int, description: str) -> int:
    learned = any(code in description for code in _LEARNED)
    bits = re.search(r"x(\d+)", description)  # of a code, 8 if it says nothing
    of_a_code = _CENTRES if bits is None else 2 ** int(bits[1])
    centres = max(_lists(index), of_a_code if learned else 1)
    if n < _LEAST_OF_A_CENTRE * centres:
        raise ValueError(_too_few(description, n, f"{_LEAST_OF_A_CENTRE} for each of {centres:,} centres"))
    return min(n, _OF_A_CENTRE * max(centres, _CENTRES))


def _too_few(description: str, n: int, why: str) -> str:
    return (
        f"Expected enough cells to train an index {description!r}, found {n:,} ({why}). Take 'Flat', "
        "which needs none, or one with fewer lists."
    )


def _said(error: Exception) -> str:
    """The last sentence of faiss' message, which begins with a place in its source."""
    return " ".join(str(error).split()).rpartition("Error: ")[2][:120]


def _picked(
    blocks: Iterable[NDArray[np.float32]], one: NDArray[np.int64], two: NDArray[np.int64], dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of some rows, and of some others, of blocks; rows are ascending."""
    found = tuple(np.empty((len(rows), dim), dtype=np.float32) for rows in (one, two))
    start = 0
    for block in blocks:
        for rows, vectors in zip((one, two), found, strict=True):
            first, last = np.searchsorted(rows, (start, start + len(block)))
            vectors[first:last] = block[rows[first:last] - start]
        start += len(block)
    return found[0], found[1]


# Searching ------------------------------------------------------------------------------------------------------------


def _inverted(index: Any) -> Any:
    """The part of an index that has lists, or ``None``."""
    return _faiss().try_extract_index_ivf(index)


def _lists(index: Any) -> int:
    inverted = _inverted(index)
    return 1 if inverted is None else inverted.nlist


def _probes(index: Any, wanted: int | None) -> int:
    lists = _lists(index)
    return min(wanted or next(probes for most, probes in _PROBES if lists <= most), lists)


def _search(
    index: Any, queries: NDArray[np.float32], k: int, probes: int, among: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if not len(queries) or not k:
        return np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
    chosen = None if among is None else _faiss().IDSelectorBitmap(np.packbits(among, bitorder="little"))
    parameters = _parameters(index, probes, chosen)
    try:
        return index.search(queries, int(k), params=parameters)
    except RuntimeError as error:
        if among is None:
            raise
        raise ValueError(
            "Expected an index that can look among some cells only, as held-out cells of other batches need, found one that "
            f"cannot ({_said(error)}). Take one with lists ('IVF...') or 'Flat', or no `batch_key`."
        ) from None


def _parameters(index: Any, probes: int, chosen: Any) -> Any:
    """Settings of one search, which leave those of the index alone."""
    faiss = _faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, probes, chosen))
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(
            k_factor=index.k_factor, base_index_params=_parameters(index.base_index, probes, chosen)
        )
    given = {} if chosen is None else {"sel": chosen}
    if isinstance(index, faiss.IndexIVF):
        kind = faiss.IVFPQSearchParameters if isinstance(index, faiss.IndexIVFPQ) else faiss.SearchParametersIVF
        return kind(nprobe=probes, **given)
    return faiss.SearchParameters(**given) if given else None


# Files ----------------------------------------------------------------------------------------------------------------


def _write_labels(path: Path, atlas: AtlasIndex) -> None:
    names = np.asarray(atlas.classes, dtype=object)
    with h5py.File(path, "w") as file:
        labels = file.create_dataset(
            _META_LABELS,
            shape=len(atlas),
            dtype=h5py.string_dtype(),
            chunks=(min(len(atlas), _ROWS),),
            compression="gzip",
        )
        for start in range(0, len(atlas), _LABEL_ROWS):
            some = slice(start, start + _LABEL_ROWS)
            labels[some] = names[atlas.codes[some]]
        if atlas.calibration is not None:
            group = file.create_group(_HELD_OUT)
            for name in _ARRAYS:
                group.create_dataset(name, data=getattr(atlas.calibration, name))


def _read_labels(path: Path) -> tuple[NDArray[np.int32], tuple[str, ...], dict[str, NDArray[Any]]]:
    """Classes of the cells by number, the names of the numbers, and what is known of held-out cells."""
    with h5py.File(path, "r") as file:
        labels = file[_META_LABELS]
        numbers = np.empty(len(labels), dtype=np.int32)
        known: dict[str, int] = {}
        for start in range(0, len(labels), _LABEL_ROWS):
            codes, names = pd.factorize(labels.asstr()[start : start + _LABEL_ROWS])
            numbers[start : start + len(codes)] = np.array([known.setdefault(name, len(known)) for name in names])[
                codes
            ]
        held_out = {name: file[_HELD_OUT][name][:] for name in _ARRAYS} if _HELD_OUT in file else {}
    classes = sorted(known)
    places = np.empty(len(known), dtype=np.int32)
    places[[known[name] for name in classes]] = np.arange(len(known))
    return places[numbers], tuple(classes), held_out


def _read(kind: type[AtlasIndex], folder: Path) -> AtlasIndex:
    found = {name: placed(folder, name) for name in _NAMES}
    if missing := [name for name, path in found.items() if path is None]:
        raise FileNotFoundError(f"Expected a reference in {str(folder)!r}, found no {', '.join(missing)} there.")
    files = {name: path for name, path in found.items() if path is not None}
    about = read_json(files[ABOUT])
    own = about.get(_OURS, {})
    own = own if isinstance(own, dict) else {}
    check_checksums(files, own.get("checksums", {}), ABOUT)
    try:
        codes, classes, held_out = _read_labels(files[LABELS])
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {str(files[LABELS])!r} to be HDF5 with the class of each cell as {_META_LABELS!r}, found something "
            f"else or a damaged file ({error}). Copy it again."
        ) from None
    try:
        index = _faiss().read_index(str(files[VECTORS]))
    except RuntimeError as error:
        raise ValueError(
            f"Expected {str(files[VECTORS])!r} to be an index of faiss, found something else or a damaged file "
            f"({_said(error)}). Copy it again."
        ) from None
    calibration = Calibration(**held_out, across=str(own.get("across", ""))) if held_out else None
    probes = about.get("nprobe")
    return kind(
        index,
        codes,
        classes,
        own.get("source", {}),
        calibration,
        str(about.get("index_desc", "")),
        probes if isinstance(probes, int) and probes > 0 else None,
    )
