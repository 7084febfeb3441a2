"""scModelForge's words for settings, in one place: its YAML files become this package's settings, key by key.

A key that does not exist is refused with the nearest, and one that nothing here would read is refused or warned about by
name.  Where the original reads a key from nowhere, and where a default of its own cannot be kept, the table on the page of
the family says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import lookup
from scgpt_tools.cli.configs import changed
from scgpt_tools.cli.scmodelforge_keys import KEYS, REFUSED_FLAGS, SECTIONS
from scgpt_tools.cli.scmodelforge_said import Said, flat_settings, is_setting, no_key
from scgpt_tools.cli.scmodelforge_sections import (
    ARCHITECTURES,
    balanced_of,
    benchmark_of,
    corruption_of,
    data_of,
    family_of,
    loggers_of,
    lora_of,
    probe_of,
    sampling_of,
    target_sum_of,
    tokenizer_of,
    training_of,
    vocabulary_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from scgpt_tools.cli.configs import Given, Tree

PROGRAM = "scmodelforge"
# Keys of files of either kind, which say nothing about whose a file is.
_SHARED = {
    "data.paths",
    "data.census.organism",
    "data.census.filters",
    "data.census.obs_columns",
    "model.dropout",
    "model.pretraining_task",
}


def check_command(name: str) -> None:
    """Refuse its commands that this package has nothing for."""
    if name == "zoo":
        raise ValueError(
            "Expected a command of this package, found 'zoo', which makes environments for models of other packages. "
            "`scgpt-tools models` lists those that load by name; pass others to `sct.tl.benchmark` as functions."
        )


def check_flags(given: Given, known: Collection[str]) -> None:
    """Refuse its options that this package has nothing for.

    ``known``: the command's options.
    """
    for word in given.words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in REFUSED_FLAGS and name not in known:
            raise ValueError(f"Expected no --{name.replace('_', '-')}, found it. {REFUSED_FLAGS[name]}.")


def in_our_words(command: str, given: Given, *, known: Collection[str], foreign: bool) -> Given:
    """A command line in this package's words.

    ``command``: its name here; ``known``: the command's options, or the sections of its file; ``foreign``: whether settings
    are scModelForge's unless they show otherwise.
    """
    theirs = [change for change in given.changes if is_setting(".".join(change[0]))]
    settings = given.settings
    for key, value in theirs:
        settings = changed(settings, key, value)
    if command in TRANSLATIONS and _is_foreign(settings, known, foreign=foreign):
        given.changes = [change for change in given.changes if change not in theirs]
        for key, _ in given.changes:
            if key[0] in SECTIONS and not _is_ours(command, key):
                raise ValueError(no_key(".".join(key), _ours(command)))
        given.settings = translated(command, settings, given)
    for key, value in given.changes:
        given.settings = changed(given.settings, key, value)
    return given


def translated(command: str, settings: Mapping[str, Any], given: Given) -> Tree:
    """Settings of one of its files as those of a command here.

    ``given``: the command line, which says which model and data are meant.
    """
    said = Said(command, settings)
    ours = TRANSLATIONS[command](said, given)
    said.report()
    return ours


# ------------------------------------------------------------------------------------------------------ by command


def _pretraining(said: Said, given: Given) -> Tree:
    family = lookup(ARCHITECTURES, said["model.architecture"], "architecture")
    train = training_of(said)
    folder = said["training.checkpoint_dir"]
    resume = said["training.resume_from"]
    if resume:
        given.words += ["--resume", str(resume)]
    binned = said["tokenizer.strategy"] == "binned_expression"
    settings: Tree = {
        "data": data_of(said)
        | sampling_of(said)
        | {"validation": said["training.val_split"], "rng": said["training.seed"]},
        "vocabulary": vocabulary_of(said),
        "family": family_of(said, family, binned=binned),
        "tokenizer": tokenizer_of(said),
        "corruption": corruption_of(said, family),
        "train": train | {"folder": folder},
        "loggers": loggers_of(said),
        "evaluate": probe_of(said),
        "output": folder,
    }
    if binned and said["tokenizer.binning_method"] == "quantile":
        settings["statistics"] = {"quantile_bins": said["tokenizer.n_bins"]}
    weights = (said["model.gene_loss_weight"], said["model.expression_loss_weight"])
    if family == "scmodelforge_causal":
        terms = [{"name": "masked_genes", "weight": weights[0]}, {"name": "masked_bins", "weight": weights[1]}]
        settings["objectives"] = terms if binned else terms[:1]
    else:
        for key in ("model.gene_loss_weight", "model.expression_loss_weight"):
            if said.asks(key) and said[key] != KEYS[key]:
                said.note(key, "it weighs the losses of autoregressive_transformer")
    return settings


def _finetuning(said: Said, given: Given) -> Tree:
    task = lookup(
        {"classification": "annotate", "regression": "regress"}, said["finetune.head.task"], "task of finetune.head"
    )
    rate, backbone = said["training.optimizer.lr"], said["finetune.backbone_lr"]
    paths = said["data.paths"]
    if len(paths) != 1:
        raise ValueError(f"Expected one table in `data.paths` to fine-tune on, found {len(paths)}: {paths}.")
    folder = said["training.checkpoint_dir"]
    options: Tree = {
        "input": paths[0],
        "task": task,
        "label_key": said["finetune.label_key"],
        "output": folder,
        "folder": folder,
        "validation": said["training.val_split"],
        **training_of(said),
        "lr": rate if backbone is None else backbone,
        "head_lr": said["finetune.head_lr"],
        "loggers": loggers_of(said),
    }
    if said["training.sampling.strategy"] != "random":
        options["sampling"] = balanced_of(said)
    if said["finetune.head.n_classes"] is not None:
        said.note("finetune.head.n_classes", "classes are those of the labels")
    if task == "regress":
        options["target_keys"] = [options.pop("label_key")]
        if said["finetune.head.output_dim"] != 1:
            raise ValueError(
                "Expected finetune.head.output_dim 1 with one `finetune.label_key`, found "
                f"{said['finetune.head.output_dim']}. Name the columns with --target_keys."
            )
    said.read.add("finetune.head.output_dim")
    if said["finetune.head.hidden_dim"] is not None:
        said.note("finetune.head.hidden_dim", "the head is that of the model")
    epochs, adapted = said["finetune.freeze_backbone_epochs"], said["finetune.lora.enabled"]
    if adapted:
        options["lora"] = lora_of(said)
        for key in ("finetune.freeze_backbone", "finetune.freeze_backbone_epochs"):
            if said[key]:
                said.note(key, "beside adapters the backbone is frozen to the end")
    else:
        said.read |= {key for key in KEYS if key.startswith("finetune.lora.")}
        if said["finetune.freeze_backbone"] or epochs:
            options["freeze"] = "backbone"
        if epochs:
            options["unfreeze_after"] = epochs
    checkpoint = said["finetune.checkpoint_path"]
    if checkpoint and _value_of(given, "model") is None:
        options["model"] = checkpoint
    _compare(said, _value_of(given, "model") or checkpoint)
    return options


def _benchmarking(said: Said, given: Given) -> Tree:
    asked = [benchmark_of(entry) for entry in said["eval.benchmarks"] or ["linear_probe"]]
    names = list(dict.fromkeys(entry["dataset"] for entry in asked if "dataset" in entry))
    path = _value_of(given, "data")
    if len(names) > 1:
        raise ValueError(f"Expected one name of a data set in `eval.benchmarks` beside one --data, found {names}.")
    if path is not None and names:
        _replace(given, "data", json.dumps({names[0]: path}))
    said.read.add("eval.every_n_epochs")
    _compare(said, _value_of(given, "model"))
    return {"benchmarks": asked, "batch_size": said["eval.batch_size"]}


def _exporting(said: Said, given: Given) -> Tree:
    _compare(said, _value_of(given, "model"))
    return {}


def _sharding(said: Said, given: Given) -> Tree:
    options: Tree = {"input": _one_local_path(said), "shard_size": said["data.shards.shard_size"]}
    genes = said["data.gene_vocab"] if said.asks("data.gene_vocab") else None
    if genes is not None and _value_of(given, "model") is not None:
        said.note("data.gene_vocab", "genes have the numbers of --model")
    elif genes not in (None, "from_data"):
        options["model"] = genes
    section = "data.preprocessing"
    asked = [key for key in KEYS if key.startswith(f"{section}.") and said.asks(key)]
    if any(said[key] not in (None, "none", False) for key in asked):
        said.notes.append(f"{section} (shards hold values as the table has them; `pretrain` prepares what it reads)")
    said.read |= {key for key in KEYS if key.startswith("data.") and not said.asks(key)}
    return options


def _preprocessing(said: Said, given: Given) -> Tree:
    del given
    said.read.add("data.gene_vocab")
    options: Tree = {
        "target_sum": target_sum_of(said),
        "log1p": said["data.preprocessing.log1p"],
        "n_top_genes": said["data.preprocessing.hvg_selection"],
    }
    if said["data.paths"]:
        options["input"] = _one_local_path(said)
    return options


TRANSLATIONS: dict[str, Callable[[Said, Given], Tree]] = {
    "pretrain": _pretraining,
    "finetune": _finetuning,
    "benchmark": _benchmarking,
    "export": _exporting,
    "shard": _sharding,
    "preprocess": _preprocessing,
}


# ------------------------------------------------------------------------------------------------------------ parts


def _compare(said: Said, model: str | None) -> None:
    """Warn where a file describes another model than the checkpoint, which counts."""
    said.read |= {key for key in KEYS if key.startswith(("model.", "tokenizer."))}
    asked = {key for key in said.given if key in _DESCRIBED}
    if model is None or not asked:
        return
    if not model:
        raise ValueError(
            f"Expected --checkpoint or `finetune.checkpoint_path`, the model that the file describes with {min(asked)!r}, found "
            "neither."
        )
    from scgpt_tools.config import yaml_value  # imports NumPy
    from scgpt_tools.models import formats, zoo  # torch

    models = yaml_value(model) if model[:1] in "[{" else model
    several = models.values() if isinstance(models, Mapping) else [models] if isinstance(models, str) else models
    for config in [formats.read(zoo.fetch(one)).config for one in several]:
        for key in sorted(asked - {*said.noted}):
            found = _DESCRIBED[key](config)
            said.read.add(key)
            if ("none" if said.given[key] is None else said.given[key]) != found:
                said.note(key, f"the checkpoint says, {found!r}")


_DESCRIBED: dict[str, Callable[[Any], Any]] = {
    "model.architecture": lambda config: {ours: theirs for theirs, ours in ARCHITECTURES.items()}.get(
        config.family, config.family
    ),
    "model.hidden_dim": lambda config: config.dim,
    "model.num_layers": lambda config: config.encoder.layers,
    "model.num_heads": lambda config: config.encoder.heads,
    "data.preprocessing.normalize": lambda config: "none" if config.tokenizer.target_sum is None else "library_size",
    "data.preprocessing.log1p": lambda config: config.tokenizer.values == "log1p",
    "tokenizer.max_genes": lambda config: config.tokenizer.length,
    "tokenizer.prepend_cls": lambda config: config.tokenizer.cls,
    "tokenizer.strategy": lambda config: (
        "rank_value"
        if config.tokenizer.order == "rank"
        else "continuous_projection"
        if config.tokenizer.edges is None
        else "binned_expression"
    ),
}


def _one_local_path(said: Said) -> str:
    if (source := said["data.source"]) != "local":
        raise ValueError(
            f"Expected `data.source` 'local' and a table in `data.paths`, found {source!r}. Only `pretrain` reads the census."
        )
    paths = said["data.paths"]
    if len(paths) != 1:
        raise ValueError(f"Expected one table in `data.paths`, found {len(paths)}: {paths}.")
    return str(paths[0])


def _value_of(given: Given, name: str) -> str | None:
    """Value of an option of the command line."""
    for place, word in enumerate(given.words):
        if word == f"--{name}" and place + 1 < len(given.words):
            return given.words[place + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def _replace(given: Given, name: str, value: str) -> None:
    for place, word in enumerate(given.words):
        if word == f"--{name}":
            given.words[place + 1] = value
        elif word.startswith(f"--{name}="):
            given.words[place] = f"--{name}={value}"


def _is_foreign(settings: Mapping[str, Any], known: Collection[str], *, foreign: bool) -> bool:
    """Whether settings are scModelForge's: some of their keys are its own."""
    keys = set(flat_settings(settings))
    own = {key for key in keys if key in KEYS and key not in _SHARED}
    native = {key.partition(".")[0] for key in keys} & {*known} - {"data", "tokenizer", "model"}
    return bool(own) or (foreign and not native and bool(keys))


def _is_ours(command: str, key: tuple[str, ...]) -> bool:
    """Whether a setting of a section of its files exists here, too."""
    return ".".join(key[:2]) in _ours(command)


def _ours(command: str) -> list[str]:
    """Settings of this package in sections that its files have, too."""
    if command != "pretrain":
        return []
    from scgpt_tools.tokens.tokenizer import TokenizerConfig  # imports torch
    from scgpt_tools.train.collection import DataConfig  # torch
    from scgpt_tools.train.pretrain import FamilyConfig  # torch

    kinds: dict[str, Any] = {"model": FamilyConfig, "data": DataConfig, "tokenizer": TokenizerConfig}
    return [f"{section}.{field.name}" for section, kind in kinds.items() for field in fields(kind)]
