"""What only whole processes can show: a kill that asks nobody, and two processes that share each minibatch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from scgpt_tools import cli
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.train import finetune
from scgpt_tools.train.pretrain import pretrain

CONFIG = {
    "data": {"paths": ["cells.h5ad"], "validation": 0.1},
    "family": {"dim": 16, "layers": 1, "heads": 2, "hidden": 16, "dropout": 0.0},
    "corruption": {"name": "generate_values", "ratio": 0.4},
    "objectives": [
        {"name": "masked_expression"},
        {"name": "masked_expression_from_cell"},
        {"name": "elastic_similarity", "weight": 10},
        {"name": "contrastive_cells", "weight": 5},
    ],
    "train": {"epochs": 3, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu", "schedule": "cosine"},
}

# Bins are averaged over bins, and experts count what they do, over both processes; padding is hidden, which differs between
# minibatches of one size and another.
DEEPSC = {
    "data": {"paths": ["logged.h5ad"], "validation": 0.1},
    "family": {
        "name": "deepsc",
        "dim": 16,
        "layers": 2,
        "heads": 2,
        "dropout": 0.0,
        "options": {"padding_mask": True, "gene_layers": 1},
    },
    "corruption": {"name": "mask_values", "ratio": 0.4},
    "train": {"epochs": 3, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu", "schedule": "restarts", "warmup": 3},
}

PRETRAIN = "import sys; from scgpt_tools.train import pretrain; pretrain(sys.argv[1], data=sys.argv[2])"

# Without a folder each process has a temporary one, and the largest loss makes the first epoch the best one.
FINETUNE = """
import os, pathlib, sys
import anndata
from scgpt_tools.train import finetune
from scgpt_tools.train.tasks import annotate

folder = pathlib.Path(sys.argv[2])
cells = anndata.read_h5ad(folder / "cells.h5ad")
looked, look = [], annotate.looked_at
annotate.looked_at = lambda *args, **options: looked.append(1) or look(*args, **options)
model = finetune(
    cells, folder / "alone", task="annotate", label_key="kind", epochs=2, batch_size=8, lr=1e-3, monitor="train_loss",
    mode="max", accelerator="cpu", devices=2, strategy="ddp",
)
(folder / f"checksum{os.environ['RANK']}").write_text(model.to("cpu").checksum)
kept = "reference_cells" in model.heads
(folder / f"after{os.environ['RANK']}").write_text(f"{len(looked)} {kept} {model.comparison.to_csv()}")
(folder / "losses").write_text(" ".join(map(str, model.history["train_loss"])))
"""

# What each process says at the end: which weights it has, and how many numbers of its copy it kept during training.
SHARDED = """
import os, pathlib, sys
import anndata
from lightning.pytorch.callbacks import Callback
from scgpt_tools.train import finetune

folder, name, until = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kept = set()

class Watch(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        kept.add(sum(part.to_local().numel() for part in pl_module.model.parameters()))
        if trainer.global_step == until:
            os._exit(9)

model = finetune(
    anndata.read_h5ad(folder / "cells.h5ad"), folder / "base", task="annotate", label_key="kind", epochs=2, batch_size=8,
    lr=1e-2, weight_decay=0.1, clip=0.1, accelerator="cpu", devices=2, strategy="fsdp", folder=folder / name,
    checkpoint_steps=2, resume=True, gradient_checkpointing=name == "again", callbacks=[Watch()], **eval(sys.argv[4])
)
whole = sum(part.numel() for part in model.parameters())
assert all(part < 0.6 * whole for part in kept), (kept, whole)
model.to("cpu").save(folder / f"{name}{os.environ['RANK']}")
"""


@pytest.fixture
def folder(tmp_path, make_cells) -> Path:
    cells = make_cells(80, seed=1)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.X = cells.X.log1p()
    cells.write_h5ad(tmp_path / "logged.h5ad")
    return tmp_path


def written(folder: Path, name: str, base: dict = CONFIG, **train) -> Path:
    """A configuration file whose output is a folder of its own."""
    path = folder / f"{name}.yaml"
    config = base | {"train": base["train"] | train, "output": str(folder / name)}
    path.write_text(yaml.safe_dump(config))
    return path


def start(*words: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()


@pytest.mark.slow
def test_kill_9_and_resume_end_where_an_uninterrupted_run_ends(folder):
    """The process is killed in the middle of an epoch, wherever it happens to be."""
    # Each in a process of its own: libraries that other tests load can change how a process rounds.
    finish(start("-c", PRETRAIN, str(written(folder, "whole", epochs=24, checkpoint_steps=2)), str(folder)))
    process = start("-c", PRETRAIN, str(written(folder, "killed", epochs=24, checkpoint_steps=2)), str(folder))
    history = folder / "killed" / "run" / "history.csv"
    try:
        deadline = time.monotonic() + 120
        while not (history.exists() and len(history.read_text().splitlines()) > 3):
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "killed" / "model.safetensors").exists()
    again = written(folder, "killed", epochs=24, checkpoint_steps=2, resume=True)
    finish(start("-c", PRETRAIN, str(again), str(folder)))
    assert len(pd.read_csv(history)) == 24
    whole, resumed = (load_file(folder / name / "model.safetensors") for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_minibatch(folder):
    """The same losses and weights within rounding, also for terms that compare cells of both processes.

    Both end with the same weights, also where they have no folder in common.
    """
    alone = pretrain(written(folder, "alone", batch_size=16), data=folder)
    config = written(folder, "shared", batch_size=8, devices=2, strategy="ddp")
    process = start(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python",
        sys.executable, "-c", PRETRAIN + FINETUNE, str(config), str(folder),
    )  # fmt: skip
    finish(process)
    first, second = (float(loss) for loss in (folder / "losses").read_text().split())
    assert first > second, "the best state is not the last one"
    assert (folder / "checksum0").read_text() == (folder / "checksum1").read_text()
    # One of them has looked at the cells for both.
    first, second = ((folder / f"after{rank}").read_text().split(" ", 1) for rank in (0, 1))
    assert (first[0], second[0]) == ("1", "0")
    assert first[1] == second[1]
    assert first[1].startswith("True method,accuracy")
    one, two = (pd.read_csv(folder / name / "run" / "history.csv") for name in ("alone", "shared"))
    columns = [name for name in one if name.startswith(("train_", "validation_"))]
    assert "train_contrastive_cells" in columns
    np.testing.assert_allclose(two[columns], one[columns], rtol=2e-4)
    shared = CellModel.from_pretrained(folder / "shared", device="cpu")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_two_processes_pretrain_two_streams_as_one(folder):
    alone = pretrain(written(folder, "alone", DEEPSC, batch_size=16), data=folder)
    config = written(folder, "shared", DEEPSC, batch_size=8, devices=2, strategy="ddp")
    finish(
        start(
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "--no-python",
            sys.executable,
            "-c",
            PRETRAIN,
            str(config),
            str(folder),
        )  # fmt: skip
    )
    one, two = (pd.read_csv(folder / name / "run" / "history.csv") for name in ("alone", "shared"))
    columns = ["train_loss", "train_masked_bins", "train_masked_expression"]
    np.testing.assert_allclose(two[columns], one[columns], rtol=2e-4)
    shared = CellModel.from_pretrained(folder / "shared", device="cpu")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_pretraining_two_streams_goes_on_where_it_was_killed(folder):
    finish(start("-c", PRETRAIN, str(written(folder, "whole", DEEPSC, epochs=16, checkpoint_steps=2)), str(folder)))
    process = start("-c", PRETRAIN, str(written(folder, "killed", DEEPSC, epochs=16, checkpoint_steps=2)), str(folder))
    history = folder / "killed" / "run" / "history.csv"
    try:
        deadline = time.monotonic() + 120
        while not (history.exists() and len(history.read_text().splitlines()) > 3):
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = written(folder, "killed", DEEPSC, epochs=16, checkpoint_steps=2, resume=True)
    finish(start("-c", PRETRAIN, str(again), str(folder)))
    whole, resumed = (load_file(folder / name / "model.safetensors") for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def in_two(folder: Path, name: str, *, until: int = 0, options: str = "{}") -> subprocess.Popen[bytes]:
    """Fine-tune with the weights cut between two processes; both end without a word after step ``until``."""
    return start(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python",
        sys.executable, "-c", SHARDED, str(folder), name, str(until), options,
    )  # fmt: skip


@pytest.mark.slow
def test_cut_weights_learn_what_whole_ones_learn(folder, make_model):
    """In one process with the doubled minibatch, in two with half of the weights each, and after an interruption."""
    make_model(dropout=0.0).save(folder / "base")
    cells = ad.read_h5ad(folder / "cells.h5ad")
    options = {"lr": 1e-2, "weight_decay": 0.1, "clip": 0.1, "accelerator": "cpu", "epochs": 2}
    alone = finetune(cells, folder / "base", task="annotate", label_key="kind", batch_size=16, **options)
    finish(in_two(folder, "whole"))
    interrupted = in_two(folder, "again", until=7)
    interrupted.communicate(timeout=300)
    assert interrupted.returncode != 0
    assert (folder / "again" / "last.ckpt").is_file()
    assert not (folder / "again0").exists()
    finish(in_two(folder, "again"))
    for name in ("whole0", "whole1", "again0", "again1"):
        tensors = load_file(folder / name / "model.safetensors")
        for key, tensor in alone.state_dict().items():
            # Attention does not depend on the bias of keys, so its gradient is rounding, which Adam makes whole steps of.
            if not key.endswith("attention.key.bias"):
                torch.testing.assert_close(tensors[key], tensor, atol=2e-4, rtol=1e-3, msg=f"{name} {key}")


@pytest.mark.slow
def test_frozen_parts_stay_with_cut_weights(folder, make_model):
    make_model(dropout=0.0).save(folder / "base")
    finish(in_two(folder, "frozen", options="{'freeze': 'backbone'}"))
    before, after = (load_file(folder / name / "model.safetensors") for name in ("base", "frozen0"))
    assert any(name.startswith("heads.") for name in after)
    for name, tensor in before.items():
        if not name.startswith("heads."):
            assert torch.equal(after[name], tensor), name


def test_gradual_unfreezing_does_not_go_with_cut_weights(cells, make_model):
    options = {"freeze": "backbone", "unfreeze_every": 1, "strategy": "fsdp"}
    with pytest.raises(ValueError, match="Expected `unfreeze_every` to be None with strategy='fsdp'"):
        finetune(cells, make_model(), task="annotate", label_key="kind", **options)


# Settings by name: a head that no loss reads (the causal model without bins), genes chosen by minibatch, classes drawn alike.
SIZES = {"dim": 16, "layers": 1, "heads": 2, "hidden": 16, "dropout": 0.0}
FAMILIES = {
    "dual": {"family": {"name": "scmodelforge", "pretraining_task": "dual", **SIZES}},
    "causal": {"family": {"name": "scmodelforge_causal", "pretraining_task": "next_gene", **SIZES}},
    "autoencoder": {
        "family": {"name": "scmodelforge_autoencoder", **SIZES},
        "data": {"minibatch_genes": {"n_genes": 12}, "sampling": "balanced", "label_key": "kind", "curriculum": 2},
    },
    "probed": {"family": {"name": "scmodelforge", **SIZES}, "evaluate": {"label_key": "kind"}},
}
TASKS = {
    "annotate": {"label_key": "kind"},
    "lora": {"label_key": "kind", "lora": 2},
    "frozen": {"label_key": "kind", "freeze": "backbone"},
    "released": {"label_key": "kind", "freeze": "backbone", "unfreeze_every": 1},
    "released at once": {"label_key": "kind", "freeze": "backbone", "unfreeze_after": 1},
}

SEVERAL = """
import json, os, pathlib, sys
import anndata
from scgpt_tools.train import finetune, pretrain

folder = pathlib.Path(sys.argv[1])
todo = json.loads((folder / "todo.json").read_text())
for config in todo["pretrain"]:
    pretrain(config, data=folder)
for name, options in todo["finetune"].items():
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    model = finetune(cells, folder / "base", task="annotate", **options)
    if os.environ.get("RANK", "0") == "0":
        model.to("cpu").save(folder / f"{name}-two")
"""


TUNED = """
import os, pathlib, sys
from scgpt_tools import cli
from scgpt_tools.models import CellModel

folder, save = pathlib.Path(sys.argv[1]), CellModel.save

def noted(self, place):
    with open(folder / "writers", "a") as file:
        file.write(os.environ["RANK"])
    return save(self, place)

CellModel.save = noted
raise SystemExit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_one_of_two_processes_writes_what_one_alone_would(folder, make_model):
    """By command line, and both end well."""
    make_model(dropout=0.0).save(folder / "base")
    words = [
        "finetune",
        str(folder / "cells.h5ad"),
        "--model",
        str(folder / "base"),
        "--label-key",
        "kind",
        "--epochs",
        "1",
    ]
    words += ["--accelerator", "cpu", "--validation", "0.2", "--lr", "1e-3"]
    assert cli.main([*words, "--batch-size", "16", "-o", str(folder / "one")]) == 0
    finish(
        start(
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python",
            sys.executable, "-c", TUNED, str(folder), *words, "--batch-size", "8", "-o", str(folder / "two"),
            "--devices", "2", "--strategy", "ddp",
        )
    )  # fmt: skip
    assert (folder / "writers").read_text() == "0"
    one, two = (CellModel.from_pretrained(folder / name, device="cpu").state_dict() for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=5e-4, rtol=2e-3, msg=key)
    histories = [pd.read_csv(folder / name / "history.csv") for name in ("one", "two")]
    np.testing.assert_allclose(*(table[["train_loss", "validation_loss"]] for table in histories), rtol=2e-4)


@pytest.mark.slow
def test_every_task_in_two_processes_is_that_of_one(folder, make_model):
    """Architectures without their unused heads, low-rank adapters, frozen and released parts: within rounding."""
    pytest.importorskip("peft", reason="the task with adapters needs peft")
    make_model(dropout=0.0).save(folder / "base")
    cells = ad.read_h5ad(folder / "cells.h5ad")
    train = {"epochs": 2, "lr": 1e-3, "accelerator": "cpu"}
    two = {"batch_size": 8, "devices": 2, "strategy": "ddp"}
    configs, alone = [], {}
    for name, sections in FAMILIES.items():
        data = {"paths": ["cells.h5ad"], "validation": 0.2} | sections.get("data", {})
        config = sections | {"data": data, "train": train | {"batch_size": 16}}
        alone[name] = pretrain(config, data=folder, output=folder / f"{name}-one")
        configs.append(config | {"train": train | two, "output": str(folder / f"{name}-two")})
    options = {name: {**task, **train, "validation": 0.2} for name, task in TASKS.items()}
    for name, task in options.items():
        alone[name] = finetune(cells, folder / "base", task="annotate", batch_size=16, **task)
    todo = {"pretrain": configs, "finetune": {name: task | two for name, task in options.items()}}
    (folder / "todo.json").write_text(json.dumps(todo))
    finish(
        start(
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python",
            sys.executable, "-c", SEVERAL, str(folder),
        )
    )  # fmt: skip
    base = CellModel.from_pretrained(folder / "base", device="cpu").state_dict()
    for name, model in alone.items():
        shared = CellModel.from_pretrained(folder / f"{name}-two", device="cpu").state_dict()
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(shared[key], tensor, atol=5e-4, rtol=2e-3, msg=f"{name} {key}")
    for name in ("lora", "released", "released at once"):
        moved = alone[name].state_dict()
        assert any(not torch.equal(moved[key], base[key]) for key in base if "attention" in key), name
    probed = pd.read_csv(folder / "probed-two" / "run" / "history.csv")
    assert probed["validation_probe_accuracy"].notna().all()
