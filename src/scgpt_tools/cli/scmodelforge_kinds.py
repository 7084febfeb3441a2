"""What kind of value each key of scModelForge's files takes, checked before anything reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from scgpt_tools.cli.scmodelforge_keys import KEYS

# Keys whose default is null, and what they are otherwise.
_NULL: dict[str, type] = {
    "data.preprocessing.hvg_selection": int,
    "data.census.obs_value_filter": str,
    "data.census.var_value_filter": str,
    "data.census.filters": dict,
    "data.census.obs_columns": list,
    "data.multi_species.ortholog_table": str,
    "data.perturbation.perturbation_key": str,
    "data.perturbation.dose_key": str,
    "data.perturbation.dose_unit": str,
    "data.gene_selection.n_genes": int,
    "data.cloud.cache_dir": str,
    "tokenizer.embedding_path": str,
    "model.ffn_dim": int,
    "model.vocab_size": int,
    "model.decoder_dim": int,
    "model.decoder_heads": int,
    "training.num_gpus": int,
    "training.run_name": str,
    "training.resume_from": str,
    "finetune.head.n_classes": int,
    "finetune.head.hidden_dim": int,
    "finetune.backbone_lr": float,
    "finetune.head_lr": float,
    "finetune.lora.target_modules": list,
    "zoo.env_dir": str,
    "zoo.python_version": str,
}
# Keys with another default that may be null.
_OR_NULL = {
    "data.gene_vocab",
    "data.preprocessing.normalize",
    "data.cloud.storage_options",
    "training.gradient_clip",
    "training.logger",
    "eval.benchmarks",
    "finetune.checkpoint_path",
}
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
# What a number has to be, where nothing behind it would say so.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.streaming_chunk_size": (lambda n: n >= 1, "at least 1"),
    "data.streaming_shuffle_buffer": (lambda n: n >= 1, "at least 1"),
    "eval.every_n_epochs": (lambda n: n >= 1, "at least 1"),
    "training.num_gpus": (lambda n: n >= -1, "at least 0, or -1 for all"),
    "training.scheduler.warmup_steps": (lambda n: n >= 0, "at least 0"),
}
_CHOICES = {
    "model.pretraining_task": ("masked_gene_prediction", "expression_reconstruction", "dual_prediction", "dual"),
    "training.strategy": ("ddp", "fsdp", "auto"),
    "training.fsdp.sharding_strategy": ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD"),
}


def settled(key: str, value: Any) -> Any:
    """Value of a key, if it is of the key's kind: numbers and dates become texts where a text is meant."""
    kind = _NULL[key] if KEYS[key] is None else type(KEYS[key])
    if value is None and (KEYS[key] is None or key in _OR_NULL):
        return None
    if kind is str and isinstance(value, int | float | date) and not isinstance(value, bool):
        value = str(value)
    if not _fits(kind, value):
        raise TypeError(f"Expected `{key}` to be {_WORDS[kind]}, found {value!r}.")
    if key in _RANGES and not _RANGES[key][0](value):
        raise ValueError(f"Expected `{key}` to be {_RANGES[key][1]}, found {value!r}.")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"Expected `{key}` to be one of {', '.join(map(repr, _CHOICES[key]))}, found {value!r}.")
    return value


def _fits(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    accepted: dict[type, Any] = {float: int | float, list: list | tuple, dict: Mapping}
    return isinstance(value, accepted.get(kind, kind))
