"""What a classifier of cell types keeps of its training, to tell cells that are like none of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

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
"""Cells of each part that are looked at and kept, or 50 of each class if those are more."""


class LookedAt(NamedTuple):
    """Cells that a trained classifier is judged by, all of known classes."""

    train: NDArray[np.int64]
    """(R,) numbers of cells that it was trained on."""
    held_out: NDArray[np.int64]
    """(M,) numbers of cells that it was validated on."""
    vectors: NDArray[np.float32]
    """(R, D) embeddings of the former."""
    held_out_vectors: NDArray[np.float32]
    """(M, D) and of the latter."""
    held_out_classes: NDArray[np.int64]
    """(M,) classes of the latter."""


class KnownCells(NamedTuple):
    """What a classifier keeps, by the names of the buffers of its head."""

    vectors: NDArray[np.float32]
    held_out: NDArray[np.float32]
    held_out_classes: NDArray[np.int64]


def looked_at(model: CellModel, data: CellDataModule, *, seed: int) -> LookedAt:
    """Draw cells of both parts and embed them, once for all that is asked of them."""
    assert data.label is not None  # noqa: S101 - the task has a column of classes
    rng = np.random.default_rng(seed)
    label = data.label
    train, held_out = (_some(cells[label[cells] != UNKNOWN], label, rng) for cells in (data.train, data.validation))
    with torch.inference_mode():
        vectors = embedded_cells(model, data, train)
        others = embedded_cells(model, data, held_out) if held_out.size else vectors[:0]
    return LookedAt(train, held_out, vectors, others, label[held_out])


def known_cells(model: CellModel, cells: LookedAt) -> KnownCells | None:
    """Cells of the training, and how far from them those lie that the model was validated on.

    Without such cells there is nothing to judge distances by, and nothing is kept.
    """
    if not cells.held_out.size:
        return None
    head = _head(model, len(cells.train), len(cells.held_out))
    with torch.inference_mode():
        vectors, others = (torch.from_numpy(each).to(model.device) for each in (cells.vectors, cells.held_out_vectors))
        head.vectors.copy_(F.normalize(vectors, dim=1))
        distances = head.distances(others)
    return KnownCells(head.vectors.cpu().numpy(), distances.cpu().numpy(), cells.held_out_classes)


def keep_cells(model: CellModel, cells: KnownCells) -> None:
    """Give a trained classifier its cells."""
    head = _head(model, len(cells.vectors), len(cells.held_out))
    for name, array in cells._asdict().items():
        getattr(head, name).copy_(torch.from_numpy(array))
    config = ReferenceCellsConfig(cells=len(cells.vectors), held_out=len(cells.held_out))
    model.config = replace(model.config, heads=model.config.heads.replace(**{REFERENCE_CELLS: config}))
    model.heads[REFERENCE_CELLS] = head.eval()


def _head(model: CellModel, cells: int, held_out: int) -> ReferenceCellsHead:
    config = ReferenceCellsConfig(cells=cells, held_out=held_out)
    return cast("ReferenceCellsHead", config.build(model.config.sizes)).to(model.device)


def forget_cells(model: CellModel) -> None:
    """Leave reference cells of an earlier training out of a model that is about to change."""
    if REFERENCE_CELLS in model.heads:
        del model.heads[REFERENCE_CELLS]
        model.config = replace(model.config, heads=model.config.heads.replace(**{REFERENCE_CELLS: None}))


def _some(cells: NDArray[np.int64], label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return cells[draw_held_out(label[cells], MOST, rng)]
