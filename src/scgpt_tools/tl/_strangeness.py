"""How little cells are like those that a classifier was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from scgpt_tools.metrics.calibration import conformal_p_values
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._keys import AnnotateKeys
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.nn.reference_cells import ReferenceCellsHead


class Strangeness(NamedTuple):
    """Of each cell, means over models."""

    distances: NDArray[np.floating[Any]]
    p_values: NDArray[np.floating[Any]]


def strangeness(
    models: Sequence[CellModel], distances: Sequence[NDArray[np.float32]], winner: NDArray[np.int64]
) -> Strangeness | None:
    """Distances, (cells, 1) of each model that knows them and (cells, 0) of others, and what they mean for the classes."""
    found = []
    for model, column in zip(models, distances, strict=True):
        if not column.shape[1]:
            continue
        head = cast("ReferenceCellsHead", model.heads[REFERENCE_CELLS])
        held_out, classes = head.held_out.cpu().numpy(), head.held_out_classes.cpu().numpy()
        p_values = conformal_p_values(column[:, 0], winner, held_out=held_out, held_out_classes=classes)
        found.append(Strangeness(column[:, 0], p_values))
    if not found:
        return None
    return Strangeness(*(np.mean(each, axis=0) for each in zip(*found, strict=True)))


def least_p_values(models: Sequence[CellModel], n_classes: int) -> NDArray[np.floating[Any]] | None:
    """(classes,) p-value of a cell that lies farther away than any, by the class that it got."""
    # Of vectors of unit length the squared distance is at most 4.
    far = [np.full((n_classes, int(REFERENCE_CELLS in model.heads)), 5, dtype=np.float32) for model in models]
    found = strangeness(models, far, np.arange(n_classes))
    return None if found is None else found.p_values


def write_strangeness(table: AnnData | MuData, keys: AnnotateKeys, found: Strangeness | None) -> None:
    """Write both, or remove those of another model, whose classes these are not."""
    for key, values in zip((keys.obs_distance, keys.obs_p_value), found or (None, None), strict=True):
        if values is not None:
            table.obs[key] = values.astype(np.float32)
        elif key in table.obs:
            del table.obs[key]
