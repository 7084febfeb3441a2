"""What every fine-tuning task starts with: a model, cells and settings, checked before anything is opened."""

from __future__ import annotations

from dataclasses import fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_type
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import ModelConfig
from scgpt_tools.models.families import family_named, find_family
from scgpt_tools.models.formats.base import check_weights
from scgpt_tools.train.fit import FitConfig
from scgpt_tools.train.lora import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgpt_tools.models.config import ExpressionConfig
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.train.tasks.base import Task


def check_model_and_cells(model: Any, adata: Any) -> None:
    """Refuse what is no model or no table of cells."""
    check_type("model", model, (CellModel, str, PathLike))
    if not hasattr(adata, "obs_names"):
        raise TypeError(f"Expected `adata` to be an AnnData or a MuData, found {type(adata).__name__}.")


def open_model(model: CellModel | str | PathLike[str], settings: FitConfig) -> CellModel:
    """The model itself, or the one that is loaded by name or from a folder."""
    if not isinstance(model, CellModel):
        return CellModel.from_pretrained(model, device=settings.place)
    check_weights(model.state_dict(), repr(model.name))
    return model


def fit_settings(
    defaults: Mapping[str, Any], config: FitConfig | None, changes: Mapping[str, Any], *, function: str
) -> FitConfig:
    """Settings of a run."""
    known = [field.name for field in fields(FitConfig)]
    for name in changes:
        if name not in known:
            raise TypeError(absent(name, known, f"argument of {function} or field of FitConfig named"))
    if config is not None:
        check_type("config", config, FitConfig)
    return replace(FitConfig(**defaults) if config is None else config, **changes)


def of_family(model: CellModel, task: str) -> Mapping[str, Any]:
    """What the family of a model has for a task where the task has something else."""
    family = find_family(model.config)
    usual = {} if family is None else family.finetuning.get(task, {})
    known = [
        *(field.name for field in fields(FitConfig)),
        *(["dropout", "cells_per_mean"] if task == "perturb" else []),
    ]
    for name in usual:
        if name not in known:
            raise TypeError(absent(name, known, f"default of the family {model.config.family!r} for {task!r} named"))
    return usual


def authors_of(model: CellModel, task: Task[Any]) -> Mapping[str, Any]:
    """Fields of FitConfig with which a model's authors trained it for a task, where the package's defaults are others."""
    if of_family(model, task.name):
        return {}  # a family's own defaults are those of its authors
    family = find_family(model.config)
    if task.authors is None or family is None or family.original != "scgpt":
        raise ValueError(
            f"Expected a model whose authors have a recipe for task={task.name!r} with recipe='authors', found one of the family "
            f"{model.config.family!r}. Leave `recipe` out, and pass what you want to change."
        )
    return task.authors


def fit_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that are fields of FitConfig."""
    known = {field.name for field in fields(FitConfig)}
    return {name: value for name, value in settings.items() if name in known}


def low_rank(lora: LoraConfig | int | None) -> LoraConfig | None:
    """Settings of adapters from a rank."""
    return lora if lora is None or isinstance(lora, LoraConfig) else LoraConfig(rank=lora)


def perturbation_config(
    model: CellModel, *, head: ExpressionConfig | None = None, dropout: float | None = None, flag: int | None = None
) -> ModelConfig:
    """Describe the model of perturbations that a model becomes, as its family does."""
    family = family_named(model.config.family)
    if family.perturbation is None:
        raise ValueError(
            f"Expected a model that can learn perturbations, found one of the family {family.name!r}, which has no form "
            "for them."
        )
    return family.perturbation(model.config, model.vocabulary, head=head, dropout=dropout, flag=flag)


def modality_config(config: ModelConfig, tokenizer: TokenizerConfig) -> ModelConfig:
    """Describe the model of several modalities that a model becomes, as its family does."""
    family = family_named(config.family)
    if family.modalities is None:
        raise ValueError(
            f"Expected a model that can learn several modalities, found one of the family {family.name!r}, which has no "
            "form for them. Name one by `modality`."
        )
    return family.modalities(config, tokenizer)


def perturbation_model(
    model: CellModel,
    *,
    head: ExpressionConfig | None = None,
    dropout: float | None = None,
    flag: int | None = None,
    tokenizer: TokenizerConfig | None = None,
) -> CellModel:
    """Make a model of perturbations from a pre-trained one, which stays as it is.

    ``head``: head of expression; ``None`` takes the family's; ``dropout``: probability in the encoder; ``None`` keeps
    the model's; ``tokenizer``: how it is about to read cells; ``None`` takes the family's.
    """
    config = perturbation_config(model, head=head, dropout=dropout, flag=flag)
    config = config if tokenizer is None else replace(config, tokenizer=tokenizer)
    tuned = model.adapt(**{field.name: getattr(config, field.name) for field in fields(ModelConfig)})
    tuned.name = f"{model.name} (perturb)"
    return tuned
