"""How long and how fast a model learns where nobody says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback

import scgpt_tools as sct
from scgpt_tools.train import FitConfig
from scgpt_tools.train.pacing import MOST, PATIENCE, WITHOUT_VALIDATION, automatic_share, paced

USUAL = FitConfig(epochs=10, batch_size=32, lr=1e-4)


def pace(said=(), *, width=512, n_train=90, n_validation=30, settings=USUAL):
    return paced(settings, said, width=width, n_train=n_train, n_validation=n_validation)


def test_few_cells_are_learnt_for_as_many_steps_as_it_takes():
    few, many = pace(n_train=90), pace(n_train=1_000_000)
    assert (few.epochs * 3, few.patience * 3) == (pytest.approx(MOST, abs=3), pytest.approx(PATIENCE, abs=3))
    assert (many.epochs, many.patience, many.step_epochs) == (10, 2, 1)


def test_the_rate_falls_by_steps_where_epochs_are_short():
    assert pace(n_train=90).step_epochs * 3 == pytest.approx(PATIENCE, abs=3)
    assert pace(["schedule"], n_train=90).step_epochs == 1


def test_without_validation_there_are_steps_enough_and_no_patience():
    found = pace(n_validation=0)
    assert (found.epochs * 3, found.patience) == (pytest.approx(WITHOUT_VALIDATION, abs=3), None)


@pytest.mark.parametrize(("devices", "nodes", "processes"), [(2, 1, 2), ("0,2", 1, 2), (1, 2, 2), ("auto", 1, 1)])
def test_steps_are_counted_for_all_that_share_the_cells(devices, nodes, processes):
    settings = replace(USUAL, devices=devices, nodes=nodes, accelerator="cpu")
    assert pace(n_train=960, settings=settings).epochs == pace(n_train=960 // processes).epochs


@pytest.mark.parametrize("said", ["epochs", "max_steps"])
def test_who_says_how_long_is_taken_at_his_word(said):
    found = pace([said])
    assert (found.epochs, found.patience, found.step_epochs) == (10, None, 1)


def test_a_task_has_its_own_patience_at_least():
    own = replace(USUAL, patience=10)
    assert pace(n_train=1_000_000, settings=own).patience == 10
    assert pace(n_train=90, settings=own).patience * 3 == pytest.approx(PATIENCE, abs=3)


def test_steps_count_accumulated_minibatches():
    assert pace(settings=replace(USUAL, accumulate=3)).epochs == MOST


@pytest.mark.parametrize(("width", "lr"), [(64, 8e-4), (512, 1e-4), (1024, 1e-4)])
def test_narrow_models_learn_faster(width, lr):
    assert pace(width=width).lr == pytest.approx(lr)
    assert pace(["lr"], width=width).lr == 1e-4


def test_few_cells_hold_out_enough_to_judge_by():
    assert [automatic_share(n) for n in (40, 120, 250, 500, 10_000)] == [0.25, 0.25, 0.2, 0.1, 0.1]


def test_annotation_ends_when_held_out_cells_get_no_better(make_model, cells, monkeypatch):
    """Labels without a pattern: nothing is to be learnt, so patience ends the run, and the warning says so."""
    monkeypatch.setattr("scgpt_tools.train.pacing.PATIENCE", 6)
    cells.obs["kind"] = np.random.default_rng(0).choice(["x", "y"], cells.n_obs)
    held_out = []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer, module, batch, *_):
            held_out.append(len(batch))

    options = {"label_key": "kind", "batch_size": 16, "lr": 1e-9, "accelerator": "cpu", "callbacks": [Watch()]}
    with pytest.warns(UserWarning, match="does better than chance, found one"):
        model = sct.train.finetune(cells, make_model(dropout=0.0), task="annotate", **options)
    assert 6 <= model.history["step"].iloc[-1] < MOST
    assert 14 <= sum(held_out) / len(model.history) <= 16
