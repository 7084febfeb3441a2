"""Learning numbers of cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools.data.targets import read_targets
from scgpt_tools.nn.heads import RegressorConfig
from scgpt_tools.objectives.recipes import REGRESS
from scgpt_tools.train.tasks.cells import CellTask, OpenedCells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools.data.rows import Rows
    from scgpt_tools.models.cell_model import CellModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Regress(CellTask):
    """Squared error of the numbers of one or several columns, each divided by its spread."""

    name = "regress"
    recipe = REGRESS
    fit = {"epochs": 10, "batch_size": 32, "lr": 1e-4}
    defaults = {"validation": 0.1, "sampling": "random", "batch_parts": False}
    needs = ("target_keys",)

    target_keys: str | Sequence[str]

    def usable(self, source: Rows) -> NDArray[np.bool_]:
        """Cells with a number of at least one column."""
        known = ~np.isnan(read_targets(source.obs, self.target_keys).values)
        return np.asarray(known.any(axis=1))

    def open(self, adata: AnnData | MuData, model: CellModel, *, seed: int) -> OpenedCells:
        """Read the cells; means and spreads are those of the training cells."""
        opened = super().open(adata, model, seed=seed)
        targets = read_targets(opened.source.obs, self.target_keys)
        training = targets.values[opened.train]
        known = (~np.isnan(training)).sum(axis=0)
        differ = np.array([len(np.unique(column[~np.isnan(column)])) > 1 for column in training.T])
        if not differ.all():
            place = int(np.argmin(differ))
            raise ValueError(
                f"Expected numbers that differ in obs[{targets.names[place]!r}] of the training cells, found "
                f"{'none' if not known[place] else f'{known[place]} times the same'}. There is nothing to learn; leave it out."
            )
        centre, spread = np.nanmean(training, axis=0), np.nanstd(training, axis=0)
        head = RegressorConfig(
            names=targets.names, centre=tuple(map(float, centre)), scale=tuple(map(float, spread)), layers=3
        )
        scaled = ((targets.values - centre) / spread).astype(np.float32)
        return replace(opened, targets=scaled, regressor=head)

    def describe(self, opened: OpenedCells) -> dict[str, Any]:
        """Names of the numbers."""
        return {"targets": [] if opened.regressor is None else list(opened.regressor.names)}
