"""Learning to name the types of cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools.data.classes import UNKNOWN
from scgpt_tools.models.families import find_family
from scgpt_tools.objectives.recipes import ANNOTATE
from scgpt_tools.train.comparison import compared
from scgpt_tools.train.known_cells import keep_cells
from scgpt_tools.train.tasks.cells import CellTask, OpenedCells

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools.data.module import CellDataModule
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotate(CellTask):
    """Cross-entropy of the classes of a column."""

    name = "annotate"
    recipe = ANNOTATE
    fit = {"epochs": 10, "batch_size": 32, "lr": 1e-4}
    defaults = {"sampling": "random", "batch_parts": False}
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
        codes = set(opened.labels.codes[opened.train].tolist()) - {UNKNOWN}
        if len(codes) < 2:
            found = sorted(opened.labels.names[code] for code in codes)
            raise ValueError(
                f"Expected cells of two classes of {self.label_key!r} or more to train on, found only {found}."
            )
        return opened

    def finish(self, model: CellModel, data: CellDataModule, opened: OpenedCells, *, seed: int) -> None:
        """Compare the classifier with plain ones, and have it keep cells to tell others from."""
        if opened.labels is None or "cell_type" not in {term.name for term in opened.terms if term.weight > 0}:
            return
        model.comparison = compared(model, data, opened.labels.names, baselines=self.compare, seed=seed)
        keep_cells(model, data, seed=seed)
