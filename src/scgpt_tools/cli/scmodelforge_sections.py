"""Sections of scModelForge's files as settings of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import lookup
from scgpt_tools.cli.scmodelforge_keys import KEYS, WITHOUT_EFFECT

if TYPE_CHECKING:
    from scgpt_tools.cli.configs import Tree
    from scgpt_tools.cli.scmodelforge_said import Said

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
# Cells that are read together where a file is read in pieces.
_RUN = 256


def data_of(said: Said) -> Tree:
    """Which cells to train on."""
    paths: list[str] = list(said["data.paths"])
    settings: Tree = {}
    sources = {"local": False, "cellxgene_census": True}
    if lookup(sources, said["data.source"], "source of data"):
        settings["census"] = _census(said)
        if paths:
            said.note("data.paths", "cells are those of data.census")
            paths = []
    if said["data.shards.enabled"]:
        paths = [said["data.shards.shard_dir"]]
        if not paths[0]:
            raise ValueError(
                "Expected `data.shards.shard_dir`, the folder of shards, where they are enabled, found none."
            )
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
    if said["data.streaming"] and said["training.sampling.strategy"] != "random":
        said.note("data.streaming", "training.sampling draws from all cells")
        said.read |= {"data.streaming_chunk_size", "data.streaming_shuffle_buffer"}
    elif said["data.streaming"]:
        block = min(_RUN, said["data.streaming_chunk_size"])
        if said["data.streaming_chunk_size"] != KEYS["data.streaming_chunk_size"]:
            said.note("data.streaming_chunk_size", f"runs of {block} neighbouring cells are read")
        settings |= {"sampling": "blocks", "block": block}
        settings["blocks"] = max(1, said["data.streaming_shuffle_buffer"] // block)
    return settings


def _census(said: Said) -> Tree:
    found = {
        "organism": said["data.census.organism"].lower().replace(" ", "_"),
        "version": said["data.census.census_version"],
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


def vocabulary_of(said: Said) -> Tree:
    """Which genes become tokens."""
    name = said["data.gene_vocab"]
    # Where the file says nothing, genes of the data are taken, as the original does whatever it says.
    given = name if said.asks("data.gene_vocab") else None
    found: Tree = {"highly_variable": said["data.preprocessing.hvg_selection"]}
    if given is None or given == "from_data":
        return found
    return found | ({"path": given} if str(given).endswith(".json") else {"name": given})


def tokenizer_of(said: Said) -> Tree:
    """How cells become tokens."""
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
    tokens["target_sum"] = target_sum_of(said)
    tokens["values"] = "log1p" if said["data.preprocessing.log1p"] else "raw"
    tokens["expects"] = "any" if tokens["target_sum"] is None else "counts"
    tokens["cls"] = said["tokenizer.prepend_cls"]
    if method:
        tokens["edges"] = None
    return tokens


def target_sum_of(said: Said) -> float | None:
    """Counts that each cell is scaled to; ``None`` for cells as they are."""
    known = {"library_size": True, "none": False}
    scaled = lookup(known, said["data.preprocessing.normalize"] or "none", "normalisation")
    total = float(said["data.preprocessing.target_sum"])
    return total if scaled else None


def family_of(said: Said, family: str, *, binned: bool) -> Tree:
    """Architecture, sizes and what to pre-train for."""
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


def corruption_of(said: Said, family: str) -> Tree | None:
    """What is hidden; ``None`` for what the family's task hides."""
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


def training_of(said: Said) -> Tree:
    """How long, how fast and on what to train."""
    name = lookup({"adamw": True, "adam": False}, said["training.optimizer.name"], "optimizer")
    settings: Tree = {
        "epochs": said["training.max_epochs"],
        "batch_size": said["training.batch_size"],
        "accumulate": said["training.gradient_accumulation"],
        "clip": said["training.gradient_clip"] or None,
        "lr": said["training.optimizer.lr"],
        "weight_decay": said["training.optimizer.weight_decay"],
        "decoupled": name,
        "precision": lookup(PRECISIONS, said["training.precision"], "precision"),
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
    first, total = said["training.scheduler.warmup_steps"], said["training.scheduler.total_steps"]
    if not 0 <= first < total:
        raise ValueError(
            f"Expected `training.scheduler.warmup_steps` below `training.scheduler.total_steps`, found {first} of {total}."
        )
    warmup = first / total
    settings = {"schedule": lookup(SCHEDULES, name, "schedule"), "warmup": warmup if name != "cosine" else 0.0}
    for key in ("warmup_steps", "total_steps"):
        if said.asks(f"training.scheduler.{key}"):
            steps = f"{first} of {total:,} steps are {warmup:.1%} of the run, however long it is"
            said.note(f"training.scheduler.{key}", steps)
    return settings


def _devices(said: Said) -> Tree:
    import torch  # slow to import

    from scgpt_tools.data.processes import launched_here  # torch, too

    wanted, there = said["training.num_gpus"], torch.cuda.device_count()
    # Without GPUs it is the number of processes, where torchrun has started several.
    processes = launched_here() if not there or wanted == 0 else 1
    n = processes if processes > 1 else there if wanted in (None, -1) else min(wanted, there)
    if processes > 1 and wanted not in (None, -1, 0, processes):
        said.note("training.num_gpus", f"torchrun has started {processes} processes here")
    elif processes == 1 and wanted is not None and wanted > there:
        option = "--train.devices" if said.command == "pretrain" else "--devices"
        note = f"there are {there}" if there else f"there are 0: one process on the CPU, or as many as {option} says"
        said.note("training.num_gpus", note)
    settings: Tree = {"devices": max(n, 1)}
    if wanted == 0:
        settings["accelerator"] = "cpu"
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
    said.read |= {key for key in KEYS if key.startswith("training.fsdp.") and key not in WITHOUT_EFFECT}
    return settings


def sampling_of(said: Said) -> Tree:
    """How cells are drawn."""
    if said["training.sampling.strategy"] == "random":
        said.read |= {key for key in KEYS if key.startswith("training.sampling.")}
        return {}
    return {
        "sampling": balanced_of(said),
        "label_key": said["training.sampling.label_key"],
        "replacement": said["training.sampling.replacement"],
        "curriculum": said["training.sampling.curriculum_warmup_epochs"],
    }


def balanced_of(said: Said) -> str:
    """How cells are drawn, in the word for it."""
    known = {"random": "random", "weighted": "balanced"}
    if said.command == "finetune":
        for key in ("label_key", "replacement", "curriculum_warmup_epochs"):
            name = f"training.sampling.{key}"
            if said.asks(name) and said[name] not in (KEYS[name], said["finetune.label_key"]):
                said.note(name, "classes are those of finetune.label_key, each drawn as often from the start")
    return lookup(known, said["training.sampling.strategy"], "sampling strategy")


def loggers_of(said: Said) -> list[Tree]:
    """Where numbers go beside the history."""
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


def probe_of(said: Said) -> Tree | None:
    """The probe of the embedding in training, if it is asked for."""
    asked = [benchmark_of(entry) for entry in said["eval.benchmarks"] or []]
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


def benchmark_of(entry: Any) -> Tree:
    """One entry of ``eval.benchmarks`` in this package's words."""
    given: Tree = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
    if "name" not in given:
        raise ValueError(
            f"Expected every entry of `eval.benchmarks` to be a name, or a mapping with a `name`, found {entry!r}."
        )
    name = given.pop("name")
    renamed = lookup(_RENAMED, name, "benchmark")
    params: Any = given.pop("params", None) or {}
    if not isinstance(params, Mapping):
        raise TypeError(f"Expected `params` of the benchmark {name!r} to be a mapping, found {params!r}.")
    values = {**given, **params}
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


def lora_of(said: Said) -> Tree:
    """Low-rank adapters."""
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
