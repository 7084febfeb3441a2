"""From cells to a model that others can load, by command lines only: as one would do it by hand, in one folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools import cli

RUN = """
data: {paths: [cells.h5ad], validation: 0.2}
family: {name: scmodelforge, dim: 16, layers: 4, heads: 2}
train: {epochs: 200, batch_size: 32, accelerator: cpu, lr: 1e-3, schedule: constant}
"""
# Its words for much the same, small: sizes through overrides.
THEIRS = """
data: {source: local, paths: [cells.h5ad], preprocessing: {normalize: null, log1p: false}}
tokenizer: {strategy: rank_value, max_genes: 64, prepend_cls: true, masking: {mask_ratio: 0.15}}
model: {architecture: transformer_encoder, hidden_dim: 512, num_layers: 12, num_heads: 8}
training: {batch_size: 64, max_epochs: 10, precision: 32-true, logger: csv, checkpoint_dir: checkpoints}
eval:
  benchmarks: [{name: linear_probe, dataset: test, params: {cell_type_key: cell_type}}]
"""
THEIRS_TO_TUNE = """
data: {paths: [cells.h5ad]}
training: {batch_size: 32, max_epochs: 1, precision: 32-true, checkpoint_dir: tuned_theirs}
finetune: {label_key: cell_type, freeze_backbone_epochs: 1, head: {task: classification}, head_lr: 1.0e-3}
"""
# The bundled cells are kept as logarithms.
pytestmark = pytest.mark.filterwarnings("ignore:Expected raw counts, found")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = sct.datasets.pbmc_demo()
    common = cells.obs["cell_type"].value_counts().index[:3]
    cells = cells[cells.obs["cell_type"].isin(common)][:96].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()
    cells.write_h5ad("cells.h5ad")
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def run(*words, program="scgpt-tools"):
    assert cli.main(words, program=program) == 0, words


def killed(folder, *words, output="model"):
    """Run a command until its first checkpoint is written, and kill it."""
    last = folder / output / "run" / "last.ckpt"
    command = [sys.executable, "-m", "scgpt_tools.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 300
        while not last.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert last.exists()
    history = last.with_name("history.csv")
    return len(pd.read_csv(history)) if history.exists() else 0


@pytest.mark.slow
def test_from_cells_to_a_model_that_others_load(folder, capsys):
    words = ("pretrain", "--config", "run.yaml", "--output", "model", "--model.layers", "1")
    done = killed(folder, *words)
    run(*words, "--resume", "--train.epochs", str(done + 1))
    said = capsys.readouterr().err
    assert f"Epoch {done + 1} of {done + 1}: train_gradient_norm" in said
    assert "Wrote the model to model" in said
    history = pd.read_csv("model/run/history.csv")
    assert list(history["epoch"]) == list(range(done + 1))
    assert cli.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err

    run("embed", "cells.h5ad", "--model", "model/run/best.ckpt", "-o", "embedded.h5ad", "--key_added", "X_own")
    assert ad.read_h5ad("embedded.h5ad").obsm["X_own"].shape == (96, 16)

    run("benchmark", "--model", "model", "--data", "cells.h5ad", "--output", "scores.json", "--n_seeds", "2")
    scores = json.loads((folder / "scores.json").read_text())
    assert {row["model"] for row in scores["scores"]} >= {"model", "PCA"}

    run("finetune", "cells.h5ad", "--label-key", "cell_type", "--model", "model", "-o", "tuned",
        "--epochs", "1", "--accelerator", "cpu")  # fmt: skip
    assert (folder / "tuned" / "history.csv").exists()

    run("predict", "cells.h5ad", "--model", "tuned", "-o", "predicted.h5ad")
    assert ad.read_h5ad("predicted.h5ad").obs["scgpt_cell_type"].notna().all()
    run("evaluate", "cells.h5ad", "--model", "tuned", "--label-key", "cell_type", "-o", "accuracy.csv")
    assert pd.read_csv("accuracy.csv")["class"].tolist()[0] == "all cells"

    run("export", "--model", "model", "--output", "exported")
    loaded = sct.CellModel.from_pretrained("exported", device="cpu")
    assert loaded.checksum == sct.CellModel.from_pretrained("model", device="cpu").checksum


@pytest.mark.slow
def test_a_fine_tuning_that_was_killed_ends_as_one_that_was_not(folder, capsys):
    run("pretrain", "--config", "run.yaml", "--output", "model", "--train.epochs", "1", "--family.layers", "1")
    words = ["finetune", "cells.h5ad", "--label-key", "cell_type", "--model", "model", "--batch-size", "4"]
    words += ["--checkpoint-steps", "2", "--epochs", "12", "--accelerator", "cpu"]
    run(*words, "-o", "whole")
    killed(folder, *words, "-o", "tuned", output="tuned")
    assert cli.main(["predict", "cells.h5ad", "--model", "tuned", "-o", "predicted.h5ad"]) == 2
    assert "Expected the folder 'tuned' to hold config.json" in capsys.readouterr().err
    run(*words, "-o", "tuned", "--resume")
    assert "Going on from tuned/run/last.ckpt" in capsys.readouterr().err
    whole, tuned = (sct.CellModel.from_pretrained(name, device="cpu").state_dict() for name in ("whole", "tuned"))
    for name, tensor in whole.items():
        # What other tests have loaded can change how this process rounds.
        torch.testing.assert_close(tuned[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    losses = [pd.read_csv(folder / name / "history.csv")["train_loss"] for name in ("whole", "tuned")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.slow
def test_the_same_in_the_words_of_scmodelforge(folder, capsys):
    for name, text in {"train": THEIRS, "tune": THEIRS_TO_TUNE}.items():
        (folder / f"{name}.yaml").write_text(text)
    sizes = ("--model.hidden_dim", "16", "--model.num_layers", "1", "--model.num_heads", "2")
    run("train", "--config", "train.yaml", *sizes, "--training.max_epochs", "1", program="scmodelforge")
    run("train", "--config", "train.yaml", *sizes, "--training.max_epochs", "2", "--resume", "checkpoints/last.ckpt",
        program="scmodelforge")  # fmt: skip
    assert len(pd.read_csv("checkpoints/history.csv")) == 2
    run("benchmark", "--config", "train.yaml", *sizes, "--model", "checkpoints/best.ckpt", "--data", "cells.h5ad",
        "--output", "results/metrics.json", program="scmodelforge")  # fmt: skip
    assert {row["dataset"] for row in json.loads((folder / "results" / "metrics.json").read_text())["scores"]} == {
        "test"
    }
    run("finetune", "--config", "tune.yaml", "--checkpoint", "checkpoints/best.ckpt", program="scmodelforge")
    run("export", "--checkpoint", "tuned_theirs/best.ckpt", "--config", "tune.yaml", "--output", "exported")
    assert "cell_type" in sct.CellModel.from_pretrained("exported", device="cpu").heads
    assert "warning" not in capsys.readouterr().err.replace("warning: Expected raw counts", "")
