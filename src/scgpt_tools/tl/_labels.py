"""Classes of cells with a confidence, written to a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._keys import AnnotateKeys


def write_labels(
    table: AnnData,
    keys: AnnotateKeys,
    *,
    winner: NDArray[np.int64],
    probabilities: NDArray[np.floating[Any]],
    classes: Sequence[str],
    threshold: float,
    unassigned: str,
    about: dict[str, Any],
    without: NDArray[np.bool_],
    rejected: NDArray[np.bool_] | None = None,
    confidence: NDArray[np.floating[Any]] | None = None,
) -> int:
    """Write the class of each cell, or that it has none.

    ``winner`` (cells,) number of the class; ``probabilities`` (cells, classes); ``about``: provenance; the names of the
    classes are added; ``without`` (cells,) cells that nothing is known of; they get no class and a confidence of 0;
    ``rejected`` (cells,) cells that get no class for another reason; ``confidence`` (cells,), where it is not the
    probability of the class.
    """
    if confidence is None:
        confidence = np.take_along_axis(probabilities, winner[:, None], axis=1)[:, 0]
    confidence = np.where(without, 0, confidence).astype(np.float32)
    below = (confidence < threshold) | without
    if rejected is not None:
        below |= rejected
    names = [*classes, unassigned] if below.any() else list(classes)
    labels = np.asarray(names, dtype=object)[np.where(below, len(classes), winner)]
    table.obs[keys.obs] = pd.Categorical(labels, categories=names)
    table.obs[keys.obs_confidence] = confidence
    table.obsm[keys.obsm] = probabilities.astype(np.float32)
    table.uns[keys.uns] = {**about, "classes": np.asarray(classes, dtype=object)}
    return int(below.sum())


def check_unassigned(unassigned: str, classes: Sequence[str]) -> None:
    """A class must not be called what stands for none."""
    if unassigned in classes:
        raise ValueError(f"Expected `unassigned` to be no class of the model, found {unassigned!r} among {classes}.")
