"""Tables on disk: open one without reading its matrices, and add results to a copy of it without reading them either.

Results are written to a copy in a hidden folder beside the target, which takes the target's name when it is complete and
has been looked at.  So nothing of the input is ever lost, what this version of AnnData cannot read included, and whatever
ends a run leaves the old target or the new one, and no half file.
"""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import fsspec
import h5py
import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem
from fsspec.core import url_to_fs

from scgpt_tools._files import as_path
from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional
from scgpt_tools._outputs import check_place, check_room, claimed, put_in_place, recover
from scgpt_tools._validate import check_key_name
from scgpt_tools.data.whole import check_frames, check_table, trace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from os import PathLike

    from mudata import MuData

SUFFIXES = (".h5ad", ".h5mu", ".zarr")
_FRAMES = ("obs", "var")
# How this package's own refusals begin.
_OWN_WORDS = ("Expected ", "Found no ")
_FILE_LIBRARIES = ("h5py", "zarr", "numcodecs", "anndata/_io", "/json")


def check_target(
    source: str | PathLike[str], target: str | PathLike[str], *, overwrite: bool = False, converts: bool = False
) -> None:
    """Refuse a place where results could not be written, before any work begins.

    ``overwrite``: whether an existing target may be replaced; the source itself counts as one; ``converts``: whether the
    target may be of another format than the source.
    """
    path, origin, suffix = _real(target), _real(source), _suffix(target if converts else source)
    if Path(target).suffix != suffix:
        raise ValueError(
            f"Expected an output in the format of the input, {suffix}, found {Path(target).name!r}. Convert it afterwards."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected the folder of the output to exist, found none at '{path.parent}'.")
    if path.is_relative_to(origin) != origin.is_relative_to(path):
        raise ValueError(f"Expected an output beside the input, found '{target}' and '{source}', one within the other.")
    recover(path)
    if path.exists() and not overwrite:
        same = " is the input itself" if path == origin else " exists"
        raise FileExistsError(
            f"Expected an output that does not exist yet, but '{target}'{same}. Pass overwrite=True, or --overwrite in a shell, "
            "to replace it."
        )
    if path.exists() and not _may_be_replaced(path, suffix):
        raise FileExistsError(
            f"Expected '{target}' to be a table in {suffix} if it is to be replaced, found something else, or a folder "
            "that holds other files too. Delete it yourself, or choose another output."
        )
    check_place(path)
    # The copy is made beside the target.
    check_place(path.parent)
    if origin.exists():
        check_room(path.parent, trace_of(origin).size)


@contextmanager
def open_group(path: str | PathLike[str], *, modality: str | None = None) -> Iterator[Any]:
    """Open a table on disk and read nothing.

    Yields the group of the AnnData, of HDF5 or zarr, to be used until the block ends; refuses what :func:`open_table`
    does.
    """
    with _opened(as_path("source", path), "r") as root:
        with _read_whole(path):
            group = _table_in(root, modality, path)
        yield group


@contextmanager
def open_table(
    path: str | PathLike[str], *, modality: str | None = None, embeddings: bool = False
) -> Iterator[AnnData]:
    """Open a table on disk; ``X`` and the layers stay there.

    Yields AnnData with ``obs``, ``var`` and ``uns`` in memory and the matrices on disk, without ``varm`` and the rest, to
    be used until the block ends; ``embeddings``: read ``obsm`` as well.
    """
    with open_group(path, modality=modality) as group:
        yield _table_of(group, path, embeddings=embeddings)


def read_table(path: str | PathLike[str], *, modality: str | None = None) -> AnnData:
    """Read a table on disk into memory with all that it has, ``varm``, ``obsp``, ``varp`` and ``raw`` too."""
    with open_group(path, modality=modality) as group, _read_whole(path):
        check_table(group)
        found = read_elem(group)
        # Files of old versions of AnnData do not say that they are one.
        return found if isinstance(found, AnnData) else _table_of(group, path, embeddings=True).to_memory()


@contextmanager
def open_url(
    url: str, *, modality: str | None = None, storage: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[AnnData]:
    """Open a table that a file system of fsspec has, ``s3://bucket/cells.h5ad`` say; as :func:`open_table`.

    No copy is made: pieces are fetched when they are read.  A cache goes before the address, as fsspec has it:
    ``simplecache::s3://bucket/cells.h5ad``.  ``storage``: arguments of the file system, such as ``{"anon": True}``.
    """
    with _opened_url(url, storage) as root:
        with _read_whole(url):
            group = _table_in(root, modality, url)
        yield _table_of(group, url)


def find_urls(pattern: str, *, storage: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Addresses that a pattern stands for, ``*`` being any part of a name; one without ``*`` as it is."""
    if "*" not in pattern:
        return [pattern]
    chain, _, last = pattern.rpartition("::")
    system, place = url_to_fs(last, **_by_protocol(pattern, storage))
    found = [system.unstrip_protocol(name) for name in sorted(system.glob(place))]
    return [f"{chain}::{name}" if chain else name for name in found]


def _by_protocol(url: str, storage: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as fsspec wants them for a chain of file systems, whose last has the files, unless they are already so."""
    protocols = [part.partition("://")[0] for part in url.split("::")]
    if len(protocols) == 1 or any(name in storage for name in protocols):
        return dict(storage)
    return {protocols[-1]: dict(storage)}


def is_url(path: str | PathLike[str]) -> bool:
    """Whether a place is an address of fsspec and not a path."""
    return isinstance(path, str) and "://" in path


def _table_of(group: Any, where: str | PathLike[str], *, embeddings: bool = False) -> AnnData:
    """AnnData with matrices on disk."""
    with _read_whole(where):
        check_table(group)
        layers = group["layers"] if "layers" in group else {}
        return AnnData(
            X=_matrix(group["X"]) if "X" in group else None,
            obs=read_elem(group["obs"]),
            var=read_elem(group["var"]),
            uns=read_elem(group["uns"]) if "uns" in group else {},
            obsm=read_elem(group["obsm"]) if embeddings and "obsm" in group else None,
            layers={name: _matrix(layers[name]) for name in layers},
        )


@contextmanager
def open_mudata(path: str | PathLike[str]) -> Iterator[MuData]:
    """Open all modalities on disk; their ``X`` stays there."""
    path = as_path("source", path)
    with _opened(path, "r") as root, _read_whole(path):
        if "mod" not in root:
            raise ValueError(f"Expected a MuData at '{path}', found {sorted(root)}.")
        for name in root["mod"]:
            check_table(_table_in(root, str(name), path))
    with _columns_left_alone():
        mdata = mudata.read_h5mu(path, backed="r")
        try:
            yield mdata
        finally:
            mdata.file.close()


@contextmanager
def results_for(
    source: str | PathLike[str], target: str | PathLike[str], *, overwrite: bool = False
) -> Iterator[Callable[..., None]]:
    """Claim a place for a copy of a table with results, before they are computed.

    ``target``: where the copy goes, in the same format; may be the source if ``overwrite``.  Yields function that makes
    the copy, to be called once with the results: elements by slot (``obs``, ``var``, ``obsm``, ``varm``, ``layers``,
    ``uns``) and name; ``modality``, which table of a MuData to add them to; and ``joint``, to add them to the MuData
    itself.
    """
    check_target(source, target, overwrite=overwrite)
    final, origin = _real(target), _real(source)
    with claimed(final) as folder:
        before = trace_of(origin) if origin.exists() else None

        def write(
            results: Mapping[str, Mapping[str, Any]], *, modality: str | None = None, joint: bool = False
        ) -> None:
            for name in (name for elements in results.values() for name in elements):
                check_key_name("name of a result", name)
            copy = folder / f"copy{_suffix(source)}"
            check_room(folder, trace_of(origin).size + sum(map(_size_of, results.values())))
            _copy(origin, copy)
            if before is not None and trace_of(origin).text != before.text:
                raise ValueError(
                    f"Expected '{source}' to stay as it was while results were computed, but it has changed."
                )
            with _opened(copy, "r+") as root, warnings.catch_warnings():
                # AnnData announces another default for version 3 of zarr, which nobody can act on here.
                warnings.filterwarnings("ignore", message="zarr v3 autosharding")
                _write(root if joint else _table_in(root, modality, source), results)
            if copy.is_dir():
                # It looks at all metadata, also at what the results have nothing to do with.
                with _read_whole(source):
                    _consolidate_again(copy)
            with _opened(copy, "r") as root:
                written = root if joint else _table_in(root, modality, source)
                # A summary of a zarr folder that was out of date did not show what it shows now.
                for table in [root["mod"][name] for name in root["mod"]] if joint else [written]:
                    check_frames(table)
                _check_written(written, results)
            if final.exists() and not overwrite:
                raise FileExistsError(f"Expected an output that does not exist yet, but '{target}' has come to exist.")
            if final.is_file():
                shutil.copymode(final, copy)
            put_in_place(copy, final)

        yield write


def write_results(
    source: str | PathLike[str],
    target: str | PathLike[str],
    results: Mapping[str, Mapping[str, Any]],
    *,
    modality: str | None = None,
    joint: bool = False,
    overwrite: bool = False,
) -> None:
    """Copy a table on disk and add results to the copy; the arguments are those of :func:`results_for`."""
    with results_for(source, target, overwrite=overwrite) as write:
        write(results, modality=modality, joint=joint)


# ---------------------------------------------------------------------------------------------------------- reading


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[Any]:
    """Root group of a file or a zarr folder."""
    recover(path)
    if not path.exists():
        raise FileNotFoundError(f"Expected a table at '{path}', found nothing.")
    if _suffix(path) == ".zarr":
        if not path.is_dir():
            raise ValueError(f"Expected a zarr folder at '{path}', found a file. Unpack it first.")
        # Consolidated metadata would be out of date as soon as something is written.
        zarr = optional("zarr", extra="scale")
        with _faults_named(path):
            with _read_whole(path):
                root = zarr.open_group(path, mode=mode, use_consolidated=None if mode == "r" else False)
            yield root
        return
    if not path.is_file() or not h5py.is_hdf5(path):
        raise ValueError(f"Expected an HDF5 file at '{path}', found something else or a damaged file.")
    with _faults_named(path), h5py.File(path, mode) as file:
        yield file


@contextmanager
def _opened_url(url: str, storage: Mapping[str, Any]) -> Iterator[Any]:
    """Root group of a table elsewhere."""
    if _suffix(url) == ".zarr":
        zarr = optional("zarr", extra="scale")
        with _faults_named(url):
            store = zarr.storage.FsspecStore.from_url(url, storage_options=_by_protocol(url, storage), read_only=True)
            with _read_whole(url):
                root = zarr.open_group(store, mode="r")
            yield root
        return
    with _faults_named(url), fsspec.open(url, "rb", **_by_protocol(url, storage)) as stream:
        with _read_whole(url):
            file = h5py.File(stream, "r")
        with file:
            yield file


@contextmanager
def _faults_named(path: str | PathLike[str]) -> Iterator[None]:
    """Say in one line what the libraries that read and write files say in their own words when one is damaged."""
    try:
        yield
    except Exception as error:
        raised_at = Path(extract_tb(error.__traceback__)[-1].filename).as_posix()
        if not any(f"{library}/" in raised_at for library in _FILE_LIBRARIES):
            raise
        raise _damaged(path, error) from error


@contextmanager
def _read_whole(path: str | PathLike[str]) -> Iterator[None]:
    """Do the same for whatever goes wrong while a table is opened, for damaged metadata ends in any error anywhere."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if error.args and str(error.args[0]).startswith(_OWN_WORDS):
            raise
        raise _damaged(path, error) from error


def _damaged(path: str | PathLike[str], error: Exception) -> OSError:
    said = " ".join(str(error).split())[:200]
    return OSError(
        f"Expected to read or write all of '{path}', found a part missing or damaged, or a full disk "
        f"({type(error).__name__}: {said}). Copy the table again."
    )


@contextmanager
def _columns_left_alone() -> Iterator[None]:
    """Keep MuData from copying columns of its modalities, which is a setting before version 0.4 and the default since."""
    if not hasattr(mudata, "set_options"):
        with mudata.settings.override(pull_on_update=False):
            yield
        return
    with mudata.set_options(pull_on_update=False):
        yield


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


def _check_written(group: Any, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Read back what was written; a matrix as large as the table only by its shape."""
    for slot, elements in results.items():
        for name, value in elements.items():
            element = group[slot][name]
            if slot == "layers":
                found = tuple(element.attrs["shape"]) if "shape" in element.attrs else element.shape
            else:
                found = np.shape(read_elem(element))
            if tuple(found) != np.shape(value):
                raise OSError(
                    f"Expected `{slot}[{name!r}]` to be written as it is, found it damaged. The disk may be full."
                )


def _size_of(elements: Mapping[str, Any]) -> int:
    """Bytes of arrays among some results."""
    return sum(int(getattr(value, "nbytes", 0)) for value in elements.values() if isinstance(value, np.ndarray))


def _may_be_replaced(path: Path, suffix: str) -> bool:
    """Whether something is a file where a file is meant, and else a folder of a table in zarr and nothing more."""
    if suffix != ".zarr":
        return path.is_file()
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    own = {"zarr.json", ".zgroup", ".zattrs", ".zmetadata"}
    tables = ({"obs", "var"}, {"mod"})
    return (
        bool(names & {"zarr.json", ".zgroup"})
        and any(table <= names for table in tables)
        and all(
            any((path / name / mark).is_file() for mark in ("zarr.json", ".zgroup", ".zarray")) for name in names - own
        )
    )


def _real(path: str | PathLike[str]) -> Path:
    """The file itself, where a link stands for it."""
    return as_path("path", path).resolve()


def _suffix(path: str | PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"Expected a table in one of the formats {', '.join(SUFFIXES)}, found '{path}'.")
    return suffix
