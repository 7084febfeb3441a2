"""Cell types from the nearest annotated cells in an embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import AnnotateKeys
from scgpt_tools._validate import check_choice, check_key, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.data.modalities import cell_columns
from scgpt_tools.data.rows import plain_vectors, slots_of
from scgpt_tools.data.writing import check_new_key, check_writable
from scgpt_tools.metrics.mapping import Vote, vote
from scgpt_tools.models.reference import Backend, ReferenceIndex
from scgpt_tools.tl._labels import check_unassigned, write_labels
from scgpt_tools.tokens.coverage import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# What two embeddings must share to lie in the same space.
_SPACE = (
    ("model", "checksum"),
    ("model", "architecture"),
    ("params", "pooling"),
    ("params", "normalize"),
    *(("tokenizer", name) for name in ("genes", "values", "bins", "ties", "cls", "cls_value", "expects")),
)
# Names of the dimensions of an embedding that is kept as a frame.
_COLUMNS = "columns"


@renamed(label="label_key")
@shared_docs
def index_reference(
    reference: AnnData | MuData, *, label_key: str, use_rep: str = "X_scGPT", modality: str | None = None
) -> ReferenceIndex:
    """Make an index of annotated cells, to keep and to map other cells to.

    Parameters
    ----------
    reference
        Embedded cells with known types; not changed.  Cells without a type are left out.
    label_key
        Column of ``obs`` with the types.
    use_rep
        Key of ``obsm`` with the embedding.
    {modality}

    Returns
    -------
    The index, which has ``save``; :meth:`scgpt_tools.models.ReferenceIndex.load` reads it, and so does
    :func:`map_reference`.

    Raises
    ------
    KeyError
        If ``label_key`` or ``use_rep`` is absent.
    ValueError
        If no cell has a type, or a vector is not finite.

    Warns
    -----
    UserWarning
        If cells expressed no known gene when they were embedded; they are left out.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.tl.embed(reference, "scgpt-demo")  # doctest: +SKIP
    >>> sct.tl.index_reference(reference, label_key="cell_type").save("blood")  # doctest: +SKIP
    >>> sct.tl.embed(query, "scgpt-demo")  # doctest: +SKIP
    >>> sct.tl.map_reference(query, "blood")  # doctest: +SKIP
    """
    check_arguments(index_reference, locals())
    table = slots_of(reference, modality)
    vectors, source = _embedding(table, use_rep)
    labels = read_classes(cell_columns(table), label_key, allow_unknown=True)
    empty = _empty(table, use_rep)
    if empty.any():
        warn_user(
            f"Expected reference cells with known features above zero, found {int(empty.sum()):,} of {len(empty):,} "
            f"without any when they were embedded (first: {str(table.obs_names[empty][0])!r}). They are left out."
        )
    known = (labels.codes != UNKNOWN) & ~empty
    if not known.any():
        raise ValueError(f"Expected cells with a type in obs[{label_key!r}] that express a known gene, found none.")
    return ReferenceIndex(vectors[known], labels.codes[known], labels.names, {**source, "label_key": label_key})


@renamed(label="label_key")
@shared_docs
def map_reference(
    query: AnnData | MuData,
    reference: AnnData | MuData | ReferenceIndex | str | PathLike[str],
    *,
    label_key: str | None = None,
    use_rep: str = "X_scGPT",
    k: int = 10,
    how: Vote = "majority",
    threshold: float = 0.0,
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
        Embedded cells with known types, or what :func:`index_reference` made of them, or the folder that this was
        saved to.
    label_key
        Column of ``obs`` of the reference with the types; an index has them already.
    use_rep
        Key of ``obsm`` with the embedding, of both.
    k
        Number of neighbours; 10 in scGPT's tutorial, 50 where it maps to an atlas.
    how
        ``"majority"`` counts neighbours; ``"weighted"`` favours types that are rare in the reference, as scGPT does
        with atlases.  Of types with equal scores, the one of the nearer neighbour is taken.
    threshold
        Leave cells whose type has a smaller share of the votes without a type.
    unassigned
        What such cells get, and cells that expressed no known gene when they were embedded, with a confidence of 0.
    backend
        Who looks for neighbours: ``"faiss"``, ``"sklearn"``, or ``"auto"``, which takes faiss if it is installed.  The
        result is the same.
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
        Share of the votes for it.
    ``obs[f"{key_added}_distance"]`` : float32
        Mean squared Euclidean distance to the neighbours; large where the reference has nothing like the cell.
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
        If ``label_key`` or ``use_rep`` is absent.
    ValueError
        If query and reference were embedded by different models or in different ways, have columns of other names, a
        vector is not finite, or ``key_added`` is the name of something else.

    Warns
    -----
    UserWarning
        If cells expressed no known gene when they were embedded, or one of the two does not say how it was embedded.
    """
    check_arguments(map_reference, locals())
    check_choice("how", how, get_args(Vote))
    check_choice("backend", backend, get_args(Backend))
    cells = slots_of(query, modality)
    check_writable(query, cells, copy=copy)
    check_new_key(cells, "obs", key_added, default="mapped_cell_type")
    vectors, source = _embedding(cells, use_rep)
    index = _open_reference(reference, label_key=label_key, use_rep=use_rep, modality=modality)
    check_unassigned(unassigned, index.classes)
    _check_same_space(source, index.source)
    vectors = _in_order(vectors, source.get(_COLUMNS), index.source.get(_COLUMNS))
    empty = _empty(cells, use_rep)
    if empty.any():
        warn_user(
            f"Expected cells with known features above zero, found {int(empty.sum()):,} of {len(empty):,} without any "
            f"when they were embedded (first: {str(cells.obs_names[empty][0])!r}). They get no type but {unassigned!r}."
        )
    found = index.search(vectors, k, backend=backend)
    ballot = vote(index.codes[found.rows], len(index.classes), how=how, proportions=index.proportions)
    keys = AnnotateKeys(key_added)
    params = {
        "use_rep": use_rep,
        "label_key": str(index.source.get("label_key", index.source.get("label", ""))),
        "k": found.rows.shape[1],
        "how": how,
    }
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
    )
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


def _empty(table: AnnData | MuData, use_rep: str) -> NDArray[np.bool_]:
    """Cells of which the model has seen nothing when it embedded them."""
    about = table.uns.get(use_rep)
    names = about.get("empty", ()) if isinstance(about, Mapping) else ()
    return np.asarray(table.obs_names.isin([str(name) for name in np.atleast_1d(np.asarray(names, dtype=object))]))


def _open_reference(reference: Any, *, label_key: str | None, use_rep: str, modality: str | None) -> ReferenceIndex:
    if isinstance(reference, str | PathLike):
        reference = ReferenceIndex.load(reference)
    if isinstance(reference, ReferenceIndex):
        if label_key is not None:
            raise ValueError(
                f"Expected no `label_key` with an index, which has its types already, found {label_key!r}."
            )
        return reference
    if not hasattr(reference, "obsm"):
        raise TypeError(
            f"Expected `reference` to be a table of cells, an index or its folder, found {type(reference).__name__}."
        )
    if label_key is None:
        columns = [str(column) for column in cell_columns(slots_of(reference, modality)).columns]
        raise ValueError(
            f"Expected `label_key` to name the column of `obs` with the types, one of {columns}; found None."
        )
    return index_reference(reference, label_key=label_key, use_rep=use_rep, modality=modality)


def _embedding(table: AnnData | MuData, use_rep: str) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Vectors, and how they were made as far as that is known."""
    check_type("the table", table, (AnnData, MuData))
    found = table.obsm[check_key(table.obsm, use_rep, "obsm")]
    about = table.uns.get(use_rep)
    kept = ("model", "params", "tokenizer") if isinstance(about, Mapping) else ()
    source = {name: about[name] for name in kept if isinstance(about.get(name), Mapping)}
    if isinstance(found, pd.DataFrame):
        source[_COLUMNS] = [str(name) for name in found.columns]
    return plain_vectors(found, f"obsm[{use_rep!r}]"), source


def _check_same_space(query: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    ours, theirs = _space(query), _space(reference)
    for (_, name), own, other in zip(_SPACE, ours, theirs, strict=True):
        if own is not None and other is not None and own != other:
            raise ValueError(
                f"Expected cells embedded in the same way as the reference, found {name} {own[:12]!r} for the "
                f"query and {other[:12]!r} for the reference. Embed both with the same model and arguments."
            )
    if (ours[0] is None) != (theirs[0] is None):
        who = "query" if ours[0] is None else "reference"
        warn_user(
            f"The {who} does not say which model embedded it (`uns` was lost, for example in a concatenation), so it "
            "cannot be checked that both lie in the same space."
        )


def _space(source: Mapping[str, Any]) -> list[str | None]:
    values = [source.get(part, {}).get(name) for part, name in _SPACE]
    return [None if value is None else str(value) for value in values]
