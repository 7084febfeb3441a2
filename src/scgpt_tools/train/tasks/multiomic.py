"""Learning the modalities of a MuData together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools.data.modalities import has_modalities
from scgpt_tools.objectives import CellType
from scgpt_tools.objectives.recipes import MULTIOMIC
from scgpt_tools.train.modalities import for_modalities
from scgpt_tools.train.tasks.cells import CellTask, OpenedCells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiomic(CellTask):
    """Expression of all modalities; the classes and the adversary only if their columns are named."""

    name = "multiomic"
    recipe = MULTIOMIC
    # What a model has learnt of cells survives slow steps only; heads and context have new things to learn.
    fit = {
        "epochs": 20,
        "batch_size": 32,
        "lr": 3e-4,
        "head_lr": 3e-3,
        "schedule": "cosine",
        "warmup": 0.05,
        "monitor": "validation_masked_expression",
    }  # fmt: skip
    defaults = {"validation": 0.1, "sampling": "random"}
    authors = {
        "epochs": 25,
        "batch_size": 16,
        "lr": 1e-3,
        "head_lr": None,
        "schedule": "step",
        "step_factor": 0.95,
        "warmup": 0.0,
    }  # fmt: skip
    batch_norm = False

    def open(self, adata: AnnData | MuData, model: CellModel, *, seed: int) -> OpenedCells:
        """Read the cells of a MuData."""
        if not has_modalities(adata):
            raise TypeError(f"Expected a MuData for task={self.name!r}, found {type(adata).__name__}.")
        return super().open(adata, model, seed=seed)

    def weighted(self, terms: Sequence[Objective], tokenizer: TokenizerConfig) -> Sequence[Objective]:
        """Loss terms for which there are columns, weighted by modality."""
        there = [term for term in terms if "batch" not in term.heads or self.batch_key is not None]
        if self.label_key is not None:
            there.append(CellType())
        return for_modalities(there, tokenizer)
