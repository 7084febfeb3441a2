"""Tables on disk: open one without reading its matrices, and add results to a copy of it without reading them either.

Results are written to a copy under a temporary name beside the target, which takes the target's name when it is
complete.  So nothing of the input is ever lost, what this version of AnnData cannot read included, and a run that is
interrupted leaves no half file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import mudata
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem

from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from mudata import MuData

SUFFIXES = (".h5ad", ".h5mu", ".zarr")
_FRAMES = ("obs", "var")


def check_target(source: str | PathLike[str], target: str | PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a place where results could not be written, before any work begins.

    Parameters
    ----------
    source
        The table on disk.
    target
        Where the copy with the results is to be.
    overwrite
        Whether an existing target may be replaced; the source itself counts as one.

    Raises
    ------
    ValueError
        If the target has another format than the source.
    FileExistsError
        If it exists and may not be replaced.
    FileNotFoundError
        If its folder does not exist.
    PermissionError
        If it cannot be written.
    """
    path, suffix = _real(target), _suffix(source)
    if Path(target).suffix != suffix:
        raise ValueError(
            f"Expected an output in the format of the input, {suffix}, found {Path(target).name!r}. Convert it afterwards."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of the output to exist, found none at '{path.parent}'.")
    if path.exists() and not overwrite:
        same = " is the input itself" if path == _real(source) else " exists"
        raise FileExistsError(
            f"Expected an output that does not exist yet, but '{target}'{same}. Allow overwriting it."
        )
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PermissionError(f"Expected an output that may be written, found '{target}', which may not.")


def check_name(name: str) -> str:
    """The name of an element, which files keep as a path."""
    if not name or "/" in name:
        raise ValueError(f"Expected a name without '/' for what is written to a file, found {name!r}.")
    return name


@contextmanager
def open_group(path: str | PathLike[str], *, modality: str | None = None) -> Iterator[Any]:
    """Open a table on disk and read nothing.

    Parameters
    ----------
    path
        A ``.h5ad``, ``.h5mu`` or ``.zarr``.
    modality
        Which table of a MuData to open.

    Yields
    ------
    The group of the AnnData, of HDF5 or zarr, to be used until the block ends; refuses what :func:`open_table` does.
    """
    with _opened(Path(path), "r") as root:
        yield _table_in(root, modality, path)


@contextmanager
def open_table(path: str | PathLike[str], *, modality: str | None = None) -> Iterator[AnnData]:
    """Open a table on disk; ``X`` and the layers stay there.

    Parameters
    ----------
    path
        A ``.h5ad``, ``.h5mu`` or ``.zarr``.
    modality
        Which table of a MuData to open.

    Yields
    ------
    AnnData with ``obs``, ``var`` and ``uns`` in memory and the matrices on disk, without ``obsm``, ``varm`` and the
    rest, to be used until the block ends.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ValueError
        If it is not such a table, or a MuData and no modality is named.
    KeyError
        If the modality is absent; the message lists what is there.
    """
    with open_group(path, modality=modality) as group:
        layers = group["layers"] if "layers" in group else {}
        yield AnnData(
            X=_matrix(group["X"]) if "X" in group else None,
            obs=read_elem(group["obs"]),
            var=read_elem(group["var"]),
            uns=read_elem(group["uns"]) if "uns" in group else {},
            layers={name: _matrix(layers[name]) for name in layers},
        )


@contextmanager
def open_mudata(path: str | PathLike[str]) -> Iterator[MuData]:
    """Open all modalities on disk; their ``X`` stays there.

    Parameters
    ----------
    path
        A ``.h5mu``.

    Yields
    ------
    The MuData, to be used until the block ends.
    """
    with _opened(Path(path), "r") as root:
        if "mod" not in root:
            raise ValueError(f"Expected a MuData at '{path}', found {sorted(root)}.")
    with mudata.set_options(pull_on_update=False):
        mdata = mudata.read_h5mu(path, backed="r")
        try:
            yield mdata
        finally:
            mdata.file.close()


def write_results(
    source: str | PathLike[str],
    target: str | PathLike[str],
    results: Mapping[str, Mapping[str, Any]],
    *,
    modality: str | None = None,
    joint: bool = False,
    overwrite: bool = False,
) -> None:
    """Copy a table on disk and add results to the copy.

    Parameters
    ----------
    source
        A ``.h5ad``, ``.h5mu`` or ``.zarr``.
    target
        Where the copy goes, in the same format; may be the source if ``overwrite``.
    results
        Elements by slot (``obs``, ``var``, ``obsm``, ``varm``, ``layers``, ``uns``) and name.
    modality
        Which table of a MuData to add them to.
    joint
        Add them to the MuData itself.
    overwrite
        Whether an existing target may be replaced.

    Raises
    ------
    FileExistsError
        If the target exists and may not be replaced.
    ValueError
        If the target has another format than the source.
    """
    check_target(source, target, overwrite=overwrite)
    for name in (name for elements in results.values() for name in elements):
        check_name(name)
    final = _real(target)
    with _temporary_folder(final) as folder:
        copy = folder / f"copy{_suffix(source)}"
        _copy(_real(source), copy)
        with _opened(copy, "r+") as root, warnings.catch_warnings():
            # AnnData announces another default for version 3 of zarr, which nobody can act on here.
            warnings.filterwarnings("ignore", message="zarr v3 autosharding")
            _write(root if joint else _table_in(root, modality, source), results)
        if copy.is_dir():
            _consolidate_again(copy)
        _put_in_place(copy, final)


# ---------------------------------------------------------------------------------------------------------- reading


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[Any]:
    """Root group of a file or a zarr folder."""
    if not path.exists():
        raise FileNotFoundError(f"Expected a table at '{path}', found nothing.")
    if _suffix(path) == ".zarr":
        if not path.is_dir():
            raise ValueError(f"Expected a zarr folder at '{path}', found a file. Unpack it first.")
        # Consolidated metadata would be out of date as soon as something is written.
        yield optional("zarr", extra="scale").open_group(
            path, mode=mode, use_consolidated=None if mode == "r" else False
        )
        return
    if not path.is_file() or not h5py.is_hdf5(path):
        raise ValueError(f"Expected an HDF5 file at '{path}', found something else or a damaged file.")
    with h5py.File(path, mode) as file:
        yield file


def _table_in(root: Any, modality: str | None, path: str | PathLike[str]) -> Any:
    """The group of an AnnData, or of one modality of a MuData."""
    modalities = {name: root["mod"][name] for name in root["mod"]} if "mod" in root and "X" not in root else {}
    if modalities and modality is None:
        raise ValueError(
            f"Expected `modality` to name one of {list(modalities)}, found None, and '{path}' is a MuData."
        )
    if modality is not None and not modalities:
        raise ValueError(f"Expected `modality` with MuData only, found {modality!r}, and '{path}' is an AnnData.")
    group = lookup(modalities, modality, "modality", error=KeyError) if modality is not None else root
    frames = [name for name in _FRAMES if name in group and "encoding-type" in group[name].attrs]
    if len(frames) < len(_FRAMES):
        raise ValueError(
            f"Expected an AnnData of version 0.7 or newer at '{path}', found {sorted(group)}. Read it with "
            "`anndata.read_h5ad` and write it again if it is an older one."
        )
    return group


def _matrix(element: Any) -> Any:
    """A matrix that stays on disk."""
    encoding = element.attrs.get("encoding-type", "array")
    if encoding in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(element)
    return element if encoding == "array" else read_elem(element)


# ---------------------------------------------------------------------------------------------------------- writing


@contextmanager
def _temporary_folder(final: Path) -> Iterator[Path]:
    """A folder beside the target, so that a finished copy only has to be renamed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _copy(source: Path, target: Path) -> None:
    """Copy contents only: the copy of what must not be written has to be writable."""
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    target.mkdir()
    for path in source.iterdir():
        _copy(path, target / path.name)


def _write(group: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    storage = _compression_of(group)
    for slot, elements in results.items():
        if slot not in group:
            write_elem(group, slot, {})
        for name, value in elements.items():
            if slot in _FRAMES:
                _write_column(group[slot], name, value)
            else:
                write_elem(group[slot], name, value, dataset_kwargs=storage if slot == "layers" else {})


def _write_column(frame: Any, name: str, values: pd.Series[Any]) -> None:
    order = [str(column) for column in frame.attrs["column-order"]]
    own_array = isinstance(values.dtype, pd.api.extensions.ExtensionDtype)
    write_elem(frame, name, values.array if own_array else values.to_numpy())
    if name not in order:
        frame.attrs["column-order"] = [*order, name]


def _compression_of(group: Any) -> dict[str, Any]:
    """How ``X`` is compressed in HDF5, for new layers; zarr compresses by itself."""
    X = group.get("X") if isinstance(group, h5py.Group) else None
    data = X.get("data") if isinstance(X, h5py.Group) else X
    if not isinstance(data, h5py.Dataset) or data.compression is None:
        return {}
    return {"compression": data.compression, "compression_opts": data.compression_opts}


def _consolidate_again(folder: Path) -> None:
    """Bring the summary that a zarr folder may have up to date."""
    v2, v3 = folder / ".zmetadata", folder / "zarr.json"
    if v2.exists() or (v3.exists() and json.loads(v3.read_text(encoding="utf-8")).get("consolidated_metadata")):
        with warnings.catch_warnings():
            # Not a part of version 3 of the specification; the input has such a summary, though.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            optional("zarr", extra="scale").consolidate_metadata(folder)


def _put_in_place(copy: Path, final: Path) -> None:
    if not final.exists():
        copy.rename(final)
    elif final.is_dir():
        _swap_folders(copy, final)
    else:
        shutil.copymode(final, copy)
        copy.replace(final)


def _swap_folders(copy: Path, final: Path) -> None:
    """Folders cannot be replaced in one step; the old one goes when the new one is in its place, not before."""
    old = copy.parent.with_suffix(".previous")
    final.rename(old)
    try:
        copy.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old)


def _real(path: str | PathLike[str]) -> Path:
    """The file itself, where a link stands for it."""
    return Path(path).expanduser().resolve()


def _suffix(path: str | PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"Expected a table in one of the formats {', '.join(SUFFIXES)}, found '{path}'.")
    return suffix
