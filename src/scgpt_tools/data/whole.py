"""Whether a table on disk is all there.

What is missing from an array on disk reads as zeros without a word: a chunk that was never copied, row pointers that end
too early.  What can be seen from sizes and names of chunks is refused here; nothing but row pointers is read.
"""

from __future__ import annotations

import os
import time
from hashlib import sha256
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SPARSE = ("csr_matrix", "csc_matrix")
# Values that a chunk of zeros would have if it were like its neighbours, above which it is no chance that it has none.
_EXPECTED = 10
# Row pointers in memory at a time.
_POINTERS = 2**20
# Seconds within which a file may change twice and show the same times.
_LATELY = 2.0


def check_table(group: Any) -> None:
    """Refuse an AnnData on disk of which parts are missing or do not fit together."""
    shape = check_frames(group)
    if "X" in group:
        check_matrix(group["X"], "X", shape)
    layers = group["layers"] if "layers" in group else {}
    for name in layers:
        check_matrix(layers[name], f"layers[{name!r}]", shape)


def check_frames(group: Any) -> tuple[int, int]:
    """Refuse ``obs`` and ``var`` with columns of several lengths."""
    return _check_frame(group["obs"], "obs"), _check_frame(group["var"], "var")


def check_matrix(matrix: Any, place: str, shape: tuple[int, int]) -> None:
    """Refuse a matrix that is not all there, or not that of so many cells and genes.

    ``matrix``: element of HDF5 or zarr; other encodings than sparse and dense ones are not looked at.
    """
    encoding = matrix.attrs.get("encoding-type", "array")
    if encoding not in (*_SPARSE, "array"):
        return
    if encoding == "array" and not hasattr(matrix, "shape"):
        raise ValueError(_damaged(place, "a matrix", "a group without an encoding"))
    found = tuple(int(size) for size in (matrix.attrs["shape"] if encoding in _SPARSE else matrix.shape))
    if found != shape:
        sizes = " x ".join(map("{:,}".format, found))
        raise ValueError(_damaged(place, f"{shape[0]:,} cells and {shape[1]:,} genes", sizes))
    if encoding == "array":
        _check_dense(matrix, place)
        return
    parts = {name: matrix[name] for name in ("data", "indices", "indptr")}
    rows = shape[0] if encoding == "csr_matrix" else shape[1]
    _check_pointers(parts, place, rows)
    entries = parts["data"].shape[0]
    for name, array in parts.items():
        # Zeros that are all meant: no entry at all, or each row's only entry in the first column.
        if not (name == "indptr" and entries == 0) and not (name == "indices" and entries <= rows):
            _check_chunks(array, f"{place}/{name}")


def _check_frame(frame: Any, name: str) -> int:
    index = frame[str(frame.attrs["_index"])]
    if not hasattr(index, "shape") and "values" not in index:
        raise ValueError(_damaged(f"the index of {name}", "names", "something else"))
    _check_chunks(index, f"the index of {name}")
    length = _length(index)
    for column in frame.attrs["column-order"]:
        if str(column) not in frame or _length(frame[str(column)]) != length:
            raise ValueError(_damaged(f"{name}[{str(column)!r}]", f"{length:,} values", "another number"))
    return length


def _length(column: Any) -> int:
    for part in ("codes", "values"):
        if not hasattr(column, "shape") and part in column:
            return int(column[part].shape[0])
    return int(column.shape[0]) if len(getattr(column, "shape", ())) else -1


def _check_pointers(parts: dict[str, Any], place: str, rows: int) -> None:
    pointers, entries, before = parts["indptr"], parts["data"].shape[0], 0
    if pointers.shape != (rows + 1,):
        raise ValueError(_damaged(f"{place}/indptr", f"{rows + 1:,} pointers", f"{pointers.shape[0]:,}"))
    good = parts["indices"].shape == (entries,)
    for start in range(0, rows + 1, _POINTERS):
        run = np.asarray(pointers[start : start + _POINTERS])
        good = good and bool(run[0] >= before) and bool(np.all(np.diff(run) >= 0)) and (start > 0 or run[0] == 0)
        before = run[-1]
    if not good or before != entries:
        raise ValueError(_damaged(place, "pointers that ascend from 0 to the number of entries", "others"))


def _check_chunks(array: Any, place: str) -> None:
    """Refuse an array of which chunks are missing that no writer leaves out."""
    # Names may be texts with a mask beside them.
    array = array if hasattr(array, "shape") else array["values"]
    missing = sum(1 for _ in _missing(array))
    if missing:
        raise ValueError(_damaged(place, "all chunks", f"{missing:,} missing"))


def _check_dense(array: Any, place: str) -> None:
    """A dense matrix may lack chunks of zeros, which zarr does not write, but not those that its neighbours speak against."""
    if isinstance(array, h5py.Dataset):
        _check_chunks(array, place)
        return
    missing = set(_missing(array))
    if not missing:
        return
    grid = _grid_of(array)
    n_rows, n_columns = grid.counts
    filled: dict[int, float] = {}
    for row, column in sorted(missing):
        if all((row, other) in missing for other in range(n_columns)):
            raise ValueError(
                _damaged(place, "all chunks", f"none for the cells from number {row * grid.sizes[0]:,} on")
            )
        if column not in filled:
            filled[column] = _share_filled(
                array, grid, [r for r in range(n_rows) if (r, column) not in missing], column
            )
        if filled[column] * prod(grid.sizes) > _EXPECTED:
            raise ValueError(
                f"{_damaged(place, 'all chunks', f'one missing of genes that other cells have (chunk {row}, {column})')} "
                "If these are zeros, write them with `zarr.config.set({'array.write_empty_chunks': True})`."
            )


def _share_filled(array: Any, grid: Grid, rows: list[int], column: int) -> float:
    """Share of values that are not zero in the first chunk of a column of chunks."""
    if not rows:
        return 0.0
    (height, width), row = grid.sizes, rows[0]
    part = np.asarray(array[row * height : (row + 1) * height, column * width : (column + 1) * width])
    return float(np.count_nonzero(part)) / max(part.size, 1)


class Grid(NamedTuple):
    """How an array is cut into files."""

    counts: tuple[int, ...]
    sizes: tuple[int, ...]


def _grid_of(array: Any) -> Grid:
    sizes = tuple(getattr(array, "shards", None) or array.chunks)
    return Grid(tuple(ceil(size / chunk) for size, chunk in zip(array.shape, sizes, strict=True)), sizes)


def _missing(array: Any) -> Iterator[tuple[int, ...]]:
    """Places in the grid of the chunks that are not on disk."""
    if prod(array.shape) == 0:
        return
    if isinstance(array, h5py.Dataset):
        # HDF5 leaves out what was never written; whoever wrote a table wrote all of it.
        if array.is_virtual or array.external:
            return
        if array.chunks is None:
            absent = int(array.id.get_storage_size() == 0)
        else:
            absent = prod(_grid_of(array).counts) - array.id.get_num_chunks()
        yield from ((number,) for number in range(absent))
        return
    root = getattr(array.store, "root", None)
    if root is None:
        return
    folder = Path(root) / array.path
    for place in product(*map(range, _grid_of(array).counts)):
        if not os.path.lexists(folder / array.metadata.encode_chunk_key(place)):
            yield place


def _damaged(place: str, expected: str, found: str) -> str:
    return f"Expected `{place}` to hold {expected}, found {found}: the table is damaged or was not copied whole."


class Trace(NamedTuple):
    """What the file system knows of some files: while it stays the same, so does their content."""

    text: str
    """Digest of names, sizes and times."""
    size: int
    """Bytes."""
    settled: bool
    """Whether the last change is so long ago that another one would show another time."""


def trace_of(*paths: Path) -> Trace:
    """Look at sizes and times of files, and of all files in folders; nothing is read."""
    digest, size, newest = sha256(), 0, 0.0
    for path, about in sorted(_files(paths)):
        digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ctime_ns}\0{about.st_ino}\n".encode())
        size, newest = size + about.st_size, max(newest, about.st_ctime, about.st_mtime)
    return Trace(digest.hexdigest(), size, newest < time.time() - _LATELY)


def _files(paths: Iterable[Path]) -> Iterator[tuple[str, os.stat_result]]:
    for start in paths:
        if not start.is_dir():
            yield start.name, start.stat()
            continue
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                yield f"{start.name}/{path.relative_to(start).as_posix()}", path.stat()
