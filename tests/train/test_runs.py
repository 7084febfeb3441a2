"""A run goes on with the question that it began with, and with nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools import pp
from scgpt_tools.objectives import CellType, MaskedExpression, MaskedExpressionFromCell
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.train import FitConfig, fit
from scgpt_tools.train.runs import RUN
from screen_tables import screen

BOTH = (MaskedExpression(), MaskedExpressionFromCell())
QUICK = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"}


@pytest.fixture
def base(make_model):
    return make_model(dropout=0.0).eval()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], tensor) for name, tensor in second.items())


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what a run is ------------------------------------------------------------------------------------------------


@pytest.fixture
def annotate(base, cells):
    def run(folder, *, change=None, model=None, **options):
        table = cells.copy()
        if change is not None:
            table = change(table) or table
        return sct.train.finetune(
            table, model or base, task="annotate", folder=folder, **{"label_key": "kind"} | QUICK | options
        )

    return run


class Cut(lightning.Callback):
    """Ends a run before its first minibatch."""

    def on_train_start(self, trainer, pl_module):
        raise RuntimeError("cut off")


def test_no_run_begins_in_the_folder_of_a_model(annotate, base, tmp_path):
    base.save(tmp_path / "model")
    before = files(tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"found model\.safetensors alone"):
        annotate(tmp_path / "model")
    assert files(tmp_path / "model") == before


def test_weights_of_a_finished_run_never_lie_beside_settings_of_another(annotate, tmp_path, caplog):
    annotate(tmp_path).save(tmp_path)
    with pytest.raises(RuntimeError, match="cut off"):
        annotate(tmp_path, callbacks=[Cut()])
    assert "model.safetensors, last.ckpt, best.ckpt, history.csv of an earlier one are removed" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"Expected the folder .* to hold config\.json"):
        sct.CellModel.from_pretrained(tmp_path, device="cpu")


def test_a_run_that_goes_on_keeps_the_weights_that_it_has_written(annotate, tmp_path):
    tuned = annotate(tmp_path, epochs=1)
    tuned.save(tmp_path)
    with pytest.raises(RuntimeError, match="cut off"):
        annotate(tmp_path, epochs=2, resume=True, callbacks=[Cut()])
    assert sct.CellModel.from_pretrained(tmp_path, device="cpu").checksum == tuned.checksum


def renamed(table):
    table.obs["kind"] = table.obs["kind"].cat.rename_categories({"even": "straight", "odd": "crooked"})


def swapped(table):
    table.obs["kind"] = np.where(table.obs["kind"] == "even", "odd", "even")


def third(table):
    table.obs["kind"] = np.where(np.arange(table.n_obs) < 20, "third", table.obs["kind"].astype(str))


def normalised(table):
    table.X = table.X.log1p()


def moved_columns(table):
    return table[:, ::-1].copy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"as it began, with classes \['even', 'odd'\], found \['crooked', 'straight'\]"),
        (third, r"classes \['even', 'odd'\], found \['even', 'odd', 'third'\]"),
        (swapped, "label of each cell"),
        (normalised, "values"),
        (moved_columns, "genes.tokens"),
        (lambda table: table[:50].copy(), r"cells.number 60, found 50"),
        (lambda table: table[::-1].copy(), "cells.names"),
    ],
    ids=["renamed", "third", "swapped", "normalised", "columns", "fewer", "order"],
)
def test_other_labels_or_cells_are_refused_by_name(annotate, tmp_path, change, message):
    annotate(tmp_path)
    before = files(tmp_path)
    for epochs in (1, 2):
        with pytest.raises(ValueError, match=f"^Expected to resume the run in .*{message}") as caught:
            annotate(tmp_path, change=change, resume=True, epochs=epochs)
        assert "Begin in another folder" in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "integrate", "batch_key": "batch"}, "task 'annotate', found 'integrate'"),
        ({"validation": 0.3}, "training cells"),
        ({"freeze": "backbone"}, "freeze 'nothing', found 'backbone'"),
        ({"dropout": 0.2}, "network.encoder.dropout 0.0, found 0.2"),
        ({"tokenizer": {"length": 12}}, "tokenizer.length 1200, found 12"),
        ({"sampling": "balanced"}, "sampling 'random', found 'balanced'"),
        ({"objectives": [CellType(weight=2.0)]}, "objectives.cell_type.weight 1.0, found 2.0"),
        ({"objectives": [CellType(), MaskedExpression()]}, "objectives.masked_expression"),
        ({"lr": 1e-4}, "settings.lr 0.001, found 0.0001"),
        ({"schedule": "constant"}, "settings.schedule 'step', found 'constant'"),
        ({"batch_size": 8}, "settings.batch_size 16, found 8"),
        ({"rng": 3}, "rng 0, found 3"),
        ({"clip": None}, "settings.clip 1.0, found None"),
        ({"monitor": "validation_accuracy", "mode": "max"}, "settings.mode 'min', found 'max'"),
    ],
    ids=str,
)
def test_another_question_is_refused_by_name(annotate, base, cells, tmp_path, options, message):
    annotate(tmp_path)
    options = dict(options)
    task = options.pop("task", "annotate")
    options = {"label_key": "kind"} | QUICK | options
    with pytest.raises(ValueError, match="^Expected to resume the run in ") as caught:
        sct.train.finetune(cells, base, task=task, folder=tmp_path, resume=True, **options)
    assert message in str(caught.value)


def test_another_model_to_start_from_is_refused(annotate, make_model, tmp_path):
    annotate(tmp_path)
    with pytest.raises(ValueError, match="^Expected to resume the run in .* base [0-9a-f]{12}..., found [0-9a-f]{12}"):
        annotate(tmp_path, model=make_model(seed=1, dropout=0.0), resume=True)


def test_other_batches_are_refused(base, cells, tmp_path):
    how = QUICK | {"task": "integrate", "batch_key": "batch", "folder": tmp_path}
    sct.train.finetune(cells, base, **how)
    cells.obs["batch"] = cells.obs["batch"].cat.rename_categories({"a": "first", "b": "second"})
    with pytest.raises(ValueError, match=r"batches \['a', 'b'\], found \['first', 'second'\]"):
        sct.train.finetune(cells, base, resume=True, **how)


def test_other_conditions_are_refused(tmp_path):
    from scgpt_tools.models import FAMILIES, CellModel
    from scgpt_tools.vocabulary import Vocabulary

    cells = screen(12)
    pp.perturbation_split(cells, draw="stable")
    vocabulary = Vocabulary.from_genes(cells.var_names)
    model = CellModel(FAMILIES["scgpt"](vocabulary, dim=16, layers=1, heads=2, hidden=16), vocabulary)
    how = QUICK | {"task": "perturb", "folder": str(tmp_path)}
    first = sct.train.finetune(cells, model, **how)
    assert same(state(first), state(sct.train.finetune(cells, model, resume=True, **how)))
    for change, name in (({"validation": 0.2}, "training conditions"), ({"length": 5}, "tokenizer.length")):
        with pytest.raises(ValueError, match=f"as it began, with {name}"):
            sct.train.finetune(cells, model, resume=True, **how | change)


def test_screens_of_the_version_before_count(tmp_path):
    """How their genes were read stood beside the tokenizer, which had fewer settings."""
    from scgpt_tools.models import FAMILIES, CellModel
    from scgpt_tools.vocabulary import Vocabulary

    cells = screen(12)
    pp.perturbation_split(cells, draw="stable")
    vocabulary = Vocabulary.from_genes(cells.var_names)
    model = CellModel(FAMILIES["scgpt"](vocabulary, dim=16, layers=1, heads=2, hidden=16), vocabulary)
    how = QUICK | {"task": "perturb", "folder": tmp_path, "unknown": "pad", "gene_sampling": "original", "length": 9}
    first = sct.train.finetune(cells, model, **how)
    record = json.loads((tmp_path / RUN).read_text())
    asked = record["asked"] = record.pop("description")
    del asked["unfreeze_every"]
    asked["settings"]["seed"] = asked["settings"].pop("rng")
    for name in ("unknown", "unmeasured"):
        del asked["tokenizer"][name]
    asked["tokenizer"] |= {"genes": "all", "length": None, "overflow": "sample"}
    asked["genes of a cell"] = {
        "include": "all", "unknown": "pad", "unmeasured": "error", "length": 9, "sampling": "original",
        "flag": asked["flag"],
    }  # fmt: skip
    (tmp_path / RUN).write_text(json.dumps(record))
    assert same(state(first), state(sct.train.finetune(cells, model, resume=True, **how)))
    with pytest.raises(ValueError, match="tokenizer.unknown 'pad', found 'drop'"):
        sct.train.finetune(cells, model, resume=True, **how | {"unknown": "drop"})


def test_what_may_change_when_a_run_goes_on(annotate, tmp_path):
    annotate(tmp_path / "cut")
    longer = {"epochs": 2, "patience": 5, "workers": 1, "checkpoint_steps": 3, "gradient_checkpointing": True}
    went_on = annotate(str(tmp_path / "cut"), resume=True, **longer)
    whole = annotate(tmp_path / "whole", epochs=2)
    assert same(state(went_on), state(whole))
    assert list(went_on.history.index) == [0, 1]


@pytest.mark.parametrize("longer_first", [False, True])
def test_a_run_keeps_its_schedule_whoever_says_how_long_it_is(base, cells, tmp_path, monkeypatch, longer_first):
    """Annotation chooses by the number of cells how often its rate falls, where nobody says how long it learns."""
    monkeypatch.setattr("scgpt_tools.train.pacing.PATIENCE", 9)
    monkeypatch.setattr("scgpt_tools.train.pacing.MOST", 12)
    how = {
        "task": "annotate",
        "label_key": "kind",
        "accelerator": "cpu",
        "batch_size": 16,
        "compare": False,
        "lr": 1e-2,
    }
    lengths = [{"epochs": 2}, {"patience": 20}] if longer_first else [{}, {"epochs": 12}]
    for length in lengths:
        went_on = sct.train.finetune(cells, base, folder=tmp_path / "cut", resume=True, **how, **length)
    step_epochs = 1 if longer_first else 3
    whole = sct.train.finetune(cells, base, epochs=len(went_on.history), step_epochs=step_epochs, **how)
    assert len(whole.history) == (10 if longer_first else 12)
    assert same(state(went_on), state(whole))


def test_the_same_question_gets_the_same_answer(annotate, tmp_path):
    first = annotate(tmp_path)
    again = annotate(tmp_path, resume=True)
    assert same(state(first), state(again))
    assert again.config.heads.cell_type.names == ("even", "odd")


def test_fewer_epochs_than_a_run_has_made_are_refused(annotate, tmp_path):
    annotate(tmp_path, epochs=3)
    with pytest.raises(ValueError, match="Expected `epochs` to be at least the 3 that the run in .* has made, found 1"):
        annotate(tmp_path, resume=True, epochs=1)


def test_the_description_can_be_read(annotate, tmp_path):
    annotate(tmp_path)
    description = json.loads((tmp_path / RUN).read_text())["description"]
    assert description["task"] == "annotate"
    assert description["classes"] == ["even", "odd"]
    assert description["cells"]["number"] == 60
    assert description["objectives"]["cell_type"]["weight"] == 1.0
    assert description["settings"]["lr"] == 1e-3
    assert "epochs" not in description["settings"]


def test_a_caller_of_fit_can_add_to_the_description(make_model, make_data, tmp_path):
    how = FitConfig(**QUICK, folder=tmp_path)
    fit(make_model(), make_data(), BOTH, how, description={"project": "liver"})
    with pytest.raises(ValueError, match="project 'liver', found 'lung'"):
        fit(make_model(), make_data(), BOTH, replace(how, resume=True), description={"project": "lung"})
    with pytest.raises(ValueError, match="hidden.ratio 0.4, found 0.2"):
        data = make_data(corruption=replace(make_data().corruption, ratio=0.2))
        fit(make_model(), data, BOTH, replace(how, resume=True), description={"project": "liver"})
    with pytest.raises(ValueError, match="hidden.name 'generate_values', found 'mask_values'"):
        data = make_data(corruption=MaskValues(ratio=0.4))
        fit(make_model(), data, BOTH, replace(how, resume=True), description={"project": "liver"})


def test_records_of_the_version_before_count(make_model, make_data, tmp_path):
    """They name the class of a corruption, and know fewer settings of it."""
    how = FitConfig(**QUICK, folder=tmp_path)
    fit(make_model(), make_data(), BOTH, how)
    record = json.loads((tmp_path / RUN).read_text())
    record["asked"] = record.pop("description")
    record["asked"]["settings"]["seed"] = record["asked"]["settings"].pop("rng")
    term = record["asked"]["objectives"]["masked_expression_from_cell"]
    term["shown"] = term.pop("visible")
    hidden = record["asked"]["hidden"]
    hidden["name"] = "GenerateValues"
    record["asked"]["hidden"] = {name: value for name, value in hidden.items() if value is not None}
    (tmp_path / RUN).write_text(json.dumps(record))
    fit(make_model(), make_data(), BOTH, replace(how, resume=True))


def test_a_run_that_the_version_before_began_goes_on(annotate, tmp_path):
    """It lacks settings that came later, which have their defaults; ``earlier`` holds what that version wrote.

    That version held out a tenth however few the cells.
    """
    annotate(tmp_path, validation=0.1)
    record = json.loads((Path(__file__).parent / "earlier" / RUN).read_text())
    assert "decayed" not in record["asked"]["settings"]
    now = json.loads((tmp_path / RUN).read_text())
    # Checkpoints have the number of their run, and weights depend on the machine.
    record["scgpt_tools_run"] = now["scgpt_tools_run"]
    record["asked"] |= {name: now["description"][name] for name in ("base", "starting weights")}
    (tmp_path / RUN).write_text(json.dumps(record))
    annotate(tmp_path, resume=True, validation=0.1, **QUICK | {"epochs": 2})
    with pytest.raises(ValueError, match="settings.decoupled True, found False"):
        annotate(tmp_path, resume=True, validation=0.1, decoupled=False)


def test_a_model_trained_in_place_goes_on_in_its_folder(make_model, make_data, tmp_path):
    """Its weights are not those that the run began with any more."""
    model, how = make_model(), FitConfig(**QUICK, folder=tmp_path / "run")
    fit(model, make_data(), BOTH, how)
    fit(model, make_data(), BOTH, replace(how, resume=True, epochs=2))
    assert same(state(model), state(fit(make_model(), make_data(), BOTH, FitConfig(**QUICK | {"epochs": 2}))))
    with pytest.raises(ValueError, match="starting weights"):
        fit(make_model(seed=1), make_data(), BOTH, replace(how, resume=True, epochs=2))


def test_a_moved_folder_goes_on(annotate, tmp_path, monkeypatch):
    annotate(tmp_path / "run", epochs=2)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    again = annotate("moved", resume=True, epochs=3)
    assert same(state(again), state(annotate(tmp_path / "whole", epochs=3)))


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_new_run_does_not_mix_with_an_earlier_one(annotate, tmp_path):
    annotate(tmp_path, epochs=2)

    class Stop(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        annotate(tmp_path, change=renamed, callbacks=[Stop()])
    # What the model is stands there from the start, and no state yet.
    assert set(files(tmp_path)) == {RUN, "config.json", "vocab.json"}
    # Nothing was kept of the new run, so it begins; the earlier one is gone.
    model = annotate(tmp_path, change=renamed, resume=True)
    assert model.config.heads.cell_type.names == ("crooked", "straight")
    assert list(model.history.index) == [0]


def test_checkpoints_of_others_are_not_replaced(annotate, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"of somebody else")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="Expected a folder without checkpoints"):
        annotate(tmp_path)
    assert files(tmp_path) == before


def test_a_run_without_a_description_is_refused(annotate, tmp_path):
    annotate(tmp_path)
    (tmp_path / RUN).unlink()
    with pytest.raises(FileNotFoundError, match="Expected run.json beside the checkpoints"):
        annotate(tmp_path, resume=True)
    (tmp_path / RUN).write_text("{")
    for resume in (True, False):
        with pytest.raises(ValueError, match="to describe a run of this package, found another or a damaged file"):
            annotate(tmp_path, resume=resume)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a file was run')",))


def _pickled(path):
    torch.save({"state_dict": {}, "callbacks": {"mine": Evil()}}, path)


def _with_nan(path):
    written = torch.load(path, weights_only=True)
    next(iter(written["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(written, path)


def _other_run(path):
    written = torch.load(path, weights_only=True)
    torch.save(written | {"run": "another"}, path)


DAMAGE = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        "to hold the state of a run, found a damaged file",
    ),
    "empty": (lambda path: path.write_bytes(b""), "to hold the state of a run, found a damaged file"),
    "text": (lambda path: path.write_text("hello"), "to hold the state of a run, found a damaged file"),
    "pickled": (_pickled, "to hold tensors and plain values only, found exec"),
    "tensor": (
        lambda path: torch.save(torch.ones(3), path),
        "to hold the state of a run, found something else, without",
    ),
    "other": (
        lambda path: torch.save({"state_dict": {}}, path),
        "to hold the state of a run, found something else, without '",
    ),
    "nan": (_with_nan, "finite weights in .*, found NaN or infinity in 1 tensors"),
    "run": (_other_run, "found one of another run"),
}


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_checkpoints_are_refused(annotate, tmp_path, name, damage, message):
    annotate(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=f"^Expected .*{message}"):
        annotate(tmp_path, resume=True)


def test_a_best_checkpoint_that_is_gone_is_named(annotate, tmp_path):
    annotate(tmp_path)
    (tmp_path / "best.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="Expected the checkpoint .*best.ckpt, found none"):
        annotate(tmp_path, resume=True)


def test_state_of_callbacks_that_is_no_plain_value_is_named(annotate, tmp_path):
    class Keeps(lightning.Callback):
        def state_dict(self):
            return {"last": Evil()}

    annotate(tmp_path, callbacks=[Keeps()])
    with pytest.raises(ValueError, match="If it is the state of a callback, let that keep numbers"):
        annotate(tmp_path, resume=True)
