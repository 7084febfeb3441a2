"""What a classifier of cell types keeps of its training, to tell cells that are like none of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F

from scgpt_tools.data.classes import UNKNOWN
from scgpt_tools.models.calibration import draw_held_out
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS, ReferenceCellsConfig
from scgpt_tools.train.probing import embedded_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellDataModule
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.nn.reference_cells import ReferenceCellsHead

MOST = 2_000
"""Cells of each part that are kept, at most."""


def keep_cells(model: CellModel, data: CellDataModule, *, seed: int) -> None:
    """Give a trained classifier its reference cells, and the distances to them of those that it was validated on.

    Without validation cells there is nothing to judge distances by, and nothing is kept.
    """
    assert data.label is not None  # noqa: S101 - the task has a column of classes
    rng = np.random.default_rng(seed)
    label = data.label
    known, held_out = (_some(cells[label[cells] != UNKNOWN], label, rng) for cells in (data.train, data.validation))
    if not held_out.size:
        return
    config = ReferenceCellsConfig(cells=known.size, held_out=held_out.size)
    head = cast("ReferenceCellsHead", config.build(model.config.sizes)).to(model.device)
    with torch.inference_mode():
        vectors, others = (
            torch.from_numpy(embedded_cells(model, data, cells)).to(model.device) for cells in (known, held_out)
        )
        head.vectors.copy_(F.normalize(vectors, dim=1))
        head.held_out.copy_(head.distances(others))
        head.held_out_classes.copy_(torch.from_numpy(label[held_out]))
    model.config = replace(model.config, heads=model.config.heads.replace(**{REFERENCE_CELLS: config}))
    model.heads[REFERENCE_CELLS] = head.eval()


def forget_cells(model: CellModel) -> None:
    """Leave reference cells of an earlier training out of a model that is about to change."""
    if REFERENCE_CELLS in model.heads:
        del model.heads[REFERENCE_CELLS]
        model.config = replace(model.config, heads=model.config.heads.replace(**{REFERENCE_CELLS: None}))


def _some(cells: NDArray[np.int64], label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return cells[draw_held_out(label[cells], MOST, rng)]
