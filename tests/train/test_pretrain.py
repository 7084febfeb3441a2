"""Pre-training from a file of settings and files of cells."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import lightning
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
import zarr

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.train import fit
from scgpt_tools.train.collection import DataConfig, find_files, open_collection
from scgpt_tools.train.pretrain import PretrainConfig, describe, new_model, pretrain, read_config

CONFIG = {
    "data": {"paths": ["*.h5ad", "second.zarr"], "batch_key": "batch", "validation": 0.1, "test": 0.2},
    "family": {"dim": 16, "layers": 1, "heads": 2, "hidden": 16, "dropout": 0.1},
    "tokenizer": {"length": 20},
    "corruption": {"name": "generate_values", "ratio": 0.4},
    "objectives": [
        {"name": "masked_expression"},
        {"name": "masked_expression_from_cell"},
        {"name": "regenerated_expression", "from_step": 2},
    ],
    "train": {"epochs": 2, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"},
}


@pytest.fixture
def folder(tmp_path, make_cells) -> Path:
    """Two files with overlapping genes, in two formats."""
    data = tmp_path / "data"
    data.mkdir()
    make_cells(50, seed=1).write_h5ad(data / "first.h5ad")
    second = make_cells(40, seed=2, prefix="other")[:, 4:].copy()
    second.var_names = [*second.var_names[:-1], "NEW"]
    ad.io.write_elem(zarr.open_group(data / "second.zarr", mode="w", zarr_format=2), "/", second)
    return data


def changed(**sections) -> dict:
    return {name: CONFIG[name] | sections.get(name, {}) if isinstance(CONFIG[name], dict) else sections.get(name, CONFIG[name])
            for name in CONFIG}  # fmt: skip


def weights(model):
    return model.state_dict()


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_yaml_file_becomes_a_model(folder, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    model = pretrain(path, data=folder, output=tmp_path / "out")
    assert not model.training
    assert model.name == "out"
    assert len(model.history) == 2
    assert "trained from scratch for 2 epochs" in repr(model)
    read = CellModel.from_pretrained(tmp_path / "out", device="cpu")
    assert_same(weights(read), weights(model))
    assert "generation" in read.config.embedder.parts
    assert read.config.tokenizer.length == 20
    history = pd.read_csv(tmp_path / "out" / "run" / "history.csv")
    assert len(history) == 2
    assert "validation_regenerated_expression" in history
    assert {"GENE0", "NEW", "<cls>"} <= set(read.vocabulary.tokens)


def test_the_same_settings_give_the_same_model(folder, tmp_path):
    first, second = (pretrain(CONFIG, data=folder, output=tmp_path / name) for name in ("a", "b"))
    assert_same(weights(first), weights(second))
    other = pretrain(changed(train={"rng": 1}), data=folder, output=tmp_path / "c")
    assert any(not torch.equal(weights(first)[name], weights(other)[name]) for name in weights(first))


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def test_a_run_goes_on(folder, tmp_path, monkeypatch):
    class Interrupt(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                raise Interrupted

    def cut(*arguments, **options):
        return fit(*arguments, **options | {"callbacks": [Interrupt()]})

    config = changed(train={"checkpoint_steps": 2})
    whole = pretrain(config, data=folder, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(import_module("scgpt_tools.train.pretrain"), "fit", cut)
        with pytest.raises(Interrupted):
            pretrain(config, data=folder, output=tmp_path / "cut")
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = pretrain(changed(train={"checkpoint_steps": 2, "resume": True}), data=folder, output=tmp_path / "cut")
    assert_same(weights(resumed), weights(whole))


@pytest.mark.parametrize("corruption", ["mask_values", "generate_expression"])
def test_corruptions_by_name(corruption, folder, tmp_path):
    objectives = [{"name": "masked_expression"}, {"name": "masked_expression_from_cell"}]
    config = {**CONFIG, "corruption": {"name": corruption}, "objectives": objectives}
    model = pretrain(config, data=folder, output=tmp_path / "out")
    assert ("generation" in model.config.embedder.parts) == (corruption != "mask_values")
    assert model.config.tokenizer.genes == "expressed"


@pytest.mark.parametrize("sampling", ["blocks", "one_batch"])
def test_files_are_read_in_every_way(sampling, folder, tmp_path):
    config = changed(data={"sampling": sampling, "block": 8, "blocks": 2}, train={"epochs": 1, "workers": 1})
    assert pretrain(config, data=folder, output=tmp_path / "out").checksum


def test_a_vocabulary_can_be_given(folder, tmp_path, tiny_vocabulary):
    tiny_vocabulary.save(folder / "vocab.json")
    model = pretrain({**CONFIG, "vocabulary": {"path": "vocab.json"}}, data=folder, output=tmp_path / "out")
    assert model.vocabulary == tiny_vocabulary


def test_genes_are_counted_in_training_cells(folder):
    config = from_dict(DataConfig, CONFIG["data"])
    with open_collection(config, folder) as collection:
        counts = collection.count_cells()
        for gene in ("GENE0", "GENE7", "NEW"):
            expressing = measured = 0
            for number, source in enumerate(collection.sources):
                if gene in source.var.index:
                    train = collection.of_source(number) == "train"
                    X = source.take(np.flatnonzero(train)).toarray()
                    expressing += int((X[:, source.var.index.get_loc(gene)] > 0).sum())
                    measured += int(train.sum())
            assert counts.loc[gene].to_dict() == {"expressing": expressing, "measured": measured}


def test_rare_genes_are_left_out(folder, tmp_path):
    with pytest.raises(ValueError, match="at least 1000 training cells"):
        pretrain({**CONFIG, "vocabulary": {"min_cells": 1000}}, data=folder, output=tmp_path / "out")


def test_test_cells_are_never_seen(folder, tmp_path):
    """The model is the same whatever the test cells hold."""
    config = from_dict(DataConfig, CONFIG["data"])
    with open_collection(config, folder) as collection:
        held = {number: collection.of_source(number) == "test" for number in range(2)}
    assert [int(part.sum()) for part in held.values()] == [10, 8]
    before = pretrain(CONFIG, data=folder, output=tmp_path / "before")
    first = ad.read_h5ad(folder / "first.h5ad")
    X = first.X.tolil()
    X[np.flatnonzero(held[0])] = 1.0
    first.X = X.tocsr()
    first.write_h5ad(folder / "first.h5ad")
    assert_same(weights(pretrain(CONFIG, data=folder, output=tmp_path / "after")), weights(before))


def test_weights_begin_from_the_seed(tiny_vocabulary):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second = (new_model(read_config(CONFIG), tiny_vocabulary) for _ in range(2))
    assert_same(weights(first), weights(second))
    assert torch.equal(torch.rand(2), expected)


def test_gain_scales_what_attention_passes_on(tiny_vocabulary):
    plain, loud = (
        weights(new_model(read_config(changed(family={"gain": gain})), tiny_vocabulary)) for gain in (1.0, 3.0)
    )
    for name in plain:
        scaled = name.endswith(("attention.value.weight", "attention.out.weight"))
        torch.testing.assert_close(loud[name], plain[name] * (3.0 if scaled else 1.0), msg=name)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("train", {"epoch": 3}, "epochs"),
        ("data", {"path": ["a"]}, "paths"),
        ("data", {"paths": []}, "at least one"),
        ("data", {"validation": 0.6, "test": 0.5}, "validation"),
        ("family", {"dims": 3}, "dim"),
        ("family", {"gain": 0.0}, "gain"),
        ("family", {"name": "scgpd"}, "Did you mean 'scgpt'"),
        ("family", {"name": "scgpt_perturbation"}, "loss terms for pre-training, found 'scgpt_perturbation'"),
        ("corruption", {"name": "mask_value"}, "mask_values"),
        ("corruption", {"name": "mask_values", "ratios": 1}, "ratio"),
        ("objectives", [{"name": "masked"}], "masked_expression"),
        ("tokenizer", {"bin": 3}, "bins"),
    ],
)
def test_wrong_settings_are_refused_with_the_right_ones(section, change, message):
    config = CONFIG | {section: change if section in ("objectives", "corruption") else CONFIG[section] | change}
    with pytest.raises(ValueError, match=message):
        read_config(config)


def test_unknown_sections_are_refused():
    with pytest.raises(ValueError, match="corruption"):
        read_config(CONFIG | {"corrupton": {}})


def test_settings_survive_a_round_trip():
    config = read_config(CONFIG)
    assert read_config(json.loads(json.dumps(to_dict(config)))) == config
    assert read_config(config) is config


def test_a_model_is_replaced_only_when_that_is_allowed(folder, tmp_path):
    first = pretrain(CONFIG, data=folder, output=tmp_path / "out")
    other = changed(train={"epochs": 1, "rng": 1})
    with pytest.raises(FileExistsError, match="without a model, found one in"):
        pretrain(other, data=folder, output=tmp_path / "out")
    fresh = changed(train={"resume": True, "folder": str(tmp_path / "elsewhere")})
    with pytest.raises(FileExistsError, match="without a model"):
        pretrain(fresh, data=folder, output=tmp_path / "out")
    assert_same(weights(CellModel.from_pretrained(tmp_path / "out", device="cpu")), weights(first))
    second = pretrain(other, data=folder, output=tmp_path / "out", overwrite=True)
    assert_same(weights(CellModel.from_pretrained(tmp_path / "out", device="cpu")), weights(second))


def test_outputs_that_cannot_be_written_are_seen_first(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/inner"):
        with pytest.raises((FileExistsError, NotADirectoryError), match="found the file|found a file"):
            pretrain(CONFIG, data=folder, output=tmp_path / place)
    (tmp_path / "scgpt").mkdir()
    for name in ("args.json", "vocab.json"):
        (tmp_path / "scgpt" / name).write_text("{}")
    torch.save({}, tmp_path / "scgpt" / "best_model.pt")
    with pytest.raises((ValueError, FileExistsError), match="Expected a folder for"):
        pretrain(CONFIG, data=folder, output=tmp_path / "scgpt", overwrite=True)
    monkeypatch.setattr("scgpt_tools._outputs.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="Expected room for"):
        pretrain(CONFIG, data=folder, output=tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_two_runs_do_not_share_a_folder(folder, tmp_path, monkeypatch):
    module = import_module("scgpt_tools.train.pretrain")

    class Another(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            with monkeypatch.context() as patch, pytest.raises(FileExistsError, match=r"process \d+ on .* is writing"):
                patch.setattr(module, "fit", fit)
                pretrain(CONFIG, data=folder, output=tmp_path / "out")

    monkeypatch.setattr(
        module, "fit", lambda *arguments, **options: fit(*arguments, **options | {"callbacks": [Another()]})
    )
    pretrain(CONFIG, data=folder, output=tmp_path / "out")
    assert not list((tmp_path / "out" / "run").glob(".*"))


def test_paths_in_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = changed(data={"paths": ["~/data/first.h5ad"]}, train={"epochs": 1, "folder": "~/run"})
    pretrain(config, output="~/out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match="absent"):
        pretrain(changed(data={"paths": ["absent.h5ad"]}), data=folder)
    assert [path.name for path in find_files(["*.h5ad", "first.h5ad"], folder)] == ["first.h5ad"]
    assert find_files([str(folder / "*.zarr")], Path("elsewhere")) == [folder / "second.zarr"]


def test_a_missing_batch_column_is_named(folder):
    with pytest.raises(KeyError, match="donor"):
        pretrain(changed(data={"batch_key": "donor"}), data=folder)


def test_defaults_are_the_originals(tiny_vocabulary):
    config = PretrainConfig(data=DataConfig(paths=("cells.h5ad",)))
    model = describe(config, tiny_vocabulary)
    assert (model.dim, model.encoder.layers, model.encoder.heads) == (512, 12, 8)
    assert (model.tokenizer.bins, model.tokenizer.length) == (51, 1200)
    assert [term.name for term in config.terms] == ["masked_expression", "masked_expression_from_cell"]


def test_the_model_embeds_afterwards(folder, tmp_path):
    model = pretrain(CONFIG, data=folder, output=tmp_path / "out")
    cells = ad.read_h5ad(folder / "first.h5ad")
    features = FeatureTable.from_var(cells.var, model.vocabulary)
    batch = model.tokenizer(cells.X, features, np.arange(cells.n_obs, dtype=np.uint64))
    with torch.no_grad():
        assert model.embed_cells(batch).shape == (50, 16)


def test_a_run_goes_on_with_its_own_files_only(folder, tmp_path):
    """Cells of other values under the same names are another question."""
    pretrain(CONFIG, data=folder, output=tmp_path / "out")
    with pytest.raises(ValueError, match="^Expected to resume the run in .* settings.lr 0.001, found 0.01"):
        pretrain(changed(train={"resume": True, "lr": 1e-2}), data=folder, output=tmp_path / "out")
    with pytest.raises(ValueError, match="objectives.masked_expression.loss 'mse', found 'huber'"):
        terms = [{"name": "masked_expression", "loss": "huber"}, {"name": "masked_expression_from_cell"}]
        pretrain(changed(train={"resume": True}) | {"objectives": terms}, data=folder, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("data", {"validation": 1.0}), ("data", {"validation": -0.1, "test": 0.2}), ("data", {"block": 0}),
        ("data", {"sampling": "some"}), ("data", {"rng": 1.5}), ("family", {"dim": 0}),
        ("family", {"dropout": 1.0}), ("family", {"gain": 0}), ("vocabulary", {"min_coverage": 2.0}),
        ("vocabulary", {"min_cells": 0}), ("train", {"epochs": 0}), ("train", {"schedule": "triangle"}),
    ],
)  # fmt: skip
def test_every_setting_is_checked(part, options):
    with pytest.raises((TypeError, ValueError), match="^Expected "):
        read_config(CONFIG | {part: CONFIG.get(part, {}) | options})
