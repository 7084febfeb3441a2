"""Annotated cells to look up the neighbours of new ones in.

An index holds vectors, labels and where the vectors come from; it is a folder of a few files.  Search is exact and gives
the same neighbours with faiss and without.  For millions of cells there is :mod:`scgpt_tools.models.atlas`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from scgpt_tools._files import as_path, checksum_of, placed, read_json, read_steadily, settle, written_together
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_choice, check_integer, check_type
from scgpt_tools.config import from_dict
from scgpt_tools.models.calibration import Calibration
from scgpt_tools.models.neighbours import Neighbours

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

Backend: TypeAlias = Literal["auto", "faiss", "sklearn"]
"""Who looks for candidates: faiss where it is installed, or scikit-learn."""

VECTORS, LABELS, ABOUT = "vectors.npy", "labels.npy", "reference.json"
# Of an index with held-out cells.
_HELD_OUT = {name: f"held_out_{name}.npy" for name in ("codes", "weights", "neighbours", "distances")}

# Candidates beyond k whose distances are computed again: two backends round differently, so near the k-th neighbour
# they may disagree on who is in.
_SPARE = 8
_FORMAT = 1
# Cells whose candidates are compared at once.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class ReferenceIndex:
    """Vectors of annotated cells.

    Parameters
    ----------
    vectors
        (cells, dimensions) float32.
    codes
        (cells,) class of each cell, as a position in ``classes``.
    classes
        Names of the classes.
    source
        How the vectors were made, as :func:`scgpt_tools.tl.embed` leaves it in ``uns``; empty if unknown.
    calibration
        Cells of the reference that were mapped to the others, or ``None``.
    """

    vectors: NDArray[np.float32]
    codes: NDArray[np.int64]
    classes: tuple[str, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("vectors", "codes"):
            check_type(name, getattr(self, name), np.ndarray)
        if self.vectors.dtype.kind not in "fiu" or self.codes.dtype.kind not in "iu":
            raise TypeError(
                f"Expected vectors of numbers and codes of whole numbers, found {self.vectors.dtype} and "
                f"{self.codes.dtype}."
            )
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise ValueError(f"Expected vectors of at least one cell, found shape {self.vectors.shape}.")
        if self.codes.shape != (len(self.vectors),):
            raise ValueError(f"Expected one class for each of {len(self.vectors)} cells, found {self.codes.shape}.")
        if self.codes.min() < 0 or self.codes.max() >= len(self.classes):
            found = self.codes.min() if self.codes.min() < 0 else self.codes.max()
            raise ValueError(f"Expected classes numbered below {len(self.classes)}, found {found}.")
        for start in range(0, len(self), _ROWS):  # a part at a time, for the sake of memory
            bad = np.flatnonzero(~np.isfinite(self.vectors[start : start + _ROWS]).all(axis=1))
            if bad.size:
                raise ValueError(
                    f"Expected finite vectors, found missing or infinite numbers in row {start + bad[0]}. Leave such "
                    "cells out."
                )

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"ReferenceIndex({len(self)} cells, {self.dim} dimensions, {len(self.classes)} classes)"

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return self.vectors.shape[1]

    @property
    def proportions(self) -> NDArray[np.float64]:
        """(classes,) share of the cells of each class."""
        return np.bincount(self.codes, minlength=len(self.classes)) / len(self)

    def search(
        self, vectors: ArrayLike, k: int = 10, *, backend: Backend = "auto", among: NDArray[np.bool_] | None = None
    ) -> Neighbours:
        """Find the nearest cells.

        Parameters
        ----------
        vectors
            (N, dimensions) cells to look for.
        k
            Number of neighbours; fewer where the reference has fewer cells.
        backend
            Who looks; the result is the same.
        among
            (cells,) which cells of the reference to look among; ``None`` takes all.

        Returns
        -------
        Rows of the reference and squared Euclidean distances.

        Raises
        ------
        ValueError
            If the dimensions differ or a vector is not finite.
        """
        check_integer("k", k)
        check_choice("backend", backend, get_args(Backend))
        queries = finite_queries(vectors, self.dim)
        reference = self.vectors if among is None else self.vectors[among]
        k = min(k, len(reference))
        candidates = _BACKENDS[_chosen(backend)](reference, queries, min(k + _SPARE, len(reference)))
        found = _nearest(reference, queries, candidates, k)
        return found if among is None else found._replace(rows=np.flatnonzero(among)[found.rows])

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the index to a folder; its files take their place together, also where the index was loaded from it.

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
        if path.is_dir():
            settle(path)
            there = [name for name in _NAMES if (path / name).exists()]
            if there and not _is_ours(path):
                raise FileExistsError(
                    f"Expected a folder for a reference, found {', '.join(there)} of something else in {str(path)!r}, "
                    "which saving would replace. Choose another folder, or remove those."
                )
        arrays = {VECTORS: self.vectors.astype(np.float32, copy=False), LABELS: self.codes.astype(np.int64, copy=False)}
        if self.calibration is not None:
            arrays |= {file: getattr(self.calibration, name) for name, file in _HELD_OUT.items()}
        with written_together(path, instead_of=_HELD_OUT.values()) as aside:
            for name, array in arrays.items():
                _write_array(aside / name, np.ascontiguousarray(array))
            about = {
                "format": _FORMAT,
                "classes": list(self.classes),
                "source": plain(self.source),
                **({} if self.calibration is None else {"across": self.calibration.across}),
                "checksums": {name: checksum_of(aside / name) for name in arrays},
            }
            (aside / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> ReferenceIndex:
        """Read an index from a folder into memory, four bytes for each number of a vector.

        Parameters
        ----------
        folder
            Where :meth:`save` wrote.

        Returns
        -------
        The index.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If the folder was written in a format that this version does not know, a file is damaged or not the one that
            was saved with the others, or a vector is not finite.
        """
        path = as_path("folder", folder)
        return read_steadily(path, (*_NAMES, *_HELD_OUT.values()), lambda: cls(*_read(path)))


_NAMES = (VECTORS, LABELS, ABOUT)


def _is_ours(folder: Path) -> bool:
    try:
        return {"format", "classes"} <= read_json(folder / ABOUT).keys()
    except (OSError, ValueError):
        return False


def _read(folder: Path) -> tuple[Any, ...]:
    """The fields of an index."""
    files = {name: placed(folder, name) for name in _NAMES}
    if missing := [name for name, path in files.items() if path is None]:
        raise FileNotFoundError(f"Expected a reference in {str(folder)!r}, found no {', '.join(missing)} there.")
    present = {name: path for name, path in files.items() if path is not None}
    about = read_json(present[ABOUT])
    if about.get("format") != _FORMAT:
        raise ValueError(f"Expected a reference in format {_FORMAT}, found format {about.get('format')!r}.")
    content = from_dict(_About, about, where=ABOUT)
    # Folders of the first version have no checksums, and no held-out cells.
    held_out = {name: placed(folder, file) for name, file in _HELD_OUT.items() if file in content.checksums}
    if missing := [_HELD_OUT[name] for name, path in held_out.items() if path is None]:
        raise FileNotFoundError(f"Expected a reference in {str(folder)!r}, found no {', '.join(missing)} there.")
    kept = {name: path for name, path in held_out.items() if path is not None}
    check_checksums({**present, **{_HELD_OUT[name]: path for name, path in kept.items()}}, content.checksums, ABOUT)
    vectors = _read_array(present[VECTORS], "fiu", 2).astype(np.float32, copy=False)
    codes = _read_array(present[LABELS], "iu", 1).astype(np.int64, copy=False)
    calibration = None
    if kept:
        arrays = {
            name: _read_array(path, "fiu", 1 if name in ("codes", "weights") else 2) for name, path in kept.items()
        }
        calibration = Calibration(**arrays, across=content.across)
    return vectors, codes, content.classes, content.source, calibration


def check_checksums(files: Mapping[str, Path], checksums: Mapping[str, str], about: str) -> None:
    """Refuse files that are not those that were saved together; ``about``: the file that says which they are."""
    for name, expected in checksums.items():
        if name in files and checksum_of(files[name]) != expected:
            raise ValueError(
                f"Expected {str(files[name])!r} to be the file that was saved together with {about}, found another: "
                "its checksum differs. Copy the whole folder again, or build the reference anew."
            )


@dataclass(frozen=True, kw_only=True)
class _About:
    """What the file beside the arrays holds."""

    format: int
    classes: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict)
    across: str = ""
    checksums: dict[str, str] = field(default_factory=dict)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    """As ``numpy.save``, which says nothing where the disk is full and the last bytes of a file do not fit."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def _read_array(path: Path, kinds: str, axes: int) -> NDArray[Any]:
    """An array of a kind and a number of axes; its header is looked at before memory is taken."""
    expected = f"Expected {str(path)!r} to hold an array of {axes} axes, found"
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = header(file)
            there = path.stat().st_size - file.tell()
    except (ValueError, LookupError, EOFError, SyntaxError, TokenError, RecursionError, TypeError):
        raise ValueError(f"{expected} a damaged file. Copy it again, or build the reference anew.") from None
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.kind not in kinds or len(shape) != axes:
        raise ValueError(f"{expected} {dtype} of the shape {shape}.")
    if there != wanted or min(shape) < 0:
        raise ValueError(f"{expected} {there:,} bytes instead of {wanted:,} for the shape {shape}. Copy it again.")
    return np.load(path, allow_pickle=False)


def _chosen(backend: Backend) -> str:
    if backend != "auto":
        return backend
    return "faiss" if find_spec("faiss") is not None else "sklearn"


def _faiss(reference: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    index = optional("faiss", extra="index").IndexFlatL2(reference.shape[1])
    index.add(np.ascontiguousarray(reference))
    return index.search(queries, int(k))[1]


def _sklearn(reference: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    # Slow to import, and needed only where faiss is not installed.
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference).kneighbors(queries, return_distance=False)


_BACKENDS = {"faiss": _faiss, "sklearn": _sklearn}


def _nearest(
    reference: NDArray[np.float32], queries: NDArray[np.float32], candidates: NDArray[np.int64], k: int
) -> Neighbours:
    """The k nearest candidates by distances in double precision, ties in the order of the reference."""
    rows = np.empty((len(queries), k), dtype=np.int64)
    distances = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), _ROWS):
        some = slice(start, start + _ROWS)
        ascending = np.sort(candidates[some], axis=1)
        apart = reference[ascending].astype(np.float64) - queries[some, None, :]
        squared = np.einsum("nkd,nkd->nk", apart, apart)
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        rows[some] = np.take_along_axis(ascending, order, axis=1)
        distances[some] = np.take_along_axis(squared, order, axis=1)
    return Neighbours(rows, distances)


def finite_queries(vectors: ArrayLike, dim: int) -> NDArray[np.float32]:
    """Vectors to look for, checked."""
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"Expected vectors of {dim} dimensions as the reference has, found shape {queries.shape}.")
    bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if bad.size:
        raise ValueError(f"Expected finite vectors, found missing or infinite numbers in {bad.size} rows: {bad[:3]}.")
    return queries


def plain(value: Any) -> Any:
    """Numbers and texts as JSON knows them; files give some back as numpy's."""
    if hasattr(value, "items"):
        return {str(key): plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
