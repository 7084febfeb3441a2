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

from scgpt_tools._lookup import absent, lookup
from scgpt_tools.cli import dialects
from scgpt_tools.cli.configs import changed, flat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from scgpt_tools.cli.configs import Given, Tree

PROGRAM = "scmodelforge"
ORGANISMS = {"human", "mouse"}
ARCHITECTURES = {
    "transformer_encoder": "scmodelforge",
    "autoregressive_transformer": "scmodelforge_causal",
    "masked_autoencoder": "scmodelforge_autoencoder",
}
STRATEGIES = {name: name for name in ("rank_value", "binned_expression", "continuous_projection")}
PRECISIONS = {
    "bf16-mixed": "bf16",
    "bf16": "bf16",
    "16-mixed": "fp16",
    "16": "fp16",
    "32-true": "fp32",
    "32": "fp32",
}
SCHEDULES = {"cosine_warmup": "cosine", "cosine": "cosine", "linear": "linear"}
TARGETS = {"out_proj": "out", "linear1": "expand", "linear2": "contract"}

KEYS: dict[str, Any] = {
    "data.source": "local",
    "data.paths": [],
    "data.gene_vocab": "human_protein_coding",
    "data.preprocessing.normalize": "library_size",
    "data.preprocessing.target_sum": 1e4,
    "data.preprocessing.log1p": True,
    "data.preprocessing.hvg_selection": None,
    "data.max_genes": 2048,
    "data.num_workers": 4,
    "data.census.organism": "Homo sapiens",
    "data.census.census_version": "latest",
    "data.census.obs_value_filter": None,
    "data.census.var_value_filter": None,
    "data.census.filters": None,
    "data.census.obs_columns": None,
    "data.multi_species.enabled": False,
    "data.multi_species.organisms": ["human", "mouse"],
    "data.multi_species.canonical_organism": "human",
    "data.multi_species.include_one2many": False,
    "data.multi_species.ortholog_table": None,
    "data.perturbation.enabled": False,
    "data.perturbation.perturbation_key": None,
    "data.perturbation.control_label": "control",
    "data.perturbation.dose_key": None,
    "data.perturbation.dose_unit": None,
    "data.shards.enabled": False,
    "data.shards.shard_dir": "",
    "data.shards.shard_size": 500_000,
    "data.gene_selection.strategy": "all",
    "data.gene_selection.n_genes": None,
    "data.cloud.storage_options": {},
    "data.cloud.cache_dir": None,
    "data.streaming": False,
    "data.streaming_chunk_size": 10_000,
    "data.streaming_shuffle_buffer": 10_000,
    "tokenizer.strategy": "rank_value",
    "tokenizer.max_genes": 2048,
    "tokenizer.gene_vocab": "human_protein_coding",
    "tokenizer.prepend_cls": True,
    "tokenizer.n_bins": 51,
    "tokenizer.binning_method": "uniform",
    "tokenizer.include_zero_genes": False,
    "tokenizer.embedding_path": None,
    "tokenizer.embedding_dim": 200,
    "tokenizer.masking.mask_ratio": 0.15,
    "tokenizer.masking.random_replace_ratio": 0.1,
    "tokenizer.masking.keep_ratio": 0.1,
    "model.architecture": "transformer_encoder",
    "model.hidden_dim": 512,
    "model.num_layers": 12,
    "model.num_heads": 8,
    "model.ffn_dim": None,
    "model.dropout": 0.1,
    "model.max_seq_len": 2048,
    "model.pooling": "cls",
    "model.activation": "gelu",
    "model.use_expression_values": True,
    "model.pretraining_task": "masked_gene_prediction",
    "model.mask_ratio": 0.15,
    "model.vocab_size": None,
    "model.n_bins": 51,
    "model.gene_loss_weight": 1.0,
    "model.expression_loss_weight": 1.0,
    "model.decoder_dim": None,
    "model.decoder_layers": 4,
    "model.decoder_heads": None,
    "training.batch_size": 64,
    "training.max_epochs": 10,
    "training.seed": 42,
    "training.strategy": "ddp",
    "training.num_gpus": None,
    "training.precision": "bf16-mixed",
    "training.optimizer.name": "adamw",
    "training.optimizer.lr": 1e-4,
    "training.optimizer.weight_decay": 0.01,
    "training.scheduler.name": "cosine_warmup",
    "training.scheduler.warmup_steps": 2000,
    "training.scheduler.total_steps": 100_000,
    "training.gradient_clip": 1.0,
    "training.gradient_accumulation": 1,
    "training.logger": "wandb",
    "training.wandb_project": "scmodelforge",
    "training.run_name": None,
    "training.log_dir": "logs",
    "training.log_every_n_steps": 50,
    "training.checkpoint_dir": "checkpoints",
    "training.save_top_k": 3,
    "training.num_workers": 4,
    "training.val_split": 0.05,
    "training.resume_from": None,
    "training.sampling.strategy": "random",
    "training.sampling.label_key": "cell_type",
    "training.sampling.replacement": True,
    "training.sampling.curriculum_warmup_epochs": 0,
    "training.fsdp.sharding_strategy": "FULL_SHARD",
    "training.fsdp.cpu_offload": False,
    "training.fsdp.activation_checkpointing": False,
    "training.fsdp.min_num_params": 1_000_000,
    "eval.every_n_epochs": 2,
    "eval.batch_size": 256,
    "eval.benchmarks": [],
    "finetune.checkpoint_path": "",
    "finetune.freeze_backbone": False,
    "finetune.freeze_backbone_epochs": 0,
    "finetune.label_key": "cell_type",
    "finetune.head.task": "classification",
    "finetune.head.n_classes": None,
    "finetune.head.output_dim": 1,
    "finetune.head.hidden_dim": None,
    "finetune.head.dropout": 0.1,
    "finetune.backbone_lr": None,
    "finetune.head_lr": None,
    "finetune.lora.enabled": False,
    "finetune.lora.rank": 8,
    "finetune.lora.alpha": 16,
    "finetune.lora.dropout": 0.05,
    "finetune.lora.target_modules": None,
    "finetune.lora.bias": "none",
    "zoo.env_dir": None,
    "zoo.python_version": None,
    "zoo.timeout": 0,
}
"""Keys that its files may have, and what an absent one is there."""
SECTIONS = frozenset(key.partition(".")[0] for key in KEYS)
# Whose values are mappings of anything, and sections that may be switched off as a whole.
_OPEN = ("data.census.filters", "data.cloud.storage_options")
_SWITCHED = ("training.scheduler", "training.fsdp", "finetune")
_SHARED = {"data.paths", "model.dropout"}
# Cells that are read together where a file is read in pieces.
_RUN = 256
_WITHOUT_EFFECT = {
    "data.max_genes": "tokenizer.max_genes counts",
    "data.num_workers": "training.num_workers counts",
    "tokenizer.gene_vocab": "data.gene_vocab counts",
    "tokenizer.embedding_dim": "models take no table of embeddings from a file",
    "model.vocab_size": "the vocabulary says it",
    "training.log_dir": "logs go to the folder of the run",
    "training.log_every_n_steps": "steps are logged as they come",
    "training.save_top_k": "the best checkpoint and the last are kept",
    "training.fsdp.min_num_params": "layers are the pieces",
    "data.cloud.cache_dir": "files are read where they lie",
    "data.perturbation.perturbation_key": "perturbations are for `finetune --task perturb`",
    "data.perturbation.control_label": "perturbations are for `finetune --task perturb`",
    "data.perturbation.dose_key": "doses are read by nothing",
    "data.perturbation.dose_unit": "doses are read by nothing",
    "finetune.head.dropout": "the head has the dropout of the model's encoder",
    "data.shards.shard_size": "it belongs to `shard`",
    "eval.batch_size": "it belongs to `benchmark`",
}
_OTHER_COMMANDS = {
    "pretrain": ("finetune", "zoo"),
    "finetune": ("eval", "zoo", "tokenizer.masking"),
    "benchmark": ("training", "finetune", "zoo", "data", "tokenizer.masking"),
    "export": ("data", "training", "eval", "finetune", "zoo", "tokenizer.masking"),
    "shard": ("tokenizer", "model", "training", "eval", "finetune", "zoo"),
    "preprocess": ("tokenizer", "model", "training", "eval", "finetune", "zoo"),
}
_REFUSED_FLAGS = {
    "external_model": "Pass models of other packages to `sct.tl.benchmark` as functions from cells to an array",
    "external_source": "Pass models of other packages to `sct.tl.benchmark` as functions from cells to an array",
    "isolated": "Run models of other packages in environments of your own, and pass arrays to `sct.tl.benchmark`",
    "env_dir": "Run models of other packages in environments of your own, and pass arrays to `sct.tl.benchmark`",
    "no_safetensors": "Weights are written as safetensors, which cannot run code when they are read",
}


def check_command(name: str) -> None:
    """Refuse its commands that this package has nothing for."""
    if name == "zoo":
        raise ValueError(
            "Expected a command of this package, found 'zoo', which makes environments for models of other packages. "
            "`scgpt-tools models` lists those that load by name; pass others to `sct.tl.benchmark` as functions."
        )


def in_our_words(command: str, given: Given, *, known: Collection[str], foreign: bool) -> Given:
    """A command line in this package's words.

    ``command``: its name here; ``known``: the command's options, or the sections of its file; ``foreign``: whether settings
    are scModelForge's unless they show otherwise.
    """
    for word in given.words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in _REFUSED_FLAGS and name not in known:
            raise ValueError(f"Expected no --{name.replace('_', '-')}, found it. {_REFUSED_FLAGS[name]}.")
    given.words = dialects.in_our_words(command, given.words, known)
    theirs = [change for change in given.changes if ".".join(change[0]) in KEYS]
    settings = given.settings
    for key, value in theirs:
        settings = changed(settings, key, value)
    if command in TRANSLATIONS and _is_foreign(settings, known, foreign=foreign):
        given.changes = [change for change in given.changes if change not in theirs]
        for key, _ in given.changes:
            if key[0] in SECTIONS and not _is_ours(command, key):
                raise ValueError(absent(".".join(key), KEYS, "setting of scModelForge named"))
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


class Said:
    """What a file says, key by key; what nobody asks for is reported."""

    def __init__(self, command: str, settings: Mapping[str, Any]) -> None:
        self.command = command
        self.off = {name for name in _SWITCHED if _at(settings, name) is None and _has(settings, name)}
        self.given = {key: value for key, value in _flat(settings).items() if key not in SECTIONS | {*_SWITCHED}}
        for key in self.given:
            if key not in KEYS:
                raise ValueError(absent(key, KEYS, "setting of scModelForge named"))
        self.read: set[str] = set()
        self.notes: list[str] = []

    def __getitem__(self, key: str) -> Any:
        """What the file says, or the original's default."""
        self.read.add(key)
        return self.given.get(key, KEYS[key])

    def asks(self, key: str) -> bool:
        """Whether the file has a key."""
        return key in self.given

    def has(self, section: str) -> bool:
        """Whether the file has anything of a section."""
        return any(key.startswith(f"{section}.") for key in self.given)

    def note(self, key: str, why: str) -> None:
        """Warn that a key has no effect, or another than it says."""
        self.read.add(key)
        self.notes.append(f"{key}: {self.given.get(key, KEYS[key])!r} ({why})")

    def report(self) -> None:
        """Warn about keys without effect, by name."""
        from scgpt_tools._warnings import warn_user  # imports NumPy

        others = _OTHER_COMMANDS.get(self.command, ())
        for key, value in self.given.items():
            if key in self.read or any(key == other or key.startswith(f"{other}.") for other in others):
                continue
            if value != KEYS[key]:
                self.note(key, _WITHOUT_EFFECT.get(key, "nothing reads it beside the other settings"))
        if self.notes:
            warn_user(f"Settings of scModelForge without effect, or with another, here: {'; '.join(self.notes)}.")


# ------------------------------------------------------------------------------------------------------ by command


def _pretraining(said: Said, given: Given) -> Tree:
    family = lookup(ARCHITECTURES, said["model.architecture"], "architecture")
    train = _training(said)
    folder = said["training.checkpoint_dir"]
    resume = said["training.resume_from"]
    if resume:
        given.words += ["--resume", str(resume)]
    binned = said["tokenizer.strategy"] == "binned_expression"
    settings: Tree = {
        "data": _data(said)
        | _sampling(said)
        | {"validation": said["training.val_split"], "rng": said["training.seed"]},
        "vocabulary": _vocabulary(said),
        "family": _family(said, family, binned=binned),
        "tokenizer": _tokenizer(said),
        "corruption": _corruption(said, family),
        "train": train | {"folder": folder},
        "loggers": _loggers(said),
        "evaluate": _probe(said),
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
        **_training(said),
        "lr": rate if backbone is None else backbone,
        "head_lr": said["finetune.head_lr"],
        "loggers": _loggers(said),
    }
    if said["training.sampling.strategy"] != "random":
        options["sampling"] = _balanced(said)
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
    epochs = said["finetune.freeze_backbone_epochs"]
    if said["finetune.freeze_backbone"] or epochs:
        options["freeze"] = "backbone"
    if epochs:
        options["unfreeze_after"] = epochs
    if said["finetune.lora.enabled"]:
        options["lora"] = _lora(said)
    else:
        said.read |= {key for key in KEYS if key.startswith("finetune.lora.")}
    checkpoint = said["finetune.checkpoint_path"]
    if checkpoint and _value_of(given, "model") is None:
        options["model"] = checkpoint
    said.read |= {"data.source", "data.gene_vocab"} | {key for key in KEYS if key.startswith("data.preprocessing.")}
    _compare(said, _value_of(given, "model") or checkpoint)
    return options


def _benchmarking(said: Said, given: Given) -> Tree:
    asked = [_benchmark(entry) for entry in said["eval.benchmarks"] or ["linear_probe"]]
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
    del given
    said.read |= {key for key in KEYS if key.startswith("data.") and not said.asks(key)}
    said.read |= {"data.source", "data.gene_vocab"} | {key for key in KEYS if key.startswith("data.preprocessing.")}
    return {"input": _one_path(said), "shard_size": said["data.shards.shard_size"]}


def _preprocessing(said: Said, given: Given) -> Tree:
    del given
    said.read |= {"data.source", "data.gene_vocab"}
    scaled = said["data.preprocessing.normalize"]
    options: Tree = {
        "log1p": said["data.preprocessing.log1p"],
        "n_top_genes": said["data.preprocessing.hvg_selection"],
    }
    if said["data.paths"]:
        options["input"] = _one_path(said)
    if scaled:
        options["target_sum"] = said["data.preprocessing.target_sum"]
    return options


TRANSLATIONS: dict[str, Callable[[Said, Given], Tree]] = {
    "pretrain": _pretraining,
    "finetune": _finetuning,
    "benchmark": _benchmarking,
    "export": _exporting,
    "shard": _sharding,
    "preprocess": _preprocessing,
}


# ------------------------------------------------------------------------------------------------------ by section


def _data(said: Said) -> Tree:
    paths: list[str] = list(said["data.paths"])
    settings: Tree = {}
    sources = {"local": False, "cellxgene_census": True}
    if lookup(sources, said["data.source"], "source of data"):
        settings["census"] = _census(said)
    if said["data.shards.enabled"]:
        paths = [said["data.shards.shard_dir"]]
    settings["paths"] = paths
    if said["data.cloud.storage_options"]:
        settings["storage"] = said["data.cloud.storage_options"]
    if said["data.multi_species.enabled"]:
        settings["orthologs"] = _orthologs(said)
    else:
        said.read |= {key for key in KEYS if key.startswith("data.multi_species.")}
    if said["data.perturbation.enabled"]:
        raise ValueError(
            "Expected `data.perturbation.enabled` to be false for pre-training, found true. Perturbations are learnt by "
            "`finetune --task perturb`."
        )
    how = said["data.gene_selection.strategy"]
    if how != "all":
        settings["minibatch_genes"] = {"how": how, "n_genes": said["data.gene_selection.n_genes"]}
    if said["data.streaming"]:
        block = min(_RUN, said["data.streaming_chunk_size"])
        if said["data.streaming_chunk_size"] != KEYS["data.streaming_chunk_size"]:
            said.note("data.streaming_chunk_size", f"runs of {block} neighbouring cells are read")
        settings |= {"sampling": "blocks", "block": block}
        settings["blocks"] = max(1, said["data.streaming_shuffle_buffer"] // block)
    return settings


def _census(said: Said) -> Tree:
    found = {
        "organism": str(said["data.census.organism"]).lower().replace(" ", "_"),
        "version": str(said["data.census.census_version"]),
        "filters": said["data.census.filters"],
        "obs_filter": said["data.census.obs_value_filter"],
        "var_filter": said["data.census.var_value_filter"],
        "obs_columns": said["data.census.obs_columns"],
    }
    return {name: value for name, value in found.items() if value is not None}


def _orthologs(said: Said) -> Tree:
    others = set(said["data.multi_species.organisms"]) - {"human"}
    if said["data.multi_species.canonical_organism"] != "human" or len(others) != 1 or not others <= ORGANISMS:
        raise ValueError(
            "Expected `data.multi_species` of human and mouse with genes of human, found "
            f"{said['data.multi_species.organisms']} with genes of {said['data.multi_species.canonical_organism']!r}."
        )
    return {
        "of": others.pop(),
        "table": said["data.multi_species.ortholog_table"],
        "one_to_many": said["data.multi_species.include_one2many"],
    }


def _vocabulary(said: Said) -> Tree:
    name = said["data.gene_vocab"]
    # Where the file says nothing, genes of the data are taken, as the original does whatever it says.
    given = name if said.asks("data.gene_vocab") else None
    found: Tree = {"highly_variable": said["data.preprocessing.hvg_selection"]}
    if given is None or given == "from_data":
        return found
    return found | ({"path": given} if str(given).endswith(".json") else {"name": given})


def _tokenizer(said: Said) -> Tree:
    from scgpt_tools.config import to_dict  # imports NumPy
    from scgpt_tools.models.families.scmodelforge import scmodelforge_tokens  # torch

    style = said["tokenizer.strategy"]
    if style == "gene_embedding":
        raise ValueError(
            "Expected `tokenizer.strategy` to be one of 'rank_value', 'binned_expression', 'continuous_projection', found "
            "'gene_embedding', whose table the original's models do not read. Take 'continuous_projection' for its tokens, "
            "and scGenePT for tables of genes."
        )
    lookup(STRATEGIES, style, "tokenizer strategy")
    if said["tokenizer.embedding_path"] is not None:
        said.note("tokenizer.embedding_path", "no model reads the table")
    if said["tokenizer.include_zero_genes"]:
        raise ValueError("Expected `tokenizer.include_zero_genes` to be false, found true: tokens are expressed genes.")
    length = said["tokenizer.max_genes"]
    if said.asks("model.max_seq_len") and said["model.max_seq_len"] != length:
        said.note("model.max_seq_len", f"the smaller of it and tokenizer.max_genes, {length}, is taken")
        length = min(length, said["model.max_seq_len"])
    bins = said["tokenizer.n_bins"]
    if said.asks("model.n_bins") and said["model.n_bins"] != bins:
        raise ValueError(f"Expected `model.n_bins` to be `tokenizer.n_bins`, {bins}, found {said['model.n_bins']}.")
    method = lookup({"uniform": False, "quantile": True}, said["tokenizer.binning_method"], "binning method")
    tokens = to_dict(scmodelforge_tokens(style, length=length, bins=bins))
    scaled = lookup(
        {"library_size": True, "none": False}, said["data.preprocessing.normalize"] or "none", "normalisation"
    )
    tokens["target_sum"] = float(said["data.preprocessing.target_sum"]) if scaled else None
    tokens["values"] = "log1p" if said["data.preprocessing.log1p"] else "raw"
    tokens["expects"] = "counts" if scaled else "any"
    tokens["cls"] = said["tokenizer.prepend_cls"]
    if method:
        tokens["edges"] = None
    return tokens


def _family(said: Said, family: str, *, binned: bool) -> Tree:
    task = {"dual_prediction": "dual"}.get(said["model.pretraining_task"], said["model.pretraining_task"])
    options: Tree = {"activation": said["model.activation"]}
    pooling = said["model.pooling"]
    if pooling == "cls" and not said["tokenizer.prepend_cls"]:
        raise ValueError("Expected `model.pooling` 'mean' without `tokenizer.prepend_cls`, found 'cls'.")
    if family == "scmodelforge_causal":
        if said.asks("model.pooling") and pooling != "mean":
            said.note("model.pooling", "cells are the mean of their tokens: the first sees itself alone")
    else:
        options["pooling"] = pooling
    if not said["model.use_expression_values"]:
        options["values"] = "none"
    sizes = {name: said[f"model.{name}"] for name in ("decoder_dim", "decoder_layers", "decoder_heads")}
    if family == "scmodelforge_autoencoder":
        options |= {name: size for name, size in sizes.items() if size is not None}
    else:
        for name, size in sizes.items():
            if size != KEYS[f"model.{name}"]:
                said.note(f"model.{name}", "only masked_autoencoder has a decoder")
    found = {
        "name": family,
        "dim": said["model.hidden_dim"],
        "layers": said["model.num_layers"],
        "heads": said["model.num_heads"],
        "hidden": said["model.ffn_dim"],
        "dropout": said["model.dropout"],
        "options": options,
    }
    if family == "scmodelforge":
        found["pretraining_task"] = task
    elif family == "scmodelforge_causal":
        found["pretraining_task"] = "next_gene_and_bin" if binned else "next_gene"
    if family != "scmodelforge" and said.asks("model.pretraining_task"):
        said.note("model.pretraining_task", f"{said['model.architecture']} has an objective of its own")
    return found


def _corruption(said: Said, family: str) -> Tree | None:
    ratio = said["tokenizer.masking.mask_ratio"]
    replaced, kept = said["tokenizer.masking.random_replace_ratio"], said["tokenizer.masking.keep_ratio"]
    if said.asks("model.mask_ratio") and said["model.mask_ratio"] != ratio:
        said.note("model.mask_ratio", "tokenizer.masking.mask_ratio counts")
    task = said["model.pretraining_task"]
    if family == "scmodelforge" and task != "expression_reconstruction":
        return {"name": "mask_genes", "ratio": ratio, "other": replaced, "keep": kept}
    for key in ("mask_ratio", "random_replace_ratio", "keep_ratio"):
        hides_values = family != "scmodelforge_causal" and key == "mask_ratio"
        name = f"tokenizer.masking.{key}"
        if said.asks(name) and not hides_values and said[name] != KEYS[name]:
            said.note(name, "nothing is replaced" if family != "scmodelforge_causal" else "nothing is hidden from it")
    return None if family == "scmodelforge_causal" else {"name": "mask_values", "ratio": ratio}


def _training(said: Said) -> Tree:
    name = lookup({"adamw": True, "adam": False}, said["training.optimizer.name"], "optimizer")
    settings: Tree = {
        "epochs": said["training.max_epochs"],
        "batch_size": said["training.batch_size"],
        "accumulate": said["training.gradient_accumulation"],
        "clip": said["training.gradient_clip"] or None,
        "lr": said["training.optimizer.lr"],
        "weight_decay": said["training.optimizer.weight_decay"],
        "decoupled": name,
        "precision": lookup(PRECISIONS, str(said["training.precision"]), "precision"),
        "workers": said["training.num_workers"],
        "rng": said["training.seed"],
        **_schedule(said),
        **_devices(said),
    }
    if not said.asks("training.precision"):
        settings["precision"] = "auto"
    if not said.asks("training.num_workers"):
        settings.pop("workers")
    return settings


def _schedule(said: Said) -> Tree:
    if "training.scheduler" in said.off:
        return {"schedule": "constant"}
    name = said["training.scheduler.name"]
    warmup = said["training.scheduler.warmup_steps"] / said["training.scheduler.total_steps"]
    settings = {"schedule": lookup(SCHEDULES, name, "schedule"), "warmup": warmup if name != "cosine" else 0.0}
    if said.has("training.scheduler"):
        steps = f"{said['training.scheduler.warmup_steps']} of {said['training.scheduler.total_steps']:,} steps"
        for key in ("warmup_steps", "total_steps"):
            if said.asks(f"training.scheduler.{key}"):
                said.note(f"training.scheduler.{key}", f"{steps} are {warmup:.1%} of the run, however long it is")
    return settings


def _devices(said: Said) -> Tree:
    import torch  # slow to import

    wanted, there = said["training.num_gpus"], torch.cuda.device_count()
    n = there if wanted is None else min(wanted, there)
    if wanted is not None and wanted > there:
        said.note("training.num_gpus", f"there are {there}")
    settings: Tree = {"devices": max(n, 1)}
    if n == 0 and wanted is not None:
        settings["accelerator"] = "cpu" if wanted == 0 else "auto"
    strategy = said["training.strategy"]
    sharded = strategy == "fsdp" or (said.has("training.fsdp") and "training.fsdp" not in said.off and n > 1)
    if sharded:
        settings["strategy"] = "fsdp"
        if said["training.fsdp.sharding_strategy"] != "FULL_SHARD":
            said.note("training.fsdp.sharding_strategy", "weights, gradients and states are all cut")
        if said["training.fsdp.cpu_offload"]:
            raise ValueError(
                "Expected `training.fsdp.cpu_offload` to be false, found true: nothing is kept on the CPU."
            )
    elif n > 1:
        settings["strategy"] = strategy
    if said["training.fsdp.activation_checkpointing"]:
        settings["gradient_checkpointing"] = True
    said.read |= {key for key in KEYS if key.startswith("training.fsdp.") and key not in _WITHOUT_EFFECT}
    return settings


def _sampling(said: Said) -> Tree:
    if said["training.sampling.strategy"] == "random":
        said.read |= {key for key in KEYS if key.startswith("training.sampling.")}
        return {}
    return {
        "sampling": _balanced(said),
        "label_key": said["training.sampling.label_key"],
        "replacement": said["training.sampling.replacement"],
        "curriculum": said["training.sampling.curriculum_warmup_epochs"],
    }


def _balanced(said: Said) -> str:
    known = {"random": "random", "weighted": "balanced"}
    if said.command == "finetune":
        for key in ("label_key", "replacement", "curriculum_warmup_epochs"):
            name = f"training.sampling.{key}"
            if said.asks(name) and said[name] not in (KEYS[name], said["finetune.label_key"]):
                said.note(name, "classes are those of finetune.label_key, each drawn as often from the start")
    return lookup(known, said["training.sampling.strategy"], "sampling strategy")


def _loggers(said: Said) -> list[Tree]:
    kind = said["training.logger"]
    project, name = said["training.wandb_project"], said["training.run_name"]
    if not said.asks("training.logger") or kind in (None, "none"):
        return []
    lookup({"wandb": 1, "tensorboard": 1, "csv": 1}, kind, "logger")
    entry: Tree = {"kind": kind, "project": project}
    if name is not None:
        entry["name"] = name
    if kind == "wandb":
        from importlib.util import find_spec  # for this alone

        if find_spec("wandb") is None:
            said.note("training.logger", "wandb is not installed: numbers go to metrics.csv instead")
            return [{**entry, "kind": "csv"}]
        entry["offline"] = not _logged_in()
        if entry["offline"]:
            said.note("training.logger", "nobody is logged in: the run stays on this machine until `wandb sync`")
    return [entry]


def _logged_in() -> bool:
    """Whether Weights & Biases has a key to send with, without asking it."""
    import os  # for this alone
    from netrc import NetrcParseError, netrc  # for this alone

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False


def _probe(said: Said) -> Tree | None:
    asked = [_benchmark(entry) for entry in said["eval.benchmarks"] or []]
    probes = [entry for entry in asked if entry["name"] == "linear_probe"]
    others = sorted({entry["name"] for entry in asked} - {"linear_probe"})
    if others:
        said.note("eval.benchmarks", f"{', '.join(others)} are for `benchmark`; training has the linear probe")
    if not probes:
        return None
    if said["training.val_split"] == 0:
        raise ValueError(
            "Expected `training.val_split` above 0 for `eval.benchmarks`, whose cells are held out, found 0."
        )
    if set(probes[0]) - {"name", "label_key", "dataset"}:
        said.note("eval.benchmarks", "the probe is fitted to training cells and scored on those held out")
    return {"label_key": probes[0].get("label_key", "cell_type"), "every": said["eval.every_n_epochs"]}


_RENAMED: dict[str, dict[str, str | None]] = {
    "linear_probe": {"cell_type_key": "label_key", "seed": None},
    "embedding_quality": {"cell_type_key": "label_key", "n_neighbors": None},
    "perturbation": {
        "perturbation_key": "condition_key",
        "control_label": "control",
        "test_fraction": "test_size",
        "seed": None,
    },
    "grn_inference": {"network_file": "network", "ground_truth": "network", "min_cells_per_gene": "min_cells"},
}
_DEFAULTS: dict[str, Tree] = {
    "embedding_quality": {"batch_key": "batch"},
    "perturbation": {"condition_key": "perturbation", "control": "control"},
}


def _benchmark(entry: Any) -> Tree:
    """One entry of ``eval.benchmarks`` in this package's words."""
    given: Tree = {"name": entry} if isinstance(entry, str) else dict(entry)
    if "name" not in given:
        raise ValueError(f"Expected a `name` in every entry of `eval.benchmarks`, found {entry!r}.")
    name = given.pop("name")
    renamed = lookup(_RENAMED, name, "benchmark")
    params: Tree = given.pop("params", None) or {}
    values = given | params
    found: Tree = {"name": name, **_DEFAULTS.get(str(name), {})}
    for key, value in values.items():
        ours = renamed.get(key, key)
        if ours is None:
            raise ValueError(
                f"Expected no {key!r} for the benchmark {name!r}, found {value!r}. Seeds are those of --rng and --n_seeds, and "
                "neighbours those that the scores ask for."
            )
        found[ours] = value
    return found


def _lora(said: Said) -> Tree:
    if said["finetune.lora.bias"] != "none":
        raise ValueError(
            f"Expected `finetune.lora.bias` 'none', found {said['finetune.lora.bias']!r}: biases are kept."
        )
    lora = {
        "rank": said["finetune.lora.rank"],
        "alpha": float(said["finetune.lora.alpha"]),
        "dropout": said["finetune.lora.dropout"],
    }
    targets = said["finetune.lora.target_modules"]
    if targets is not None:
        lora["targets"] = [TARGETS.get(name, name) for name in targets]
    return lora


# ------------------------------------------------------------------------------------------------------------ parts


def _compare(said: Said, model: str | None) -> None:
    """Warn where a file describes another model than the checkpoint, which counts."""
    said.read |= {key for key in KEYS if key.startswith(("model.", "tokenizer."))}
    asked = {key for key in said.given if key in _DESCRIBED}
    if model is None or not asked:
        return
    from scgpt_tools.models import formats, zoo  # torch

    config = formats.read(zoo.fetch(model)).config
    for key in sorted(asked):
        found = _DESCRIBED[key](config)
        if said.given[key] != found:
            said.note(key, f"the checkpoint says, {found!r}")


_DESCRIBED: dict[str, Callable[[Any], Any]] = {
    "model.architecture": lambda config: {ours: theirs for theirs, ours in ARCHITECTURES.items()}.get(
        config.family, config.family
    ),
    "model.hidden_dim": lambda config: config.dim,
    "model.num_layers": lambda config: config.encoder.layers,
    "model.num_heads": lambda config: config.encoder.heads,
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


def _one_path(said: Said) -> str:
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
    keys = set(_flat(settings))
    own = {key for key in keys if key in KEYS and key not in _SHARED}
    native = {key.partition(".")[0] for key in keys} & {*known} - {"data", "tokenizer", "model"}
    return bool(own) or (foreign and not native and bool(keys))


def _is_ours(command: str, key: tuple[str, ...]) -> bool:
    """Whether a setting of a section of its files exists here, too."""
    if command != "pretrain" or len(key) < 2:
        return False
    from scgpt_tools.train.collection import DataConfig  # imports torch
    from scgpt_tools.train.pretrain import FamilyConfig  # torch

    kinds = {"model": FamilyConfig, "data": DataConfig}
    return key[0] == "tokenizer" or (key[0] in kinds and key[1] in {field.name for field in fields(kinds[key[0]])})


def _flat(settings: Mapping[str, Any]) -> Tree:
    """Values by dotted keys, those that are mappings of anything as wholes."""
    found: Tree = {}
    for key, value in flat(settings).items():
        whole = next((name for name in _OPEN if key.startswith(f"{name}.")), None)
        if whole is None:
            found[key] = value
        else:
            found[whole] = _at(settings, whole)
    return found


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _has(settings: Mapping[str, Any], key: str) -> bool:
    *sections, last = key.split(".")
    value: Any = _at(settings, ".".join(sections)) if sections else settings
    return isinstance(value, Mapping) and last in value
