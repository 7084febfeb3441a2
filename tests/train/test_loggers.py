"""Loggers by name, the numbers that they get, and the probe of held-out cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tools.train import LoggerConfig, finetune
from scgpt_tools.train.pretrain import pretrain
from scgpt_tools.train.probing import probe_scores

CONFIG = {
    "data": {"paths": ["cells.h5ad"], "validation": 0.25},
    "family": {"name": "scmodelforge", "dim": 8, "layers": 1, "heads": 2, "hidden": 8, "dropout": 0.0},
    "train": {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "lr": 1e-3},
}


@pytest.fixture
def folder(tmp_path, cells):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path


def test_csv(folder):
    model = pretrain(
        CONFIG | {"loggers": [{"kind": "csv", "project": "mine", "name": "one"}]}, data=folder, output=folder / "m"
    )
    logged = pd.read_csv(folder / "m" / "run" / "mine" / "one" / "metrics.csv")
    assert {"loss", "gradient_norm", "cells_per_second", "lr", "validation_loss", "train_gradient_norm"} <= set(logged)
    steps = logged.dropna(subset=["gradient_norm"])
    assert len(steps) >= 2
    assert (steps["gradient_norm"] > 0).all()
    assert (logged["cells_per_second"].dropna() > 0).all()
    history = pd.read_csv(folder / "m" / "run" / "history.csv")
    assert len(history) == 2
    assert (history["train_gradient_norm"] > 0).all()
    assert not {"gradient_norm", "loss"} & set(history)
    assert not model.training


def test_numbers_of_a_run_that_goes_on_stay(folder):
    config = CONFIG | {"loggers": [{"kind": "csv", "project": "mine", "name": "one"}]}
    pretrain(config, data=folder, output=folder / "m")
    before = (folder / "m/run/mine/one/metrics.csv").read_text()
    pretrain(config | {"train": CONFIG["train"] | {"epochs": 3, "resume": True}}, data=folder, output=folder / "m")
    assert (folder / "m/run/mine/one/metrics.csv").read_text() == before
    assert set(pd.read_csv(folder / "m/run/mine/one_2/metrics.csv")["epoch"].dropna()) == {2}


def test_tensorboard(folder):
    pytest.importorskip("tensorboardX", reason="TensorBoard's files are written by tensorboardX (extra tensorboard)")
    pretrain(CONFIG | {"loggers": [{"kind": "tensorboard"}]}, data=folder, output=folder / "m")
    (events,) = (folder / "m" / "run").rglob("events.out.tfevents*")
    assert b"gradient_norm" in events.read_bytes()


def test_weights_and_biases_offline(folder, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is large (extra wandb)")
    monkeypatch.setenv("WANDB_SILENT", "true")
    pretrain(CONFIG | {"loggers": [{"kind": "wandb", "offline": True}]}, data=folder, output=folder / "m")
    (run,) = (folder / "m" / "run" / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


def test_fine_tuning_logs_too(cells, make_model, tmp_path):
    options = {"task": "annotate", "label_key": "kind", "epochs": 1, "accelerator": "cpu", "lr": 1e-3}
    finetune(cells, make_model(), **options, folder=tmp_path / "run", loggers=[LoggerConfig(kind="csv")])
    (logged,) = (tmp_path / "run").rglob("metrics.csv")
    assert "cells_per_second" in pd.read_csv(logged)
    with pytest.raises(ValueError, match="Expected a `folder` that the logger 'csv' can write to"):
        finetune(cells, make_model(), **options, loggers=[LoggerConfig(kind="csv")])
    with pytest.raises(TypeError, match=r"loggers\[0\]"):
        finetune(cells, make_model(), **options, loggers=["csv"])


def test_held_out_cells_are_probed_every_few_epochs(folder):
    """With the tokens of training, on cells that were not trained on."""
    config = CONFIG | {"evaluate": {"label_key": "kind", "every": 2}, "train": CONFIG["train"] | {"epochs": 4}}
    model = pretrain(config, data=folder, output=folder / "m")
    history = pd.read_csv(folder / "m" / "run" / "history.csv").set_index("epoch")
    assert history["validation_probe_accuracy"].notna().tolist() == [False, True, False, True]
    last = history.iloc[-1]
    assert 0 <= last["validation_probe_accuracy"] <= 1
    cells = ad.read_h5ad(folder / "cells.h5ad")
    assert last["validation_probe_majority"] <= cells.obs["kind"].value_counts(normalize=True).max() + 0.2
    plain = pretrain(CONFIG | {"train": config["train"]}, data=folder, output=folder / "plain")
    assert plain.checksum == model.checksum


def test_the_probe_finds_what_is_there():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 60)
    X = rng.normal(size=(60, 4)) * [1, 1, 1, 1e-3]
    X[:, 3] += codes * 1e-2
    scores = probe_scores(X[:40], codes[:40], X[40:], codes[40:])
    assert scores["validation_probe_accuracy"] == 1
    assert scores["validation_probe_majority"] == pytest.approx((codes[40:] == np.bincount(codes[:40]).argmax()).mean())
