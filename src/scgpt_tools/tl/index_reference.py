"""Annotated cells as an index to map others to: of a table in memory, or of embeddings on disk in blocks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.io import read_elem, sparse_dataset

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._files import as_path
from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_generator, check_finite, check_text
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.data.modalities import cell_columns
from scgpt_tools.data.rows import slots_of
from scgpt_tools.data.stores import open_group
from scgpt_tools.models.atlas import COMPRESSED, AtlasIndex, check_atlas_place
from scgpt_tools.models.calibration import Calibration, draw_held_out, hold_out
from scgpt_tools.models.reference import ReferenceIndex
from scgpt_tools.settings import settings
from scgpt_tools.tl._spaces import check_same_space, embedding_of, empty_cells, how_made

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

logger = logging.getLogger(__name__)

EXACT = "exact"
"""The index that keeps all vectors as they are, and needs no faiss."""
N_HELD_OUT = 2_000
"""Cells that are mapped to the others, to calibrate confidences with."""
# Cells of a block that is read from disk, or copied, at once.
_ROWS = 65_536


@renamed(label="label_key")
@shared_docs
def index_reference(
    reference: AnnData | MuData,
    *,
    label_key: str,
    use_rep: str = "X_scGPT",
    batch_key: str | None = None,
    index: str = EXACT,
    n_held_out: int = N_HELD_OUT,
    modality: str | None = None,
    rng: RngLike = 0,
) -> ReferenceIndex | AtlasIndex:
    """Make an index of annotated cells, to keep and to map other cells to.

    Parameters
    ----------
    reference
        Embedded cells with known types; not changed.  Cells without a type are left out.
    label_key
        Column of ``obs`` with the types.
    use_rep
        Key of ``obsm`` with the embedding.
    batch_key
        Column of ``obs`` with batches, such as donors or data sets.  Held-out cells are then mapped to other batches, so
        that confidences and p-values of :func:`map_reference` allow for what a batch changes.
    index
        ``"exact"`` keeps all vectors and finds the nearest cells.  ``"compressed"`` takes one byte for each dimension of a
        cell (``"IVF..,SQ8"`` of faiss) and finds nearly all of these; ``"scgpt"`` is scGPT's index for atlases
        (``"PCA64,IVF..,PQ16"``), with some 30 bytes a cell, which misses more than half of the nearest for others of the
        same kind.  Both have as many lists as suit the number of cells, and approximate distances.  Anything else is a
        description for faiss' ``index_factory``, such as ``"IVF1024,SQ8"``.  All but ``"exact"`` need faiss (extra
        ``index``).
    n_held_out
        How many cells are mapped to the others, for calibrated confidences and the rejection of unknown cells: of rare
        types 50 each, as far as they reach, so of many types more than that.  0 holds out none.
    {modality}
    rng
        Draws the held-out cells, and the sample that a compressed index is trained on.

    Returns
    -------
    The index, which has ``save``; :func:`map_reference` reads the folder.

    Raises
    ------
    KeyError
        If ``label_key``, ``batch_key`` or ``use_rep`` is absent.
    ValueError
        If no cell has a type, a vector is not finite, a cell has no batch or all have the same, or faiss does not
        understand the description or has too few cells for it.

    Warns
    -----
    UserWarning
        If cells expressed no known gene when they were embedded; they are left out.  If a compressed index takes more memory
        than the machine has.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.tl.embed(reference, "scgpt-demo")  # doctest: +SKIP
    >>> sct.tl.index_reference(reference, label_key="cell_type").save("blood")  # doctest: +SKIP
    >>> sct.tl.embed(query, "scgpt-demo")  # doctest: +SKIP
    >>> sct.tl.map_reference(query, "blood")  # doctest: +SKIP
    """
    check_arguments(index_reference, locals())
    check_text("index", index)
    generator = as_generator(rng)
    table = slots_of(reference, modality)
    vectors, source = embedding_of(table, use_rep)
    empty = empty_cells(table.obs_names, table.uns.get(use_rep))
    cells = _annotated(cell_columns(table), label_key, batch_key, empty)
    source = {**source, "label_key": label_key}
    vectors = vectors[cells.kept]
    # One cell has no others to be mapped to.
    n_held_out = n_held_out if len(vectors) > 1 else 0
    if index != EXACT:
        return AtlasIndex.build(
            lambda: (vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS)),
            cells.codes,
            cells.classes,
            dim=vectors.shape[1],
            description=index,
            source=source,
            batches=cells.batches,
            across=batch_key or "",
            n_held_out=n_held_out,
            rng=generator,
        )
    calibration: Calibration | None = None
    if n_held_out:
        rows = draw_held_out(cells.codes, n_held_out, generator)
        exact = ReferenceIndex(vectors, cells.codes, cells.classes)
        calibration = hold_out(exact, rows, vectors[rows], cells.batches, batch_key or "")
    return ReferenceIndex(vectors, cells.codes, cells.classes, source, calibration)


@shared_docs
def index_store(
    sources: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    label_key: str,
    use_rep: str = "X_scGPT",
    annotations: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    batch_key: str | None = None,
    index: str = COMPRESSED,
    n_held_out: int = N_HELD_OUT,
    modality: str | None = None,
    rng: int = 0,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> Path:
    """Make an index of annotated cells on disk, of any number, in blocks :cite:p:`Cui2024`.

    In memory are the index (see ``index``; 33 million cells of 512 dimensions take 17 GB if compressed, 1 GB in scGPT's
    form, and a message says how much before it is built), a sample of vectors to train it on, the columns of ``obs``, and a block.

    Parameters
    ----------
    sources
        One or more tables with embedded cells: ``.h5ad``, ``.h5mu`` or ``.zarr``.  Never changed.
    output
        Folder for the index, as :func:`map_reference` and scGPT's own ``load_index`` read it.
    label_key
        Column of ``obs`` with the types.  Cells without a type are left out.
    use_rep
        Key of ``obsm`` with the embedding, or ``"X"``, where scGPT's own functions leave it.
    annotations
        Tables with the columns of ``obs``, one for each source, with its cells in its order; for sources that have names
        of cells alone, as :func:`embed_store` writes them.
    batch_key
        Column of ``obs`` with batches; held-out cells are mapped to other batches, as in :func:`index_reference`.
        Batches of the same name in two sources count as one.
    index
        ``"compressed"``, one byte for each dimension of a cell; ``"scgpt"``, some 30 bytes a cell; or a description for
        faiss' ``index_factory``, as in :func:`index_reference`.
    n_held_out
        How many cells are mapped to the others, as in :func:`index_reference`.
    {modality}
    rng
        Draws the held-out cells, and the sample that a compressed index is trained on.
    overwrite
        Replace an index in the output folder.
    {show_progress}

    Returns
    -------
    The folder.

    Raises
    ------
    ImportError
        If faiss is not installed (extra ``index``).
    FileExistsError
        If the folder holds an index and ``overwrite`` is not set, or something else of the same names.
    KeyError
        If ``label_key``, ``batch_key`` or ``use_rep`` is absent.
    ValueError
        If sources were embedded by different models or in different ways, cells of ``annotations`` are others, a vector is
        not finite, or for what :func:`index_reference` refuses.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.tl.embed_store("atlas.h5ad", "atlas_scGPT.zarr", "scgpt-human")  # doctest: +SKIP
    >>> sct.tl.index_store(
    ...     "atlas_scGPT.zarr", "atlas_index", label_key="cell_type", annotations="atlas.h5ad", batch_key="donor_id"
    ... )  # doctest: +SKIP
    >>> sct.tl.map_reference(query, "atlas_index", k=50, calibrate=True, reject=0.05)  # doctest: +SKIP
    """
    check_arguments(index_store, locals())
    if index == EXACT:
        raise ValueError(
            "Expected a description of an index in faiss' form for tables on disk, found 'exact'. Take 'Flat' for exact "
            "search, or `index_reference`."
        )
    folder = as_path("output", output)
    check_atlas_place(folder, overwrite=overwrite)
    paths = _paths("sources", sources)
    files = [path.resolve() for path in paths]
    if twice := [path for path in files if files.count(path) > 1]:
        raise ValueError(
            f"Expected every source once, found '{twice[0]}' twice, whose cells would be their own neighbours."
        )
    tables = paths if annotations is None else _paths("annotations", annotations)
    if len(tables) != len(paths):
        raise ValueError(f"Expected one table of annotations for each of {len(paths)} sources, found {len(tables)}.")
    stored = [_Stored.read(*pair, use_rep, modality) for pair in zip(paths, tables, strict=True)]
    for other in stored[1:]:
        if other.dim != stored[0].dim:
            raise ValueError(
                f"Expected embeddings of {stored[0].dim} dimensions as in '{stored[0].path}', found {other.dim} in "
                f"'{other.path}'."
            )
        check_same_space(other.source, stored[0].source)
    columns = [label_key] if batch_key is None else [label_key, batch_key]
    frames = [_columns(part.obs, columns) for part in stored]
    empty = np.concatenate([part.empty for part in stored])
    cells = _annotated(pd.concat(frames), label_key, batch_key, empty)
    parts = np.split(cells.kept, np.cumsum([len(part.obs) for part in stored])[:-1])
    with settings.progress((), total=2 * len(cells.kept), unit="cell", show=show_progress) as bar:

        def blocks() -> Iterator[NDArray[np.float32]]:
            for part, kept in zip(stored, parts, strict=True):
                for start, block in part.blocks(use_rep, modality):
                    bar.update(len(block))
                    yield block[kept[start : start + len(block)]]

        atlas = AtlasIndex.build(
            blocks,
            cells.codes,
            cells.classes,
            dim=stored[0].dim,
            description=index,
            source={**stored[0].source, "label_key": label_key},
            batches=cells.batches,
            across=batch_key or "",
            n_held_out=n_held_out,
            rng=as_generator(rng),
        )
    atlas.save(folder)
    logger.info("Wrote %s with %r.", folder, atlas)
    return folder


@dataclass(frozen=True)
class _Annotated:
    """Cells that are part of a reference."""

    kept: NDArray[np.bool_]
    """(cells,) which of the table."""
    codes: NDArray[np.int64]
    """(kept,) class of each."""
    classes: tuple[str, ...]
    batches: NDArray[np.int64] | None
    """(kept,) batch of each."""


def _annotated(obs: pd.DataFrame, label_key: str, batch_key: str | None, empty: NDArray[np.bool_]) -> _Annotated:
    labels = read_classes(obs, label_key, allow_unknown=True)
    if empty.any():
        warn_user(
            f"Expected reference cells with known features above zero, found {int(empty.sum()):,} of {len(empty):,} "
            f"without any when they were embedded (first: {str(obs.index[empty][0])!r}). They are left out."
        )
    kept = (labels.codes != UNKNOWN) & ~empty
    if not kept.any():
        raise ValueError(f"Expected cells with a type in obs[{label_key!r}] that express a known gene, found none.")
    batches = None if batch_key is None else read_classes(obs[kept], batch_key).codes
    return _Annotated(kept, labels.codes[kept], labels.names, batches)


@dataclass(frozen=True)
class _Stored:
    """A table on disk with embedded cells."""

    path: Path
    dim: int
    obs: pd.DataFrame
    source: Mapping[str, Any]
    empty: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, table: Path, use_rep: str, modality: str | None) -> _Stored:
        """Columns of ``obs``, and what is known of the embedding."""
        with open_group(path, modality=modality) as group:
            array = _array(group, use_rep, path)
            shape = array.shape
            if len(shape) != 2 or not shape[1] or np.dtype(array.dtype).kind not in "fiub":
                raise ValueError(
                    f"Expected vectors of numbers as {use_rep!r} in '{path}', found the shape {tuple(shape)} and values of the "
                    f"type {array.dtype}."
                )
            obs = read_elem(group["obs"])
            about = read_elem(group["uns"][use_rep]) if "uns" in group and use_rep in group["uns"] else None
        if len(obs) != shape[0]:
            raise ValueError(f"Expected one vector for each of {len(obs):,} cells in '{path}', found {shape[0]:,}.")
        if table != path:
            with open_group(table, modality=modality) as group:
                names, obs = obs.index, read_elem(group["obs"])
            if not names.equals(obs.index):
                raise ValueError(f"Expected the cells of '{path}' in their order in '{table}', found others.")
        return cls(path, shape[1], obs, how_made(about), empty_cells(obs.index, about))

    def blocks(self, use_rep: str, modality: str | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First row and vectors of each block."""
        with open_group(self.path, modality=modality) as group:
            array = _array(group, use_rep, self.path)
            for start in range(0, len(self.obs), _ROWS):
                block = array[start : start + _ROWS]
                block = np.asarray(block.toarray() if hasattr(block, "toarray") else block, dtype=np.float32)
                where = f"{use_rep} of '{self.path}' from row {start:,} on"
                check_finite(where, block, "Leave such cells out, or embed them again.")
                yield start, block


def _array(group: Any, use_rep: str, path: Path) -> Any:
    """An embedding on disk, of which rows can be read."""
    if use_rep == "X":
        found = group["X"] if "X" in group else None
    else:
        found = group["obsm"][use_rep] if "obsm" in group and use_rep in group["obsm"] else None
    if found is None:
        there = [*(group["obsm"] if "obsm" in group else ()), *(["X"] if "X" in group else [])]
        raise KeyError(absent(use_rep, there, f"embedding in '{path}':"))
    if hasattr(found, "shape"):
        return found
    if str(found.attrs.get("encoding-type", "")).startswith("csr"):
        return sparse_dataset(found)
    raise ValueError(
        f"Expected {use_rep!r} in '{path}' to be a dense matrix or one stored by rows, found "
        f"{found.attrs.get('encoding-type', 'something else')!r}. Write it as an array."
    )


def _columns(obs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    for name in columns:
        if name not in obs:
            raise KeyError(absent(name, obs.columns, "column of `obs` named"))
    return obs[columns].astype(object)


def _paths(name: str, given: Any) -> list[Path]:
    if not isinstance(given, str | PathLike | Sequence):
        raise TypeError(f"Expected `{name}` to be a path or a list of paths, found {type(given).__name__}.")
    values = [given] if isinstance(given, str | PathLike) else list(given)
    if not values:
        raise ValueError(f"Expected `{name}` to name at least one table, found none.")
    return [as_path(name, value) for value in values]
