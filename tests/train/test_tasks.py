"""Tasks: one class and one row of the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import scgpt_tools as sct
from mudatas import make_base, make_mudata
from scgpt_tools.models.families import FAMILIES
from scgpt_tools.objectives import MaskedExpression
from scgpt_tools.objectives.recipes import Recipe
from scgpt_tools.train.tasks import TASKS
from scgpt_tools.train.tasks.cells import CellTask

QUICK = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Impute(CellTask):
    """Masked expression alone."""

    name = "impute"
    recipe = Recipe(objectives=(MaskedExpression(),), source="this test")
    fit: ClassVar = {"epochs": 3, "patience": 1, "monitor": "validation_masked_expression"}
    defaults: ClassVar = {"validation": 0.2, "sampling": "random", "batch_parts": False}


def test_a_task_is_a_class_and_a_row(cells, make_model, monkeypatch):
    monkeypatch.setitem(TASKS, "impute", Impute)
    model = sct.train.finetune(cells, make_model(), task="impute", **QUICK)
    assert model.name.endswith("(impute)")
    assert {"train_masked_expression", "validation_masked_expression"} <= set(model.history)
    with pytest.raises(TypeError, match="^Expected no `within` for task='impute'"):
        sct.train.finetune(cells, make_model(), task="impute", within="batch", **QUICK)


def test_defaults_that_watch_validation_go_without_it(cells, make_model, monkeypatch):
    monkeypatch.setitem(TASKS, "impute", Impute)
    quick = QUICK | {"epochs": 2}
    model = sct.train.finetune(cells, make_model(), task="impute", validation=0, **quick)
    assert len(model.history) == 2
    cells.obs["split"] = "train"
    with pytest.warns(UserWarning, match=r"Expected cells of the part 'val' in obs\['split'\] to stop early"):
        sct.train.finetune(cells, make_model(), task="impute", validation="split", **quick)
    with pytest.raises(ValueError, match="patience=1"):
        sct.train.finetune(cells, make_model(), task="impute", validation=0, patience=1, **QUICK)


def test_a_metric_of_the_task_counts_where_a_term_reports_it(cells, make_model):
    model = sct.train.finetune(
        cells, make_model(), task="integrate", batch_key="batch", objectives=[sct.objectives.CellType()],
        label_key="kind", batch_parts=False, **QUICK,
    )  # fmt: skip
    assert "validation_cell_type" in model.history


def test_a_family_may_have_loss_terms_of_its_own(cells, make_model, monkeypatch):
    own = replace(
        FAMILIES["scgpt"],
        objectives={"annotate": [{"name": "cell_type", "weight": 2.0}, {"name": "masked_expression"}]},
    )
    monkeypatch.setitem(FAMILIES, "scgpt", own)
    model = sct.train.finetune(cells, make_model(), task="annotate", label_key="kind", **QUICK)
    assert {"train_cell_type", "train_masked_expression"} <= set(model.history)


@pytest.mark.parametrize("task", ["annotate", "integrate"])
def test_only_genes_of_the_mask_are_read(cells, make_model, task):
    needed = {"annotate": {"label_key": "kind"}, "integrate": {"batch_key": "batch"}}[task]
    cells.var["chosen"] = np.arange(cells.n_vars) % 2 == 0
    masked = sct.train.finetune(cells, make_model(), task=task, mask_var="chosen", **needed, **QUICK)
    alone = sct.train.finetune(cells[:, cells.var["chosen"]], make_model(), task=task, **needed, **QUICK)
    assert masked.checksum == alone.checksum


def test_a_mask_is_of_one_modality():
    with pytest.raises(ValueError, match="^Expected no `mask_var` for several modalities"):
        sct.train.finetune(make_mudata(), make_base(), task="multiomic", mask_var="chosen", **QUICK)
