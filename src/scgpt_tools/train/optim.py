"""What the optimiser does to which parameters, and how the learning rate runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from scgpt_tools._docs import described_fields
from scgpt_tools._validate import check_choice, check_flag, check_fraction, check_integer, check_number
from scgpt_tools.config import settle_fields
from scgpt_tools.nn.transformer import Block
from scgpt_tools.train.schedules import RestartsWithWarmup, WarmRestarts, WarmupCosineCycles

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from scgpt_tools.models.cell_model import CellModel

Schedule: TypeAlias = Literal["constant", "cosine", "linear", "step", "restarts", "cosine_cycles", "warm_restarts"]
Decayed: TypeAlias = Literal["matrices", "all_but_biases"]
CYCLES = ("restarts", "cosine_cycles", "warm_restarts")

# The floor of "restarts", as a part of the highest rate: 5e-6 of 3e-4.
_FLOOR = 1 / 60

# How a step is computed, which suits the device and the precision of a run and is not what the run learns.
_WAYS = ("fused", "foreach", "capturable")

# Norms and biases (vectors and numbers) are not pulled to zero: that would fight what they are there for.
_NORMS = (nn.LayerNorm, nn.BatchNorm1d)


@described_fields
@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, and a schedule.

    The defaults are those that scGPT was fine-tuned with; without weight decay this is plain Adam.
    """

    lr: float = 1e-4
    """Highest learning rate."""
    head_lr: float | None = None
    """Learning rate of the parts that a task brings with it: heads, context, flags of perturbed genes; ``None`` for
    ``lr``."""
    layer_decay: float = 1.0
    """Factor of the learning rate from one layer of the encoder to the one below, and from the first to the embedder.
    The last layer has ``lr``."""
    weight_decay: float = 0.0
    """Decay of matrices and tables; norms and biases never decay."""
    decayed: Decayed = "matrices"
    """What decays.  ``"all_but_biases"`` pulls the norms within layers and single vectors to zero as well, as scModelForge
    does; other norms never decay."""
    decoupled: bool = True
    """Decay weights by themselves (AdamW); without, by the gradient, as scModelForge's ``adam`` does."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How fast Adam forgets the mean and the square of gradients."""
    eps: float = 1e-8
    """Smallest divisor of Adam's steps.  scGPT takes 1e-4 with float16, where smaller numbers drown."""
    schedule: Schedule = "step"
    """After the warm-up: the same rate, half a cosine or a line down to ``end``, or a factor every epoch.  Or cycles, each of three
    times the warm-up, with peaks that fall by ``step_factor``: ``"restarts"`` warms up in each of them, from a sixtieth
    of the rate (:class:`~scgpt_tools.train.schedules.RestartsWithWarmup`), ``"cosine_cycles"`` in the first
    (:class:`~scgpt_tools.train.schedules.WarmupCosineCycles`); ``"warm_restarts"`` has cycles as long as the warm-up with
    equal peaks (:class:`~scgpt_tools.train.schedules.WarmRestarts`)."""
    warmup: float = 0.0
    """Optimiser steps of linear warm-up; below 1 a share of all steps.  scGPT's pre-training takes 10,000."""
    end: float = 0.0
    """Last learning rate of the cosine or the line, as a part of the highest."""
    step_factor: float = 0.9
    """Factor of the ``"step"`` schedule and from one cycle to the next; 0.9 in scGPT's tutorials and in DeepSC."""
    step_epochs: int = 1
    """Epochs between two such factors."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("lr", "head_lr", "eps"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        for name in ("weight_decay", "warmup"):
            check_number(name, getattr(self, name), least=0)
        for beta in self.betas:
            check_fraction("betas", beta, one=False)
        check_fraction("end", self.end)
        check_fraction("step_factor", self.step_factor, zero=False)
        check_fraction("layer_decay", self.layer_decay, zero=False)
        check_integer("step_epochs", self.step_epochs)
        check_flag("decoupled", self.decoupled)
        check_choice("schedule", self.schedule, get_args(Schedule))
        check_choice("decayed", self.decayed, get_args(Decayed))
        if self.schedule in CYCLES and not self.warmup:
            raise ValueError(f"Expected `warmup` for schedule={self.schedule!r}, whose cycles it measures, found 0.")


def parameter_groups(model: CellModel, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay.

    ``model``: the model; it says what a task brings with it and what the stages of its encoder are.  Returns groups
    named by part and decay, the backbone's also by its depth where the rate depends on that; groups without parameters
    are left out.
    """
    decays = _decaying(model) if config.decayed == "matrices" else _all_but_biases(model)
    new = {id(parameter) for part in model.by_task for parameter in part.parameters()}
    depths = _depths(model)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, lr = "backbone", config.lr
        if id(parameter) in new:
            part, lr = "new", config.lr if config.head_lr is None else config.head_lr
        elif config.layer_decay < 1:
            depth = depths.get(id(parameter), 0)
            part, lr = f"backbone.{depth}", config.lr * config.layer_decay**depth
        decay = "decay" if name in decays else "no_decay"
        group = groups.setdefault(
            f"{part}.{decay}",
            {
                "name": f"{part}.{decay}",
                "params": [],
                "lr": lr,
                "weight_decay": config.weight_decay if decay == "decay" else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("Expected a model with parameters to train, found all of them frozen.")
    # The rate of the first group is the one that the history shows.
    return sorted(groups.values(), key=lambda group: group["name"])


def make_optimizer(model: CellModel, config: OptimizerConfig, *, mixed_precision: bool = False) -> Optimizer:
    """Adam over the trainable parameters of a model."""
    adam = torch.optim.AdamW if config.decoupled else torch.optim.Adam
    groups = parameter_groups(model, config)
    parameters = [parameter for group in groups for parameter in group["params"]]
    # One pass over the numbers of a tensor in place of one for each operation.  Pieces of cut weights have none, and with
    # mixed precision Lightning does not clip gradients before such a step.
    whole = all(one.device.type == "cpu" and not hasattr(one, "to_local") for one in parameters)
    fused = True if whole and not mixed_precision else None
    optimizer = adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_in_own_ways)
    return optimizer


def _in_own_ways(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to go on from, which may come from another device or precision, with steps computed as they are here."""
    ways = [{name: group[name] for name in _WAYS} for group in optimizer.param_groups]
    if len(ways) != len(state["param_groups"]):  # refused by torch
        return state
    return {**state, "param_groups": [kept | own for kept, own in zip(state["param_groups"], ways, strict=True)]}


def make_schedule(optimizer: Optimizer, config: OptimizerConfig, *, steps: int, steps_per_epoch: int) -> LambdaLR:
    """Schedule to advance after every optimiser step."""
    if config.schedule in CYCLES:
        warmup = max(1, math.ceil(config.warmup if config.warmup >= 1 else config.warmup * steps))
        if config.schedule == "restarts":
            return RestartsWithWarmup(
                optimizer,
                cycle_steps=3 * warmup,
                warmup_steps=warmup,
                min_lr=config.lr * _FLOOR,
                gamma=config.step_factor,
            )
        if config.schedule == "cosine_cycles":
            return WarmupCosineCycles(optimizer, warmup_steps=warmup, decay=config.step_factor)
        return WarmRestarts(optimizer, warmup_steps=warmup)
    factor = partial(rate_factor, config=config, steps=steps, steps_per_epoch=steps_per_epoch)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def rate_factor(step: int, config: OptimizerConfig, *, steps: int, steps_per_epoch: int) -> float:
    """Part of the highest learning rate in force at a step."""
    warmup = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule in ("cosine", "linear"):
        progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
        left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return config.end + (1 - config.end) * left
    if config.schedule == "step":
        return config.step_factor ** (step // steps_per_epoch // config.step_epochs)
    return 1.0


def _depths(model: CellModel) -> dict[int, int]:
    """Stages above each parameter of the embedder and of a stage of the encoder; none above the last stage."""
    parts = [model.embedder, *model.encoder.stages]
    return {
        id(parameter): len(parts) - 1 - place for place, part in enumerate(parts) for parameter in part.parameters()
    }


def _all_but_biases(model: nn.Module) -> set[str]:
    """Names of all parameters but biases and norms outside layers."""
    layers = [f"{name}." for name, module in model.named_modules() if isinstance(module, Block)]
    outside = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, _NORMS) and not prefix.startswith(tuple(layers))
    }
    return {name for name, _ in model.named_parameters() if not name.endswith("bias")} - outside


def _decaying(model: nn.Module) -> set[str]:
    """Names of matrices and tables outside norms."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    }
