"""Learning to name the types of cells."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgpt_tools._warnings import warn_user
from scgpt_tools.data.classes import UNKNOWN
from scgpt_tools.models.families import find_family
from scgpt_tools.objectives.recipes import ANNOTATE
from scgpt_tools.tokens.coverage import some
from scgpt_tools.train.comparison import compared
from scgpt_tools.train.known_cells import keep_cells, known_cells, looked_at
from scgpt_tools.train.tasks.cells import ENOUGH, CellTask, OpenedCells

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools.data.classes import Classes
    from scgpt_tools.data.module import CellDataModule
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.train.known_cells import KnownCells

logger = logging.getLogger(__name__)


def _classes_of(labels: Classes, cells: NDArray[np.int64]) -> tuple[str, ...]:
    """Names of the classes that some cells have."""
    codes = labels.codes[cells]
    return tuple(labels.names[code] for code in np.unique(codes[codes != UNKNOWN]))


class _Found(NamedTuple):
    """What the first process hands to the others."""

    comparison: pd.DataFrame
    known: KnownCells | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotate(CellTask):
    """Cross-entropy of the classes of a column."""

    name = "annotate"
    recipe = ANNOTATE
    fit = {"epochs": 10, "batch_size": 32, "lr": 1e-4}
    defaults = {"sampling": "random", "batch_parts": False}
    # Ten epochs, of which the one with the lowest loss on a tenth of the cells is kept.
    authors = {}
    authors_defaults = {"validation": 0.1}
    needs = ("label_key",)
    until_converged = True

    compare: bool

    def config_of(self, model: CellModel) -> ModelConfig:
        """The family's classifier."""
        family = find_family(model.config)
        return model.config if family is None or family.annotation is None else family.annotation(model.config)

    def open(self, adata: AnnData | MuData, model: CellModel, *, seed: int) -> OpenedCells:
        """Read the cells, of two classes or more."""
        opened = super().open(adata, model, seed=seed)
        assert opened.labels is not None  # noqa: S101 - the column is needed
        learnt, validated = (_classes_of(opened.labels, cells) for cells in (opened.train, opened.validation))
        if len(learnt) < 2:
            raise ValueError(
                f"Expected cells of two classes of {self.label_key!r} or more to train on, found only {list(learnt)}."
            )
        if self.validation != 0:
            self._say_what_validates(learnt, validated)
        return opened

    def _say_what_validates(self, learnt: tuple[str, ...], validated: tuple[str, ...]) -> None:
        """Say which classes are held out in vain, and which are not held out."""
        if not validated:
            found = (
                f"no 'val' cells in obs[{self.validation!r}]"
                if isinstance(self.validation, str)
                else f"none, for no class has {ENOUGH} cells"
            )
            warn_user(
                f"Expected cells to validate on, found {found}. All are trained on, nothing tells when to stop, how good the "
                "model is and how far unknown cells lie from it. Take more cells, or pass validation=0 to mean that."
            )
        elif new := tuple(name for name in validated if name not in learnt):
            warn_user(
                f"Expected cells to train on of every class that validates, found none of {len(new)} ({some(new)}), which the "
                "model never names. Divide the cells otherwise, or leave these out."
            )
        if validated and (alone := tuple(name for name in learnt if name not in validated)):
            logger.info(
                "No cell of %d of %d classes validates (%s): they do not count in when to stop and in how good the model is.",
                len(alone),
                len(learnt),
                some(alone),
            )

    def look(self, model: CellModel, data: CellDataModule, opened: OpenedCells, *, seed: int) -> _Found | None:
        """Compare the classifier with plain ones, and find what it is to keep to tell other cells from."""
        if opened.labels is None or "cell_type" not in {term.name for term in opened.terms if term.weight > 0}:
            return None
        cells = looked_at(model, data, seed=seed)
        comparison = compared(model, data, cells, opened.labels.names, baselines=self.compare, seed=seed)
        return _Found(comparison, known_cells(model, cells))

    def finish(self, model: CellModel, found: _Found | None) -> None:
        """Give the classifier the comparison, and cells to tell others from."""
        if found is None:
            return
        model.comparison = found.comparison
        if found.known is not None:
            keep_cells(model, found.known)
