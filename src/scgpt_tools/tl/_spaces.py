"""Embeddings as they are mapped to each other: vectors, how they were made, and whether two lie in one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scgpt_tools._validate import check_key, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import plain_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What two embeddings must share to lie in the same space.
_SPACE = (
    ("model", "checksum"),
    ("model", "architecture"),
    ("params", "pooling"),
    ("params", "normalize"),
    *(("tokenizer", name) for name in ("genes", "values", "bins", "ties", "cls", "cls_value", "expects")),
)
COLUMNS = "columns"
"""Names of the dimensions of an embedding that is kept as a frame."""


def embedding_of(table: AnnData | MuData, use_rep: str) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Vectors, and how they were made as far as that is known."""
    check_type("the table", table, (AnnData, MuData))
    found = table.obsm[check_key(table.obsm, use_rep, "obsm")]
    source = how_made(table.uns.get(use_rep))
    if isinstance(found, pd.DataFrame):
        source[COLUMNS] = [str(name) for name in found.columns]
    return plain_vectors(found, f"obsm[{use_rep!r}]"), source


def how_made(about: Any) -> dict[str, Any]:
    """What ``uns`` says of an embedding, as far as it is compared."""
    kept = ("model", "params", "tokenizer") if isinstance(about, Mapping) else ()
    return {name: about[name] for name in kept if isinstance(about.get(name), Mapping)}


def empty_cells(cells: pd.Index, about: Any) -> NDArray[np.bool_]:
    """Cells of which the model has seen nothing when it embedded them, by what ``uns`` says of the embedding."""
    names = about.get("empty", ()) if isinstance(about, Mapping) else ()
    return np.asarray(cells.isin([str(name) for name in np.atleast_1d(np.asarray(names, dtype=object))]))


def check_same_space(query: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Refuse embeddings of different models or made in different ways; warn where one does not say how it was made."""
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
