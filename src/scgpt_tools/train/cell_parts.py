"""Which cells are trained and validated on, and which batches they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._validate import check_fraction
from scgpt_tools.data.cell_splits import split_cells
from scgpt_tools.data.classes import Classes, read_classes
from scgpt_tools.data.parts import read_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgpt_tools.data.rows import Rows
    from scgpt_tools.models.cell_model import CellModel


def read_batches(source: Rows, model: CellModel, key: str | None, *, add_parts: bool) -> Classes | None:
    """Batches of the table, numbered as the model numbers them where it has parts for each already."""
    has_parts = bool(model.config.domains or model.config.context.batches)
    if key is None:
        if has_parts or add_parts:
            raise ValueError("Expected `batch`, the column of `obs` with technical batches, found None.")
        return None
    keep = has_parts and not add_parts
    return read_classes(source.obs, key, names=model.config.batch_names if keep else None)


def training_parts(
    source: Rows,
    validation: float | str,
    usable: NDArray[np.bool_],
    strata: Sequence[Classes | None],
    *,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the cells to train and to validate on."""
    if isinstance(validation, str):
        part = read_parts(source.obs, validation)
        return np.flatnonzero(usable & (part == "train")), np.flatnonzero(usable & (part == "val"))
    share = check_fraction("validation", validation, one=False)
    cells = np.flatnonzero(usable)
    if share == 0:
        return cells, cells[:0]
    groups = ["-".join(str(classes.codes[cell]) for classes in strata if classes is not None) for cell in cells]
    names = np.asarray(source.names, dtype=str)[cells]
    part = split_cells(names.tolist(), test=0, val=share, seed=seed, strata=groups)
    return cells[part == "train"], cells[part == "val"]


def codes_of(classes: Classes | None) -> NDArray[np.int64] | None:
    """Number of the class of each cell, if classes are known."""
    return None if classes is None else classes.codes
