"""Which annotated cells train and which validate, and what is said where classes are small."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from scgpt_tools.train.comparison import NoBetterThanChanceWarning
from scgpt_tools.train.tasks.annotate import Annotate

QUICK = {"label_key": "type", "epochs": 1, "batch_size": 16, "accelerator": "cpu", "compare": False}


@pytest.fixture
def base(make_model):
    return make_model(dropout=0.0).eval()


@pytest.fixture
def divided(base, monkeypatch, make_cells):
    """Fine-tune on classes of these sizes; number of cells of each class that train and that validate."""

    def run(sizes, *, batches=1, **options):
        cells = make_cells(sum(sizes.values()), seed=0)
        cells.obs["type"] = np.repeat(list(sizes), list(sizes.values()))
        cells.obs["batch"] = [f"b{place % batches}" for place in range(cells.n_obs)]
        found = []
        read = Annotate.open
        monkeypatch.setattr(Annotate, "open", lambda *args, **more: found.append(read(*args, **more)) or found[-1])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=NoBetterThanChanceWarning)
            sct.train.finetune(cells, base, **QUICK | options)
        parts = (found[-1].train, found[-1].validation)
        return tuple(
            cells.obs["type"].iloc[part].value_counts().reindex(list(sizes), fill_value=0).tolist() for part in parts
        )

    return run


def test_classes_of_four_cells_hold_one_out_and_smaller_ones_train(divided, caplog):
    with caplog.at_level("INFO", logger="scgpt_tools"):
        train, validation = divided({"B": 60, "pDC": 4, "HSPC": 3, "platelet": 2}, validation=0.1)
    assert validation == [6, 1, 0, 0]
    assert train == [54, 3, 3, 2]
    assert "No cell of 2 of 4 classes validates (HSPC, platelet): they do not count" in caplog.text


def test_batches_round_the_share_of_no_class_down(divided):
    """Two cells of each class in each of ten batches: a quarter of every two is none."""
    assert divided({"B": 20, "T": 20}, batches=10, batch_key="batch")[1] == [5, 5]


def test_classes_too_small_to_hold_any_out_are_said(divided):
    with pytest.warns(
        UserWarning, match=r"cells to validate on, found none, for no class has 4 cells.*validation=0 to mean that"
    ):
        train, validation = divided({"B": 3, "T": 3, "NK": 2}, validation=0.1)
    assert (train, validation) == ([3, 3, 2], [0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=NoBetterThanChanceWarning)
        divided({"B": 3, "T": 3, "NK": 2}, validation=0)


def test_a_column_may_leave_out_cells_to_validate_on_or_to_learn_from(base, cells):
    cells.obs["type"] = pd.Series(["B"] * 30 + ["T"] * 25 + ["NK"] * 5, index=cells.obs_names)
    cells.obs["part"] = "train"
    options = QUICK | {"validation": "part", "lr": 1e-2, "epochs": 8}
    with pytest.warns(UserWarning, match=r"cells to validate on, found no 'val' cells in obs\['part'\]"):
        sct.train.finetune(cells, base, **options)
    cells.obs["part"] = ["val" if place % 3 == 0 or place >= 55 else "train" for place in range(60)]
    with pytest.warns(
        UserWarning, match=r"every class that validates, found none of 1 \(NK\), which the model never names"
    ):
        model = sct.train.finetune(cells, base, **options)
    assert model.config.heads.cell_type.names == ("B", "NK", "T")
