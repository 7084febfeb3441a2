"""One row per cell in a zarr folder that several processes write, a chunk at a time, and that survives their death.

Beside the target lies a folder of the same name with ``.partial`` behind it until all is there.  It holds the result
and an empty file for each finished chunk, made after the chunk and pushed to the disk after it, so what is marked is
whole.  No two processes are given the same chunk, a chunk of cells is a chunk of the arrays, and whoever sees that none
is missing gives the folder its name.  So nobody has to wait, and there is nothing to say to each other.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from scgpt_tools._optional import optional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

_REQUEST = "scgpt_tools_request"
_RESULT, _FINISHED = "result.zarr", "finished"


@dataclass(frozen=True, kw_only=True)
class Layout:
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

    def __init__(self, path: str | PathLike[str], layout: Layout) -> None:
        self.path = check_result_path(path)
        self.layout = layout
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        if not self.finished and not self._partial.exists():
            self._prepare()
        self._check_request()

    @property
    def finished(self) -> bool:
        """Whether the result is whole and has its name."""
        return self.path.exists()

    def missing(self, rank: int, processes: int) -> list[int]:
        """Chunks that a process has yet to compute.

        Parameters
        ----------
        rank, processes
            Number of the process and how many there are.
        """
        if self.finished:
            return []
        done = self._done()
        # By number and not by place among the missing ones, which processes that start later see fewer of.
        return [number for number in range(rank, self.layout.n_chunks, processes) if number not in done]

    def write(self, number: int, names: Sequence[str], values: NDArray[np.float32]) -> None:
        """Write a chunk, then its mark.

        Parameters
        ----------
        number
            Which chunk.
        names
            Names of its cells.
        values
            (cells of the chunk, width).
        """
        start, stop = self.layout.bounds(number)
        root = optional("zarr", extra="scale").open_group(self._partial / _RESULT, mode="r+", use_consolidated=False)
        index, rows = root["obs/_index"], root[f"obsm/{self.layout.key}"]
        index[start:stop] = np.asarray(names, dtype=object)
        rows[start:stop] = values
        for array, place in ((index, (number,)), (rows, (number, 0))):
            _push_to_disk(self._partial / _RESULT / array.path / array.metadata.encode_chunk_key(place))
        mark = self._partial / _FINISHED / str(number)
        mark.touch()
        _push_to_disk(mark.parent)

    def publish(self) -> bool:
        """Give the result its name if no chunk is missing.

        Returns
        -------
        Whether the result is whole; if not, other processes are still at work, or have to be started again.
        """
        if self.finished:
            return True
        if len(self._done()) < self.layout.n_chunks:
            # The marks vanish when another process publishes.
            return self.finished
        try:
            (self._partial / _RESULT).rename(self.path)
        except OSError:
            if not self.finished:
                raise
            return True
        shutil.rmtree(self._partial)
        return True

    def _done(self) -> set[int]:
        try:
            return {int(mark.name) for mark in (self._partial / _FINISHED).iterdir()}
        except FileNotFoundError:
            if self.finished:
                return set(range(self.layout.n_chunks))
            raise

    def _prepare(self) -> None:
        """Make the folder elsewhere and move it here whole; the first of several processes wins, the others agree."""
        folder = self.path.with_name(f".{self.path.name}.{uuid4().hex}.layout")
        folder.mkdir()
        try:
            (folder / _FINISHED).mkdir()
            _write_layout(folder / _RESULT, self.layout)
            folder.rename(self._partial)
        except OSError:
            if not (self._partial / _FINISHED).is_dir() and not self.finished:
                raise
        finally:
            if folder.exists():
                shutil.rmtree(folder)

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
    """Refuse a place where a result could not be written, before any work begins.

    Parameters
    ----------
    path
        Where the result is to be.

    Returns
    -------
    The absolute path.
    """
    result = Path(path).expanduser().resolve()
    if result.suffix != ".zarr":
        raise ValueError(f"Expected an output that ends in .zarr, which several processes can write, found '{path}'.")
    if not result.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of the output to exist, found none at '{result.parent}'.")
    return result


def _write_layout(path: Path, layout: Layout) -> None:
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


def _request_of(store: Path) -> Mapping[str, str] | None:
    """What a store of ours was asked for, finished or not."""
    about = store / "zarr.json"
    if not about.is_file():
        return None
    return json.loads(about.read_text(encoding="utf-8")).get("attributes", {}).get(_REQUEST)


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
