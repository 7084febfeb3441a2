"""Damaged tables on disk, h5ad and zarr: by rule in their groups, in the bytes and the metadata of their files."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import zarr

from campaign.files import TEXTS, mutated_json
from campaign.inputs import cells
from campaign.subjects import expected
from campaign.verdicts import Outcome, Said, Verdict, difference, judge
from scgpt_tools import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DRAWS = 40
"""Random damages of the metadata of a zarr store."""


def _array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    def replace(group: Any) -> None:
        array, attributes = np.asarray(group[name][...]), dict(group[name].attrs)
        del group[name]
        changed = change(array)
        if isinstance(group, h5py.Group):
            group.create_dataset(name, data=changed)
        else:
            group.create_array(name, data=changed)
        group[name].attrs.update(attributes)

    return replace


def _put(place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


def _gone(name: str) -> Callable[[Any], None]:
    def delete(group: Any) -> None:
        del group[name]

    return delete


def _attribute(name: str, key: str, value: Any) -> Callable[[Any], None]:
    def change(group: Any) -> None:
        if value is None:
            del group[name].attrs[key]
        else:
            group[name].attrs[key] = value

    return change


GROUPS: dict[str, Callable[[Any], None]] = {
    "NaN": _array("X/data", _put(3, np.nan)),
    "negative": _array("X/data", _put(3, -2.0)),
    "values too short": _array("X/data", lambda array: array[:-3]),
    "values too long": _array("X/data", lambda array: np.concatenate([array, array])),
    "column numbers too short": _array("X/indices", lambda array: array[:-3]),
    "a column number below 0": _array("X/indices", _put(3, -1)),
    "a column number beyond": _array("X/indices", _put(3, 10**6)),
    "column numbers as fractions": _array("X/indices", lambda array: array + 0.5),
    "row ends too short": _array("X/indptr", lambda array: array[:-2]),
    "row ends that fall": _array("X/indptr", _put(4, 0)),
    "row ends beyond": _array("X/indptr", _put(-1, 10**6)),
    "row ends from elsewhere": _array("X/indptr", lambda array: array + 5),
    "fewer cells than obs": _attribute("X", "shape", [15, 24]),
    "more cells than obs": _attribute("X", "shape", [21, 24]),
    "fewer genes than var": _attribute("X", "shape", [18, 20]),
    "more genes than var": _attribute("X", "shape", [18, 30]),
    "a shape below 0": _attribute("X", "shape", [-1, 24]),
    "no shape": _attribute("X", "shape", None),
    "another encoding": _attribute("X", "encoding-type", "csc_matrix"),
    "an unknown encoding": _attribute("X", "encoding-type", "no such"),
    "no encoding": _attribute("X", "encoding-type", None),
    "no matrix": _gone("X"),
    "no values": _gone("X/data"),
    "no column numbers": _gone("X/indices"),
    "no row ends": _gone("X/indptr"),
    "no obs": _gone("obs"),
    "no var": _gone("var"),
    "no names of cells": _gone("obs/_index"),
    "no names of genes": _gone("var/_index"),
    "names of fewer genes": _array("var/_index", lambda array: array[:-2]),
    "names of fewer cells": _array("obs/_index", lambda array: array[:-2]),
    "no index named": _attribute("var", "_index", None),
    "another index named": _attribute("var", "_index", "no such"),
    "columns that are not there": _attribute("obs", "column-order", ["no such"]),
}
"""Damages within the groups of either format."""

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by one": lambda content: content[:-1],
    "zeros": lambda content: b"\0" * len(content),
    "zeros at the end": lambda content: content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2),
    "head of another file": lambda content: b"PK\x03\x04" + content[4:],
}
"""Damages of a whole file, for zarr of the file of a chunk."""

CHUNKS = ("X/data", "X/indices", "X/indptr", "obs/_index", "var/_index")
"""Arrays of a zarr store whose first chunk is damaged or deleted."""


@dataclass(frozen=True)
class DamagedStore:
    """A table on disk and what is wrong with it."""

    suffix: str
    damage: str

    def __str__(self) -> str:
        return f"{self.suffix[1:]}-{self.damage}"

    def write(self, folder: Path) -> Path:
        """The damaged table."""
        path = folder / f"cells{self.suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _write(path)
            kind, _, name = self.damage.partition(": ")
            if kind == "group":
                self._change_group(path, GROUPS[name])
            elif kind == "file":
                path.write_bytes(BYTES[name](path.read_bytes()))
            elif kind in CHUNKS:
                chunk = next(file for file in sorted((path / kind).rglob("*")) if _is_chunk(file))
                if name == "deleted":
                    chunk.unlink()
                else:
                    chunk.write_bytes(BYTES[name](chunk.read_bytes()))
            else:
                self._change_metadata(path, kind, name)
        return path

    def _change_group(self, path: Path, change: Callable[[Any], None]) -> None:
        if self.suffix == ".zarr":
            change(zarr.open_group(path, mode="r+", use_consolidated=False))
            for summary in path.glob(".zmetadata"):
                summary.unlink()
        else:
            with h5py.File(path, "r+") as file:
                change(file)

    def _change_metadata(self, path: Path, kind: str, name: str) -> None:
        rng = random.Random(str(self))
        # A summary of all would hide what is changed in one.
        (path / ".zmetadata").unlink(missing_ok=True)
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_chunk(file))
        file = rng.choice([file for file in files if {"X", "obs", "var"} & set(file.relative_to(path).parts)])
        text = file.read_text()
        changed = TEXTS[name](text) if kind == "text" else mutated_json(text, rng)
        file.write_bytes(changed if isinstance(changed, bytes) else changed.encode(errors="surrogatepass"))


def damaged_stores() -> Iterator[DamagedStore]:
    """Either format with every damage."""
    for suffix in (".h5ad", ".zarr"):
        for name in GROUPS:
            yield DamagedStore(suffix, f"group: {name}")
    for name in BYTES:
        yield DamagedStore(".h5ad", f"file: {name}")
    for chunk in CHUNKS:
        for name in ("deleted", *BYTES):
            yield DamagedStore(".zarr", f"{chunk}: {name}")
    for name in TEXTS:
        yield DamagedStore(".zarr", f"text: {name}")
    for draw in range(DRAWS):
        yield DamagedStore(".zarr", f"chance: {draw}")


def _write(path: Path) -> None:
    adata = cells()
    del adata.layers["counts"]
    if path.suffix == ".zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)


def _is_chunk(file: Path) -> bool:
    return file.is_file() and file.name not in (".zgroup", ".zarray", ".zattrs", "zarr.json", ".zmetadata")


def verdict(case: DamagedStore, folder: Path, model: Path) -> Verdict:
    """Embed a damaged table, in this process."""
    path = case.write(folder)
    output = folder / f"out{path.suffix}"
    before = _files(path)

    def embed() -> object:
        shell("embed", path, "-o", output, "--model", model, "--device", "cpu", "--key_added", "X_new", "--quiet")
        read = ad.read_zarr if path.suffix == ".zarr" else ad.read_h5ad
        return {"obsm[X_new]": read(output).obsm["X_new"]}

    found = judge(embed, accept=lambda found: difference(expected("tl.embed"), found, tolerance=1e-3))
    if _files(path) != before:
        return Verdict(Outcome.CHANGED, "the input on disk")
    if left := {entry.name for entry in folder.iterdir()} - {path.name, output.name}:
        return Verdict(Outcome.WRONG, f"left {left}")
    return found


def shell(*words: object) -> None:
    """A command line in this process; what it says of the user's errors is raised."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main([str(word) for word in words])
    if status:
        raise Said(said.getvalue().rpartition("error: ")[2].strip())


def _files(path: Path) -> dict[str, bytes]:
    every = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    return {str(entry): entry.read_bytes() for entry in every}
