"""What a classifier of cell types is compared with, and when it is warned of."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.models import CellModel
from scgpt_tools.train import FitConfig, known_cells
from scgpt_tools.train.comparison import LINEAR, MAJORITY, MODEL, NEIGHBOURS, NoBetterThanChanceWarning
from scgpt_tools.train.fit import first_device

QUICK = {"task": "annotate", "label_key": "kind", "batch_size": 16, "lr": 1e-2, "accelerator": "cpu"}


@pytest.fixture
def base(make_model):
    return make_model(dropout=0.0).eval()


def test_a_classifier_that_learns_is_listed_beside_plain_ones(base, cells, caplog):
    with warnings.catch_warnings(), caplog.at_level("INFO", logger="scgpt_tools"):
        warnings.simplefilter("error")
        model = sct.train.finetune(cells, base, validation=0.25, epochs=15, **QUICK)
    table = model.comparison
    assert list(table.index) == [MODEL, LINEAR, NEIGHBOURS, MAJORITY]
    assert table.loc[MODEL, "accuracy"] > 0.8
    assert table.loc[LINEAR, "accuracy"] > 0.8
    assert table.loc[MAJORITY, "accuracy"] == pytest.approx(0.5, abs=0.1)
    assert (table["cells"] == 14).all()
    assert f"{LINEAR} {table.loc[LINEAR, 'accuracy']:.3f}" in caplog.text
    assert table.loc[MODEL, "accuracy"] == pytest.approx(model.history["validation_accuracy"].max(), abs=0.1)


def test_plain_methods_can_be_left_out(base, cells):
    model = sct.train.finetune(cells, base, compare=False, epochs=1, **QUICK)
    assert list(model.comparison.index) == [MODEL, MAJORITY]


def test_no_better_than_chance_is_never_returned_in_silence(base, cells):
    options = QUICK | {"lr": 1e-12}
    with pytest.warns(
        NoBetterThanChanceWarning, match="found one that is right in .* held-out cells .*leave out `epochs`"
    ):
        sct.train.finetune(cells, base, epochs=1, **options)
    with pytest.warns(NoBetterThanChanceWarning, match="of 60 training cells"):
        model = sct.train.finetune(cells, base, validation=0, epochs=1, **options)
    assert list(model.comparison.index) == [MODEL, MAJORITY]


def test_a_majority_alone_is_no_knowledge(base, cells):
    """Nine in ten right is chance where nine in ten cells are of one class."""
    cells.obs["kind"] = np.where(np.arange(60) % 10 == 3, "rare", "common")
    with pytest.warns(NoBetterThanChanceWarning, match="the most frequent class 9"):
        sct.train.finetune(cells, base, validation=0, epochs=1, **QUICK | {"lr": 1e-12})


@pytest.mark.parametrize("sizes", [(10, 0), (1, 1)], ids=["one class", "two cells"])
def test_cells_that_cannot_tell_are_not_held_against_a_classifier(base, cells, sizes):
    place = cells.obs.groupby("kind", observed=True).cumcount()
    held_out = place < cells.obs["kind"].map(dict(zip(["even", "odd"], sizes, strict=True))).astype(int)
    cells.obs["part"] = np.where(held_out, "val", "train")
    with pytest.warns(NoBetterThanChanceWarning) as found:
        sct.train.finetune(cells, base, validation="part", compare=False, epochs=15, **QUICK)
    said = [str(warning.message) for warning in found if warning.category is NoBetterThanChanceWarning]
    assert len(said) == 1
    assert "held-out cells that tell a good classifier from chance" in said[0]
    assert "Do not use it" not in said[0]


def test_each_cell_is_embedded_once_where_training_was(base, cells, monkeypatch):
    embedded, moved = [], []
    embed, move = known_cells.embedded_cells, CellModel.to
    monkeypatch.setattr(known_cells, "embedded_cells", lambda *args: embedded.extend(args[2]) or embed(*args))
    monkeypatch.setattr(CellModel, "to", lambda self, place: moved.append((len(embedded), place)) or move(self, place))
    monkeypatch.setattr("scgpt_tools.train.driver.first_device", lambda config: f"cpu:{config.epochs}")
    model = sct.train.finetune(cells, base, validation=0.25, epochs=7, **QUICK)
    assert sorted(embedded) == list(range(len(cells)))
    assert moved[-2:] == [(0, "cpu:7"), (len(cells), base.device)]
    assert len(model.heads["reference_cells"].held_out) == 14


@pytest.mark.parametrize(("devices", "first"), [(1, 0), ("2", 0), ("auto", 0), ("2,", 2), ("3,1", 3)])
def test_the_first_device_is_that_of_the_first_process(monkeypatch, devices, first):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert first_device(FitConfig(devices=devices)) == torch.device("cuda", first)
    assert first_device(FitConfig(devices=1, accelerator="cpu")) == torch.device("cpu")


def test_what_is_drawn_and_fitted_follows_from_the_seed(base, cells):
    """Whatever was drawn before; numbers of others are left as they were."""
    found = []
    for number in (1, 2):
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        found.append(sct.train.finetune(cells, base, validation=0.25, epochs=1, **QUICK))
        assert torch.equal(torch.random.get_rng_state(), before)
    first, second = found
    pd.testing.assert_frame_equal(first.comparison, second.comparison)
    assert first.checksum == second.checksum


def test_other_tasks_have_no_such_table(base, cells):
    with pytest.raises(TypeError, match="no `compare` for task='integrate'"):
        sct.train.finetune(cells, base, task="integrate", batch_key="batch", compare=False, epochs=1)
