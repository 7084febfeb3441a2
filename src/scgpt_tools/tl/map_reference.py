"""Cell types from the nearest annotated cells in an embedding."""

from __future__ import annotations

import logging
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._files import as_path
from scgpt_tools._keys import AnnotateKeys
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.modalities import cell_columns
from scgpt_tools.data.rows import slots_of
from scgpt_tools.data.stores import SUFFIXES, open_table
from scgpt_tools.data.writing import check_new_key, check_writable
from scgpt_tools.metrics.mapping import Vote, vote
from scgpt_tools.models.atlas import AtlasIndex, is_atlas
from scgpt_tools.models.reference import ABOUT, Backend, ReferenceIndex
from scgpt_tools.tl._labels import check_unassigned, write_labels
from scgpt_tools.tl._spaces import COLUMNS, check_same_space, embedding_of, empty_cells
from scgpt_tools.tl.index_reference import N_HELD_OUT, index_reference
from scgpt_tools.tokens.coverage import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools.models.neighbours import Neighbours

    Index = ReferenceIndex | AtlasIndex

logger = logging.getLogger(__name__)


@renamed(label="label_key")
@shared_docs
def map_reference(
    query: AnnData | MuData,
    reference: AnnData | MuData | ReferenceIndex | AtlasIndex | str | PathLike[str],
    *,
    label_key: str | None = None,
    batch_key: str | None = None,
    use_rep: str = "X_scGPT",
    k: int = 10,
    how: Vote = "majority",
    ties: Literal["nearest", "first"] = "nearest",
    calibrate: bool = False,
    threshold: float = 0.0,
    reject: float = 0.0,
    unassigned: str = "unassigned",
    backend: Backend = "auto",
    modality: str | None = None,
    key_added: str = "mapped_cell_type",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Give each cell the type of its nearest neighbours in a reference :cite:p:`Cui2024`.

    Parameters
    ----------
    query
        Embedded cells.
    reference
        Embedded cells with known types, as a table or its file (``.h5ad``, ``.h5mu`` or ``.zarr``), or what
        :func:`index_reference` made of them, or the folder that this was saved to, which may be an index of scGPT's own
        (``index.faiss``, ``meta.h5ad``, ``index_config.json``).
    label_key
        Column of ``obs`` of a table with the types, which it needs; an index has them already.
    batch_key
        Column of ``obs`` of the reference with batches, such as donors or data sets, of which held-out cells are mapped to
        others, for ``calibrate`` and ``reject``: what is right within a batch is not within another.  An index has this
        from :func:`index_reference`.
    use_rep
        Key of ``obsm`` with the embedding, of both.
    k
        Number of neighbours; 10 in scGPT's tutorial, 50 where it maps to an atlas.
    how
        ``"majority"`` counts neighbours; ``"weighted"`` favours types that are rare in the reference, as scGPT does
        with atlases.
    ties
        Of types with equal scores, ``"nearest"`` takes the one of the nearer neighbour, ``"first"`` the first in the order
        of the classes, as DeepSC's mapping does.
    calibrate
        Take as confidence not the share of the votes but how often winners with that share are right among cells of the
        reference that were mapped to the others.
    threshold
        Leave cells with a smaller confidence without a type.
    reject
        Leave cells without a type that lie farther from the reference than cells of their type do: of the cells of a
        known type, about this share is lost.  0.05 is usual, 0 rejects none.
    unassigned
        What such cells get, and cells that expressed no known gene when they were embedded, with a confidence of 0.
    backend
        Who looks for neighbours: ``"faiss"``, ``"sklearn"``, or ``"auto"``, which takes faiss if it is installed.  The
        result is the same.  An index in faiss' form needs faiss.
    {modality}
    key_added
        Column of the result, and beginning of the other names.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, into the modality if one is named,

    ``obs[key_added]`` : categorical
        Type of each cell.
    ``obs[f"{key_added}_confidence"]`` : float32
        Share of the votes for it, or with ``calibrate`` the probability that it is right.
    ``obs[f"{key_added}_distance"]`` : float32
        Mean squared Euclidean distance to the neighbours; large where the reference has nothing like the cell.
    ``obs[f"{key_added}_p_value"]`` : float32
        With ``calibrate`` or ``reject``: conformal p-value for being a cell of that type, by this distance.
    ``obsm[f"{key_added}_probabilities"]`` : float32, (cells, types)
        Share of the votes for every type, in the order of ``uns[key_added]["classes"]``.
    ``obsm[f"{key_added}_neighbors"]`` : int64, (cells, k)
        Rows of the reference, without its cells that have no type.
    ``obsm[f"{key_added}_distances"]`` : float32, (cells, k)
        Squared Euclidean distances to them.
    ``uns[key_added]`` : :class:`dict`
        ``classes``, ``params`` and the ``model`` of the embedding.

    Raises
    ------
    KeyError
        If ``label_key``, ``batch_key`` or ``use_rep`` is absent.
    ValueError
        If query and reference were embedded by different models or in different ways, have columns of other names, a
        vector is not finite, ``key_added`` is the name of something else, ``label_key`` or ``batch_key`` is given with an index,
        ``batch_key`` without ``calibrate`` or ``reject``, or the index has no held-out cells to calibrate with, as scGPT's
        own have none.

    Warns
    -----
    UserWarning
        If cells expressed no known gene when they were embedded, or one of the two does not say how it was embedded.

    Notes
    -----
    Confidences and p-values mean what they say for new cells that differ from the reference no more than its held-out
    cells do.  With ``batch_key``, here or of the index, these were mapped to other batches, and allow for what a batch changes;
    without it they were mapped to cells of their own batch as well, and cells of a new data set are rejected too often.
    """
    check_arguments(map_reference, locals())
    check_choice("how", how, get_args(Vote))
    check_choice("ties", ties, ("nearest", "first"))
    check_choice("backend", backend, get_args(Backend))
    cells = slots_of(query, modality)
    check_writable(query, cells, copy=copy)
    check_new_key(cells, "obs", key_added, default="mapped_cell_type", beside=AnnotateKeys(key_added).beside)
    vectors, source = embedding_of(cells, use_rep)
    calibrates = calibrate or reject > 0
    if batch_key is not None and not calibrates:
        raise ValueError(
            f"Expected `calibrate` or `reject` with batch_key={batch_key!r}, which says where held-out cells are looked up, found "
            "neither. Pass one of them, or leave `batch_key` out."
        )
    index = _open_reference(reference, label_key, batch_key, use_rep, modality, N_HELD_OUT if calibrates else 0)
    if calibrates and index.calibration is None:
        raise ValueError(
            "Expected an index with held-out cells to calibrate confidences or reject unknown cells, found one without. "
            "Make it with `index_reference(..., n_held_out=2000)`, or leave `calibrate` and `reject` out."
        )
    check_unassigned(unassigned, index.classes)
    check_same_space(source, index.source)
    vectors = _in_order(vectors, source.get(COLUMNS), index.source.get(COLUMNS))
    empty = empty_cells(cells.obs_names, cells.uns.get(use_rep))
    if empty.any():
        warn_user(
            f"Expected cells with known features above zero, found {int(empty.sum()):,} of {len(empty):,} without any "
            f"when they were embedded (first: {str(cells.obs_names[empty][0])!r}). They get no type but {unassigned!r}."
        )
    found = _neighbours(index, vectors, k, backend)
    ballot = vote(index.codes[found.rows], len(index.classes), how=how, proportions=index.proportions, ties=ties)
    confidence, p_values = None, None
    if calibrates and index.calibration is not None:
        index.calibration.check_neighbours(found.rows.shape[1])
        p_values = index.calibration.p_values(found.distances, ballot.winner)
        if calibrate:
            confidence = index.calibration.confidence(
                ballot.confidence, found.rows.shape[1], how=how, proportions=index.proportions
            )
    keys = AnnotateKeys(key_added)
    params = {
        "use_rep": use_rep,
        "label_key": str(index.source.get("label_key", index.source.get("label", ""))),
        "k": found.rows.shape[1],
        "how": how,
        "ties": ties,
    }
    if calibrates and index.calibration is not None:
        params |= {"calibrate": calibrate, "reject": reject, "held_out_across": index.calibration.across}
    about = {
        "params": {**params, "threshold": threshold, "unassigned": unassigned, "n_reference": len(index)},
        "model": dict(source.get("model", {})),
    }
    result = query.copy() if copy else query
    table = slots_of(result, modality)
    left_out = write_labels(
        table,
        keys,
        winner=ballot.winner,
        probabilities=ballot.shares,
        classes=index.classes,
        threshold=threshold,
        unassigned=unassigned,
        about=about,
        without=empty,
        rejected=None if p_values is None else p_values <= reject,
        confidence=confidence,
    )
    if p_values is not None:
        table.obs[keys.obs_p_value] = p_values.astype(np.float32)
    elif keys.obs_p_value in table.obs:  # of another mapping, whose distances these are not
        del table.obs[keys.obs_p_value]
    table.obs[keys.obs_distance] = found.distances.mean(axis=1)
    table.obsm[keys.obsm_neighbours], table.obsm[keys.obsm_distances] = found.rows, found.distances
    logger.info("Added `obs[%r]`; %d of %d cells are %s.", keys.obs, left_out, len(vectors), unassigned)
    return result if copy else None


def _in_order(vectors: NDArray[np.float32], own: Sequence[str] | None, wanted: Sequence[str] | None) -> Any:
    """Dimensions in the order of the reference, where both name them."""
    if own is None or wanted is None or list(own) == list(wanted):
        return vectors
    if sorted(own) != sorted(wanted):
        raise ValueError(
            f"Expected an embedding with the columns of the reference, {some(tuple(wanted))}, found {some(tuple(own))}."
        )
    place = {name: number for number, name in enumerate(own)}
    return vectors[:, [place[name] for name in wanted]]


def _neighbours(index: Index, vectors: NDArray[np.float32], k: int, backend: Backend) -> Neighbours:
    if isinstance(index, ReferenceIndex):
        return index.search(vectors, k, backend=backend)
    if backend == "sklearn":
        raise ValueError("Expected `backend` to be 'auto' or 'faiss' with an index in faiss' form, found 'sklearn'.")
    return index.search(vectors, k)


def _open_reference(
    reference: Any, label_key: str | None, batch_key: str | None, use_rep: str, modality: str | None, n_held_out: int
) -> Index:
    if isinstance(reference, str | PathLike):
        path = as_path("reference", reference)
        if path.suffix in SUFFIXES and not (path.is_dir() and (is_atlas(path) or (path / ABOUT).is_file())):
            with open_table(path, modality=modality, embeddings=True) as table:
                # Of a MuData the modality itself.
                return _open_reference(table, label_key, batch_key, use_rep, None, n_held_out)
        reference = AtlasIndex.load(path) if is_atlas(path) else ReferenceIndex.load(path)
    if isinstance(reference, ReferenceIndex | AtlasIndex):
        if label_key is not None:
            raise ValueError(
                f"Expected no `label_key` with an index, which has its types already, found {label_key!r}."
            )
        if batch_key is not None:
            raise ValueError(
                f"Expected no `batch_key` with an index, whose held-out cells are mapped already, found {batch_key!r}. Pass it "
                "to `index_reference`."
            )
        return reference
    if not hasattr(reference, "obsm"):
        raise TypeError(
            f"Expected `reference` to be a table of cells or its file, an index or its folder, found {type(reference).__name__}."
        )
    if label_key is None:
        columns = [str(column) for column in cell_columns(slots_of(reference, modality)).columns]
        raise ValueError(
            f"Expected `label_key` to name the column of `obs` with the types, one of {columns}; found None."
        )
    return index_reference(
        reference,
        label_key=label_key,
        use_rep=use_rep,
        batch_key=batch_key,
        modality=modality,
        n_held_out=n_held_out,
    )
