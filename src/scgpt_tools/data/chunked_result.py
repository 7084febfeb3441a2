"""One row per cell in a zarr folder that several processes write, a chunk at a time, and that survives their death.

Beside the target lies a folder of the same name with ``.partial`` behind it until all is there.  It holds the result
and a small file for each finished chunk, made after the chunk and pushed to the disk after it, so what is marked is
whole; the file keeps checksums of what the chunk was computed from and of what was written.  No two processes are given
the same chunk, a chunk of cells is a chunk of the arrays, and whoever sees that none is missing gives the folder its
name.  So nobody has to wait, and there is nothing to say to each other.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from scgpt_tools._files import as_path, replace_file
from scgpt_tools._optional import optional
from scgpt_tools._outputs import check_place, hold, let_go

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

_REQUEST, _CHUNKS = "scgpt_tools_request", "scgpt_tools_chunks"
_RESULT, _FINISHED, _WORKING, _OWNER = "result.zarr", "finished", "working", "owner"


class Record(NamedTuple):
    """What is known of a finished chunk."""

    content: str
    """Checksum of what it was computed from."""
    result: str
    """Checksum of names and values as they were written."""
    trace: str
    """What the file system knew of the source then; while it knows the same, the content need not be read again."""


@dataclass(frozen=True, kw_only=True)
class ChunkLayout:
    """What a result is to hold, and which request it answers."""

    cells: int
    width: int
    chunk: int
    """Cells of a chunk."""
    key: str
    """Name in ``obsm`` and ``uns``."""
    about: Mapping[str, Any]
    """Contents of ``uns[key]``."""
    request: Mapping[str, str]
    """What has to agree for finished chunks to be of use."""

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.cells // self.chunk)

    def bounds(self, number: int) -> tuple[int, int]:
        """First cell of a chunk, and the one after its last."""
        return number * self.chunk, min((number + 1) * self.chunk, self.cells)


class ChunkedResult:
    """An AnnData in zarr with names of cells and one ``obsm``, written by chunks.

    Parameters
    ----------
    path
        Where the result is to be; made, or gone on with, beside it.
    layout
        What it holds.

    Raises
    ------
    FileExistsError
        If there is something else at the path.
    ValueError
        If the unfinished result there, or the finished one, answers another request; the message says what differs.
    FileNotFoundError
        If the folder of the path does not exist.
    """

    def __init__(self, path: str | PathLike[str], layout: ChunkLayout) -> None:
        self.path = check_result_path(path)
        self.layout = layout
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        # Of a process that was killed between giving the result its name and clearing up.
        if (self._partial / _FINISHED).is_dir() and not (self._partial / _RESULT).exists():
            shutil.rmtree(self._partial, ignore_errors=True)
        if not self.finished and not self._partial.exists():
            self._prepare()
        self._check_request()

    @property
    def finished(self) -> bool:
        """Whether the result is whole and has its name."""
        return self.path.exists()

    def missing(self, rank: int, processes: int) -> list[int]:
        """Chunks that a process has yet to compute."""
        if self.finished:
            return []
        done = self.records()
        # By number and not by place among the missing ones, which processes that start later see fewer of.
        return [number for number in range(rank, self.layout.n_chunks, processes) if number not in done]

    def records(self) -> dict[int, Record]:
        """What is known of the finished chunks, by number."""
        if self.finished:
            return dict(enumerate(_records_of(self.path)))
        try:
            marks = list((self._partial / _FINISHED).iterdir())
        except FileNotFoundError:
            # Another process publishes in this very moment.
            if self.finished:
                return dict(enumerate(_records_of(self.path)))
            raise
        numbers = (mark for mark in marks if mark.name.isdigit() and int(mark.name) < self.layout.n_chunks)
        found = {int(mark.name): _read_record(mark) for mark in numbers}
        return {number: record for number, record in found.items() if record is not None}

    def is_whole(self, number: int, record: Record) -> bool:
        """Whether a finished chunk still holds what was written."""
        start, stop = self.layout.bounds(number)
        index, rows = self._arrays("r")
        return _digest(index[start:stop], rows[start:stop]) == record.result

    def drop(self, number: int) -> None:
        """Take a chunk for unfinished."""
        (self._partial / _FINISHED / str(number)).unlink(missing_ok=True)

    def mark(self, number: int, record: Record) -> None:
        """Write down what is known of a finished chunk."""
        replace_file(
            self._partial / _FINISHED / str(number), lambda aside: aside.write_text(json.dumps(record._asdict()))
        )

    @contextmanager
    def working_on(self, number: int) -> Iterator[bool]:
        """Keep other processes from a chunk.

        Yields whether it has to be computed; another process may have done so.
        """
        lock = self._partial / _WORKING / str(number)
        try:
            descriptor = hold(lock, f"chunk {number} of '{self.path}'")
        except FileNotFoundError:
            if not self.finished:
                raise
            yield False
            return
        try:
            yield _read_record(self._partial / _FINISHED / str(number)) is None and not self.finished
        finally:
            lock.unlink(missing_ok=True)
            let_go(descriptor)

    def write(
        self, number: int, names: Sequence[str], values: NDArray[np.float32], *, content: str = "", trace: str = ""
    ) -> None:
        """Write a chunk, then its mark.

        ``values`` (cells of the chunk, width); ``trace``: what the file system knew of that; blank if that is not to be
        relied on.
        """
        start, stop = self.layout.bounds(number)
        index, rows = self._arrays("r+")
        index[start:stop] = np.asarray(names, dtype=object)
        rows[start:stop] = values
        for array, place in ((index, (number,)), (rows, (number, 0))):
            _push_to_disk(self._file(array, place))
        self.mark(number, Record(content, _digest(names, values), trace))

    def publish(self) -> bool:
        """Give the result its name if no chunk is missing.

        Returns whether the result is whole; if not, other processes are still at work, or have to be started again.
        """
        if self.finished:
            return True
        records = self.records()
        if len(records) < self.layout.n_chunks:
            return self.finished
        try:
            self._check_files()
            about = self._partial / _RESULT / "zarr.json"
            settled = json.loads(about.read_text(encoding="utf-8"))
            settled["attributes"][_CHUNKS] = [records[number] for number in range(self.layout.n_chunks)]
            replace_file(about, lambda aside: aside.write_text(json.dumps(settled), encoding="utf-8"))
            (self._partial / _RESULT).rename(self.path)
            _push_to_disk(self.path.parent)
        except OSError:
            if not self.finished:
                raise
            return True
        shutil.rmtree(self._partial, ignore_errors=True)
        return True

    def _check_files(self) -> None:
        """Look once more at the files of all chunks, whoever has written them, and clear what killed writers left."""
        for left in (self._partial / _RESULT).rglob("*.partial"):
            left.unlink(missing_ok=True)
        _, rows = self._arrays("r")
        size = self.layout.chunk * self.layout.width * rows.dtype.itemsize
        for number in range(self.layout.n_chunks):
            file = self._file(rows, (number, 0))
            if not file.is_file() or file.stat().st_size != size:
                if self.finished:
                    return
                self.drop(number)
                raise ValueError(
                    f"Expected chunk {number} of '{self._partial}' to be there as it was written, found it missing or cut. "
                    "Call again to compute it once more."
                )

    def _arrays(self, mode: str) -> tuple[Any, Any]:
        """Names and rows."""
        store = self.path if self.finished else self._partial / _RESULT
        try:
            root = optional("zarr", extra="scale").open_group(store, mode=mode, use_consolidated=False)
            index, rows = root["obs/_index"], root[f"obsm/{self.layout.key}"]
            good = index.shape == (self.layout.cells,) and rows.shape == (self.layout.cells, self.layout.width)
        except (KeyError, ValueError, TypeError, FileNotFoundError) as error:
            if not store.exists() and not self.finished:
                raise
            raise ValueError(_damaged(store)) from error
        if not good:
            raise ValueError(_damaged(store))
        return index, rows

    def _file(self, array: Any, place: tuple[int, ...]) -> Path:
        return Path(array.store.root) / array.path / array.metadata.encode_chunk_key(place)

    def _prepare(self) -> None:
        """Make the folder elsewhere and move it here whole; the first of several processes wins, the others agree."""
        self._clear_layouts()
        folder = self.path.with_name(f".{self.path.name}.{uuid4().hex}.layout")
        descriptor = hold(folder / _OWNER, f"'{folder}'")
        try:
            (folder / _FINISHED).mkdir()
            _write_layout(folder / _RESULT, self.layout)
            folder.rename(self._partial)
            (self._partial / _OWNER).unlink(missing_ok=True)
        except OSError:
            if not (self._partial / _FINISHED).is_dir() and not self.finished:
                raise
        finally:
            if folder.exists():
                shutil.rmtree(folder)
            let_go(descriptor)

    def _clear_layouts(self) -> None:
        """Delete what processes left that were killed while they made the folder."""
        for left in self.path.parent.glob(f".{escape(self.path.name)}.*.layout"):
            with suppress(OSError):
                descriptor = hold(left / _OWNER, f"'{left}'")
                shutil.rmtree(left, ignore_errors=True)
                let_go(descriptor)

    def _check_request(self) -> None:
        before, place = _request_of(self._partial / _RESULT), self._partial
        # Another process may have finished the last chunk in this very moment.
        if self.finished:
            before, place = _request_of(self.path), self.path
        if before is None:
            raise FileExistsError(
                f"Expected an output that does not exist yet, but there is something else at '{place}'."
            )
        request = self.layout.request
        if different := sorted(name for name in request if before.get(name) != request[name]):
            raise ValueError(
                f"Expected '{place}' to hold the result of the same call, found other {', '.join(different)}. Choose "
                "another output, or delete this one."
            )


def check_result_path(path: str | PathLike[str]) -> Path:
    """Refuse a place where a result could not be written, before any work begins."""
    result = as_path("output", path).resolve()
    if result.suffix != ".zarr":
        raise ValueError(f"Expected an output that ends in .zarr, which several processes can write, found '{path}'.")
    if not result.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of the output to exist, found none at '{result.parent}'.")
    check_place(result.parent)
    return result


def _write_layout(path: Path, layout: ChunkLayout) -> None:
    """Everything but the cells, as AnnData writes it."""
    zarr = optional("zarr", extra="scale")
    root = zarr.open_group(path, mode="w", zarr_format=3)
    with warnings.catch_warnings():
        # AnnData announces another default for version 3 of zarr; the arrays that matter here are made below.
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        write_elem(root, "/", AnnData(obs=pd.DataFrame(index=pd.Index([], dtype=object))))
        write_elem(root["uns"], layout.key, dict(layout.about))
    attributes = dict(root["obs/_index"].attrs)
    del root["obs/_index"]
    index = root["obs"].create_array("_index", shape=(layout.cells,), chunks=(layout.chunk,), dtype=str)
    index.attrs.update(attributes)
    # Not compressed: floats of a network do not get smaller.  What is not there yet reads as NaN.
    rows = root["obsm"].create_array(
        layout.key,
        shape=(layout.cells, layout.width),
        chunks=(layout.chunk, layout.width),
        dtype="float32",
        fill_value=np.nan,
        compressors=None,
    )
    rows.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    root.attrs[_REQUEST] = dict(layout.request)


def _attributes(store: Path) -> Mapping[str, Any]:
    """What a store of zarr tells of itself; nothing if it is none."""
    try:
        about = json.loads((store / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = about.get("attributes", {}) if isinstance(about, dict) else {}
    return found if isinstance(found, dict) else {}


def _request_of(store: Path) -> Mapping[str, str] | None:
    """Description of a store of ours, finished or not."""
    request = _attributes(store).get(_REQUEST)
    return request if isinstance(request, dict) else None


def _records_of(store: Path) -> list[Record]:
    """What a finished store knows of its chunks."""
    try:
        return [Record(*map(str, chunk)) for chunk in _attributes(store)[_CHUNKS]]
    except (KeyError, TypeError) as error:
        raise ValueError(_damaged(store)) from error


def _read_record(mark: Path) -> Record | None:
    """What a mark says; one that cannot be read marks nothing."""
    try:
        return Record(**json.loads(mark.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _digest(names: Sequence[str] | NDArray[Any], values: NDArray[np.float32]) -> str:
    found = blake2b("\n".join(map(str, names)).encode(), digest_size=16)
    found.update(np.ascontiguousarray(values, dtype="<f4").data)
    return found.hexdigest()


def _damaged(store: Path) -> str:
    return f"Expected '{store}' to hold a result by chunks, found it damaged. Delete it, and begin anew."


def _push_to_disk(path: Path) -> None:
    """Write what the system still holds in memory, of a file or the entries of a folder."""
    # An array leaves out chunks that hold nothing but its fill value.
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
