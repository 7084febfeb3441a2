"""Every key that a file of pre-training settings may have changes something: what is read, learnt or written.

For each key of the schema there is a row with another value.  Settings of training are watched in a run, all others in the
cells, tokens, first weights and first losses that training would begin with.  A key without a row fails.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import lightning
import numpy as np
import pandas as pd
import pytest
import torch

from scgpt_tools.config import OneOf
from scgpt_tools.models import FAMILIES
from scgpt_tools.objectives import OBJECTIVES
from scgpt_tools.tokens.corruptions import CORRUPTIONS
from scgpt_tools.train.fit import FitConfig
from scgpt_tools.train.loggers import LoggerConfig
from scgpt_tools.train.module import run_views
from scgpt_tools.train.pretrain import PretrainConfig, pretrain

SIZES = {"dim": 8, "layers": 2, "heads": 2, "hidden": 8, "dropout": 0.1}
BASE = {
    "data": {"paths": ["cells.h5ad"], "validation": 0.2},
    "family": {"name": "scmodelforge", **SIZES},
    "train": {"epochs": 1, "batch_size": 16, "accelerator": "cpu", "lr": 1e-2},
}
SCGPT = {"family": {"name": "scgpt", **SIZES}}
CAUSAL = {"family": {"name": "scmodelforge_causal", **SIZES}}
AUTOENCODER = {"family": {"name": "scmodelforge_autoencoder", **SIZES}}
RAW = {"values": "raw", "bins": None, "length": None}
PLAIN = SCGPT | {"tokenizer": RAW}
BALANCED = {"data": {"sampling": "balanced", "label_key": "kind"}}
BLOCKS = {"data": {"sampling": "blocks", "block": 4, "blocks": 2}}
FROM_CELL = {"name": "masked_expression_from_cell"}
GENERATED = SCGPT | {"corruption": {"name": "generate_values"}}
EXPRESSION = SCGPT | {"corruption": {"name": "generate_expression", "visible": 8, "expressed": 4, "unexpressed": 4}}
WITH_BINS = {"tokenizer": {**RAW, "edges": [0, 1, 2, 4, 8, 20], "positions": True, "cls_value": 0, "pad_value": 0}}
MASKED_VALUES = {"family": BASE["family"] | {"pretraining_task": "expression_reconstruction"}, **WITH_BINS}
HUBER = {"objectives": [{"name": "masked_expression", "loss": "huber"}, FROM_CELL]}

# Other values by key, and what else has to be set for the key to mean something.
DOWNSAMPLED = {
    "family": AUTOENCODER["family"] | {"pretraining_task": "read_depth"},
    "corruption": {"name": "mask_downsampled", "least": 0},
}
ROWS: dict[str, Any] = {
    "data.paths": (["*.h5ad"], {}),
    "data.layer": ("doubled", PLAIN),
    "data.genes": ("symbol", {}),
    "data.orthologs.of": ("rat", {"data": {"orthologs": {}}}),
    "data.orthologs.table": ("table.tsv", {"data": {"orthologs": {}}}),
    "data.orthologs.one_to_many": (True, {"data": {"orthologs": {}}}),
    "data.label_key": ("batch", BALANCED),
    "data.batch_key": ("kind", {"data": {"sampling": "one_batch", "batch_key": "batch"}}),
    "data.modality": ("rna", {}),
    "data.validation": (0.4, {}),
    "data.test": (0.3, {}),
    "data.rng": (1, {}),
    "data.sampling": ("blocks", {"data": {"block": 4, "blocks": 2}}),
    "data.curriculum": (3, BALANCED),
    "data.replacement": (False, BALANCED),
    "data.minibatch_genes.n_genes": (3, {"data": {"minibatch_genes": {"n_genes": 6}}}),
    "data.minibatch_genes.how": ("random_expressed", {"data": {"minibatch_genes": {"n_genes": 6}}}),
    "data.block": (8, BLOCKS),
    "data.blocks": (5, BLOCKS),
    "family.name": ("scmodelforge_autoencoder", {}),
    "family.dim": (12, {}),
    "family.layers": (1, {}),
    "family.heads": (4, {}),
    "family.hidden": (12, {}),
    "family.dropout": (0.4, {}),
    "family.options": ({"final_norm": False}, {}),
    "family.gain": (2.0, {}),
    "family.pretraining_task": ("dual", {}),
    "vocabulary.path": ("vocab.json", {}),
    "vocabulary.name": ("human_protein_coding", {}),
    "vocabulary.min_cells": (30, {}),
    "vocabulary.min_coverage": (1.0, {"vocabulary": {"path": "vocab.json"}}),
    "vocabulary.highly_variable": (6, {}),
    "tokenizer.genes": ("all", PLAIN),
    "tokenizer.unknown": ("pad", PLAIN | {"vocabulary": {"path": "vocab.json"}}),
    "tokenizer.unmeasured": ("token", PLAIN),
    "tokenizer.cells_per_mean": (2, PLAIN),
    "tokenizer.values": ("log1p", PLAIN),
    "tokenizer.bins": (5, SCGPT),
    "tokenizer.ties": ("random", SCGPT),
    "tokenizer.length": (6, SCGPT),
    "tokenizer.overflow": ("first", SCGPT | {"tokenizer": {"length": 6}}),
    "tokenizer.cls": (False, SCGPT | {"objectives": [{"name": "masked_expression"}]}),
    "tokenizer.cls_value": (0.5, SCGPT),
    "tokenizer.pad_value": (-7.0, SCGPT),
    "tokenizer.mask_value": (-3.0, MASKED_VALUES),
    "tokenizer.linear_bins": (4, PLAIN | {"corruption": {"name": "mask_values"}}),
    "tokenizer.bin_zeros": (True, PLAIN | {"tokenizer": RAW | {"linear_bins": 4, "genes": "all"}}),
    "tokenizer.target_sum": (100.0, PLAIN),
    "tokenizer.depth": (True, PLAIN | AUTOENCODER),
    "tokenizer.order": ("rank", PLAIN),
    "tokenizer.medians": ([1.0, 5.0] * 20, {"tokenizer": {**RAW, "order": "rank", "positions": True, "length": 6}}),
    "tokenizer.positions": (True, {"tokenizer": RAW}),
    "tokenizer.edges": ([0.0, 3.0, 9.0], {"tokenizer": RAW, "family": BASE["family"] | {"pretraining_task": "dual"}}),
    "tokenizer.expects": ("log1p", PLAIN),
    "tokenizer.modalities": (["<pad>", "<cls>", "rna"], PLAIN),
    "tokenizer.parts": ([{"name": "rna"}], PLAIN),
    "statistics.quantile_bins": (4, CAUSAL),
    "statistics.medians": (True, {"tokenizer": {**RAW, "order": "rank", "positions": True, "length": 6}}),
    "statistics.cells": (5, {"vocabulary": {"highly_variable": 6}}),
    "objectives.weight": (0.5, {"objectives": [{"name": "masked_genes"}]}),
    "objectives.from_step": (1, {"objectives": [{"name": "masked_genes"}]}),
    "objectives.masked_genes.among": ("unseen", {"objectives": [{"name": "masked_genes"}]}),
    "objectives.masked_genes_from_cell.among": ("unseen", {"objectives": [{"name": "masked_genes_from_cell"}]}),
    "objectives.masked_expression.loss": ("huber", SCGPT),
    "objectives.masked_expression.delta": (3.0, SCGPT | HUBER),
    "objectives.masked_expression.by_modality": (True, SCGPT),
    "objectives.masked_expression.modality_weights": ([1.0], SCGPT),
    "objectives.masked_expression_from_cell.visible": (True, SCGPT | {"objectives": [FROM_CELL]}),
    "objectives.masked_bins.balance": ("bins", CAUSAL | {"objectives": [{"name": "masked_bins"}]}),
    "objectives.masked_bins.counts": ([1.0] * 51, CAUSAL | {"objectives": [{"name": "masked_bins"}]}),
    "objectives.masked_bins.gamma": (5.0, CAUSAL | {"objectives": [{"name": "masked_bins", "balance": "focal"}]}),
    "corruption.mask_values.mask_value": (-4.0, SCGPT | {"corruption": {"name": "mask_values"}}),
    "corruption.mask_values.mask_bin": (3, MASKED_VALUES | {"corruption": {"name": "mask_values"}}),
    "corruption.mask_values.mask_position": (2, MASKED_VALUES | {"corruption": {"name": "mask_values"}}),
    "corruption.mask_values.ratio": (0.8, SCGPT | {"corruption": {"name": "mask_values"}}),
    "corruption.mask_values.count": ("bernoulli", SCGPT | {"corruption": {"name": "mask_values"}}),
    "corruption.mask_values.keep_first": (5, SCGPT | {"corruption": {"name": "mask_values"}}),
    "corruption.mask_values.zeros": (
        False,
        PLAIN | {"tokenizer": RAW | {"genes": "all"}, "corruption": {"name": "mask_values"}},
    ),
    "corruption.mask_bins.chances": ([0.9, 0.1], SCGPT | {"tokenizer": RAW | {"linear_bins": 2}}),
    "corruption.mask_bins.keep_first": (5, SCGPT | {"tokenizer": RAW | {"linear_bins": 2}}),
    "corruption.mask_downsampled.ratio": (0.8, DOWNSAMPLED),
    "corruption.mask_downsampled.share": (0.0, DOWNSAMPLED),
    "corruption.mask_downsampled.shape": ([9.0, 1.0], DOWNSAMPLED),
    "corruption.mask_downsampled.least": (10**6, DOWNSAMPLED),
    "corruption.generate_values.mask_value": (-4.0, GENERATED),
    "corruption.generate_values.ratio": (0.1, GENERATED),
    "corruption.generate_values.keep_first": (5, GENERATED),
    "corruption.generate_expression.mask_value": (-4.0, EXPRESSION),
    "corruption.generate_expression.visible": (4, EXPRESSION),
    "corruption.generate_expression.expressed": (1, EXPRESSION),
    "corruption.generate_expression.unexpressed": (1, EXPRESSION),
    "corruption.generate_expression.keep_first": (2, EXPRESSION),
    "corruption.mask_genes.mask_value": (-4.0, {"corruption": {"name": "mask_genes"}}),
    "corruption.mask_genes.mask_bin": (3, WITH_BINS | {"corruption": {"name": "mask_genes"}}),
    "corruption.mask_genes.mask_position": (2, {"corruption": {"name": "mask_genes"}}),
    "corruption.mask_genes.ratio": (0.5, {"corruption": {"name": "mask_genes"}}),
    "corruption.mask_genes.other": (0.8, {"corruption": {"name": "mask_genes", "ratio": 0.5}}),
    "corruption.mask_genes.keep": (0.8, {"corruption": {"name": "mask_genes", "ratio": 0.5}}),
    "corruption.mask_genes.keep_first": (5, {"corruption": {"name": "mask_genes"}}),
    "corruption.mask_genes.compat": (True, {"corruption": {"name": "mask_genes"}}),
    "corruption.mask_genes.mask_gene": (1, {"corruption": {"name": "mask_genes"}}),
    "evaluate.label_key": ("batch", {"evaluate": {"label_key": "kind"}}),
    "evaluate.every": (2, {"evaluate": {"label_key": "kind"}, "train": {"epochs": 2}}),
    "evaluate.cells": (4, {"evaluate": {"label_key": "kind"}}),
    "evaluate.rng": (1, {"evaluate": {"label_key": "kind", "cells": 4}}),
    "output": ("elsewhere", {}),
}
# Fields that a key shares with another that is flipped, or that a corruption takes from where all do.
SAME_AS = {
    **{f"corruption.next_tokens.mask_{of}": "corruption.mask_values.mask_value" for of in ("value", "bin", "position")},
    **{f"corruption.{name}.mask_{of}": f"corruption.mask_values.mask_{of}"
       for name in ("mask_bins", "mask_downsampled", "generate_values", "generate_expression")
       for of in ("value", "bin", "position")},
    **{f"corruption.mask_downsampled.{of}": f"corruption.mask_values.{of}" for of in ("count", "keep_first", "zeros")},
    **{f"objectives.{name}.{of}": f"objectives.masked_expression.{of}"
       for name in ("masked_expression_from_cell", "regenerated_expression", "perturbed_expression")
       for of in ("loss", "delta", "by_modality", "modality_weights")},
}  # fmt: skip
# Loss terms of other tasks, and numbers that only their own tests can see.
ELSEWHERE = ("objectives.elastic_similarity.", "objectives.contrastive_cells.", "objectives.batch_adversary.",
             "objectives.cell_type.", "data.census.", "data.storage")  # fmt: skip

TRAIN: dict[str, Any] = {
    "lr": 1e-3, "head_lr": 1e-3, "layer_decay": 0.5, "weight_decay": 0.5, "decayed": ("all_but_biases", {"weight_decay": 0.5}),
    "decoupled": (False, {"weight_decay": 0.5}), "betas": [0.5, 0.9], "eps": 0.1, "schedule": ("constant", {"epochs": 2}),
    "warmup": 0.5, "end": (0.5, {"schedule": "cosine", "epochs": 2}), "step_factor": (0.1, {"epochs": 2}),
    "step_epochs": (2, {"epochs": 2}), "epochs": 2, "max_steps": 1, "batch_size": 8, "accumulate": 2,
    "gradient_checkpointing": True, "clip": 0.01, "precision": "bf16", "monitor": "train_loss",
    "mode": ("max", {"epochs": 2}), "patience": 5, "folder": "run", "resume": True, "checkpoint_steps": 1, "rng": 1, "workers": 1,
    "accelerator": "auto", "devices": "auto", "nodes": 2, "strategy": "ddp", "deterministic": True,
}  # fmt: skip
LOGGERS = {
    "kind": ("tensorboard", {}), "project": ("mine", {}), "name": ("first", {}), "offline": (True, {"kind": "wandb"}),
}  # fmt: skip


def leaves(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields; of parts that are one of several, those of each kind."""
    found = []
    for name, hint in get_type_hints(cls).items():
        field = next((field for field in fields(cls) if field.name == name and field.init), None)
        if field is None:
            continue
        kinds = [hint, *get_args(hint)] if get_origin(hint) in (Union, UnionType, tuple) else [hint]
        inner = next((kind for kind in kinds if is_dataclass(kind)), None)
        nested = next((part for kind in kinds for part in get_args(kind) if is_dataclass(part)), None)
        inner = inner or nested
        if inner is None or name == "parts":
            found.append(f"{prefix}{name}")
        elif not issubclass(inner, OneOf):
            found += leaves(inner, f"{prefix}{name}.")
        else:
            for kind, part in inner.kinds.items():
                found += [f"{prefix}{name}.{kind}.{own}" for own in leaves(part)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files, a table of orthologues, and a vocabulary."""
    import anndata as ad
    import scipy.sparse as sp

    from scgpt_tools.vocabulary import Vocabulary

    place = tmp_path_factory.mktemp("schema")
    rng = np.random.default_rng(0)
    names = ["Trp53", "Cd8b1", *(f"G{number}" for number in range(14))]
    X = sp.csr_matrix(rng.poisson(1.5, size=(40, 16)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(rng.choice(["a", "b", "b", "b"], 40)),
            "batch": pd.Categorical(rng.choice(["x", "y"], 40)),
        },
        index=[f"c{number}" for number in range(40)],
    )
    var = pd.DataFrame({"symbol": [*names[1:], "OTHER"]}, index=names)
    cells = ad.AnnData(X, obs=obs, var=var, layers={"doubled": (X * 2).tocsr()})
    cells.write_h5ad(place / "cells.h5ad")
    cells.obs_names = [f"other{number}" for number in range(40)]
    cells.write_h5ad(place / "more.h5ad")
    pd.DataFrame({"mouse": ["G1"], "human": ["H1"], "kind": ["one2one"]}).to_csv(
        place / "table.tsv", sep="\t", index=False
    )
    Vocabulary.from_genes(names[2:], FAMILIES["scmodelforge"].specials).save(place / "vocab.json")
    return place


def merged(*configs: dict) -> dict:
    result: dict[str, Any] = {}
    for config in configs:
        for name, part in config.items():
            same = isinstance(part, dict) and isinstance(result.get(name), dict)
            result[name] = (
                result[name] | part if same and part.get("name") in (None, result[name].get("name")) else part
            )
    return result


def digest(*things: Any) -> str:
    found = hashlib.sha256()
    for thing in things:
        array = thing.detach().cpu().numpy() if isinstance(thing, torch.Tensor) else np.asarray(thing)
        found.update(repr((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def look(model, cells, terms, settings, *, callbacks, loggers, description) -> dict[str, Any]:
    """Cells, tokens, weights, losses and embeddings that a run begins with."""
    batches = []
    for part in ("train", "validation"):
        loader = cells.loader(part, batch_size=settings.batch_size, rng=settings.seed)
        for _ in range(2):
            batches += list(loader)
    trace: dict[str, Any] = {"weights": digest(*model.state_dict().values()), "genes known": model.vocabulary.tokens}
    for name in {name for batch in batches for name in batch.present()}:
        trace[name] = [digest(tensor) for batch in batches if (tensor := getattr(batch, name)) is not None]
    torch.manual_seed(0)
    model.train()
    for step in (0, 1):
        active = [term for term in terms if term.from_step <= step and term.weight]
        views = run_views(model, batches[0], active)
        trace[f"losses {step}"] = [float((term.weight * term(views, batches[0])).detach()) for term in active]
    model.eval()
    with torch.no_grad():
        trace["embedding"] = digest(model.embed_cells(cells.tokenize(cells.read(cells.train), cells.train, seed=0)))
    for callback in (each for each in callbacks if type(each).__name__ == "Probe"):
        trace["probed"] = [digest(callback.data.train, callback.data.validation, callback.codes), callback.every]
    return trace


def begun(config: dict, folder, tmp_path, monkeypatch) -> dict[str, Any]:
    """What a run begins with, or how it is refused; warnings count as well."""
    traces: list[dict[str, Any]] = []
    module = import_module("scgpt_tools.train.pretrain")
    monkeypatch.setattr(module, "fit", lambda *given, **options: traces.append(look(*given, **options)))
    config = merged(config, {"output": str(tmp_path / config.get("output", "model"))})
    import warnings

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            pretrain(config, data=folder, overwrite=True)
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            return {"refused": str(error)}
    written = sorted(path.name for path in tmp_path.iterdir())
    return traces[0] | {"said": sorted(str(warning.message) for warning in said), "written": written}


def with_key(config: dict, key: str, value: Any) -> dict:
    """The settings with one of them changed."""
    section, *names = key.split(".")
    if section == "objectives":
        terms = config.get("objectives") or [
            dict(term)
            for term in FAMILIES[config["family"]["name"]].pretraining.values().__iter__().__next__().objectives
        ]
        wanted = names[0] if len(names) > 1 else terms[0]["name"]
        return config | {
            "objectives": [term | {names[-1]: value} if term["name"] == wanted else term for term in terms]
        }
    if section == "corruption":
        own = config.get("corruption") or {
            "name": names[0],
            **({"chances": [0.5, 0.5]} if names[0] == "mask_bins" else {}),
        }
        return config | {"corruption": own | {names[-1]: value}}
    if not names:
        return config | {section: value}
    inner = dict(config.get(section, {}))
    if len(names) == 2:
        inner[names[0]] = dict(inner.get(names[0], {})) | ({} if value is None else {names[1]: value})
    else:
        inner[names[0]] = value
    return config | {section: inner}


def test_every_key_has_a_row():
    schema = {key for key in leaves(PretrainConfig) if not key.startswith(("train.", "loggers.", *ELSEWHERE))}
    schema = {
        key.replace(f".{name}.", ".") if key.endswith((".weight", ".from_step")) else key
        for key in schema
        for name in [key.split(".")[1] if key.count(".") == 2 else "-"]
    }
    assert schema - set(ROWS) - set(SAME_AS) == set()
    assert set(ROWS) | set(SAME_AS) >= schema >= set(ROWS)
    assert set(TRAIN) == {field.name for field in fields(FitConfig)}
    assert set(LOGGERS) == {field.name for field in fields(LoggerConfig)}
    assert {row for row in SAME_AS.values() if row not in ROWS} == set()
    assert OBJECTIVES and CORRUPTIONS


@pytest.mark.parametrize("key", ROWS)
def test_a_key_changes_what_training_begins_with(key, folder, tmp_path, monkeypatch):
    value, context = ROWS[key]
    config = merged(BASE, context)
    if key.startswith("corruption.mask_bins"):
        config["corruption"] = {"name": "mask_bins", "chances": [0.5, 0.5]}
    before, after = (
        begun(each, folder, tmp_path / name, monkeypatch)
        for name, each in (("before", config), ("after", with_key(config, key, value)))
        if (tmp_path / name).mkdir() is None
    )
    assert "refused" not in before, before
    assert before != after


def learnt(config: dict, folder, tmp_path, monkeypatch) -> dict[str, Any]:
    """What a run leaves behind, and what it asked Lightning for."""
    asked: dict[str, Any] = {}

    class Watched(lightning.Trainer):
        def __init__(self, **options: Any) -> None:
            places = {
                name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy", "deterministic")
            }
            asked.update({name: str(value) for name, value in places.items()})
            # Other machines and other rules of arithmetic than a test has.
            super().__init__(**options | {"num_nodes": 1, "devices": 1, "strategy": "auto", "deterministic": False})

        def fit(self, module: Any, loader: Any, *more: Any, **options: Any) -> None:
            asked["workers"] = loader.workers
            asked["recomputing"] = module.model.encoder.gradient_checkpointing
            asked["patience"] = [getattr(callback, "patience", None) for callback in self.callbacks]
            asked["monitor"] = [getattr(callback, "monitor", None) for callback in self.callbacks]
            super().fit(module, loader, *more, **options)

    monkeypatch.setattr(lightning, "Trainer", Watched)
    steps: list[int] = []
    checkpoints = import_module("scgpt_tools.train.callbacks").FolderCheckpoint
    written = checkpoints._save_checkpoint
    monkeypatch.setattr(
        checkpoints, "_save_checkpoint", lambda self, trainer, path: steps.append(trainer.global_step) or written(self, trainer, path)
    )  # fmt: skip
    try:
        model = pretrain(config, data=folder, output=tmp_path / "model", overwrite=True)
    except (ValueError, ImportError) as error:
        return {"refused": str(error)}
    finally:
        monkeypatch.undo()
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    run = tmp_path / "model" / "run" / "history.csv"
    rows = len(pd.read_csv(run)) if run.exists() else 0
    return asked | {"weights": digest(*model.state_dict().values()), "files": files, "steps": steps, "epochs": rows}


@pytest.mark.parametrize("key", TRAIN)
def test_a_setting_of_training_changes_a_run(key, folder, tmp_path, monkeypatch):
    value, context = TRAIN[key] if isinstance(TRAIN[key], tuple) else (TRAIN[key], {})
    base = merged(BASE, {"train": context}, {"data": {"validation": 0.3}})
    traces = []
    for name, train in (("before", {}), ("after", {key: str(tmp_path / value) if key == "folder" else value})):
        (tmp_path / name).mkdir()
        config = merged(base, {"train": train})
        if key == "resume":
            learnt(merged(base, {"train": {"max_steps": 1}}), folder, tmp_path / name, monkeypatch)
        traces.append(learnt(config, folder, tmp_path / name, monkeypatch))
    assert "refused" not in traces[0], traces[0]
    assert traces[0] != traces[1]


@pytest.mark.parametrize("key", LOGGERS)
def test_a_setting_of_a_logger_changes_what_is_written(key, folder, tmp_path, monkeypatch):
    value, context = LOGGERS[key]
    made = []
    loggers = import_module("lightning.pytorch.loggers")
    for kind in ("CSVLogger", "TensorBoardLogger", "WandbLogger"):
        monkeypatch.setattr(loggers, kind, lambda *given, of=kind, **options: made.append((of, given, options)))
    monkeypatch.setattr(
        "scgpt_tools.train.loggers.optional", lambda module, extra: import_module("lightning.pytorch.loggers")
    )
    base = {"kind": "csv"} | context
    for options in (base, base | {key: value}):
        LoggerConfig(**options).build(tmp_path)
    assert made[0] != made[1]
    with pytest.raises(ValueError, match="`folder`"):
        import_module("scgpt_tools.train.loggers").built([LoggerConfig(kind="csv")], None)


def test_options_of_families_change_a_model(folder, tmp_path, monkeypatch):
    """Arguments of the three descriptions, but those that have keys of their own."""
    other: dict[str, Any] = {
        "activation": "relu", "pooling": "mean", "final_norm": False, "values": "attention_bias", "pretraining_task": "dual",
        "bins": 5, "decoder_dim": 6, "decoder_layers": 1, "decoder_heads": 1, "form": "scfoundation", "depth": True,
    }  # fmt: skip
    shared = {"vocabulary", "tokenizer", "generation", *SIZES}
    for name in ("scmodelforge", "scmodelforge_causal", "scmodelforge_autoencoder"):
        own = [option for option in inspect.signature(FAMILIES[name].config).parameters if option not in shared]
        config = merged(BASE, {"family": {"name": name, **SIZES}})
        (place := tmp_path / name).mkdir()
        before = begun(config, folder, place, monkeypatch)
        assert "refused" not in before
        for option in own:
            changed = merged(config, {"family": {"name": name, "options": {option: other[option]}}})
            after = begun(changed, folder, place, monkeypatch)
            assert after != before, (name, option)
            if option != "pretraining_task":
                assert "refused" not in after, (name, option, after)
