"""A model with its objectives as Lightning trains it: the same few lines for every task."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import numpy as np
import torch
from torch import nn

from scgpt_tools.train.diagnosis import LossNotFiniteError, describe_failure, describe_gradients, not_finite
from scgpt_tools.train.optim import OptimizerConfig, make_optimizer, make_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.executor import Read
    from scgpt_tools.nn.output import CellOutput
    from scgpt_tools.objectives.base import Objective, View
    from scgpt_tools.objectives.profiles import ProfileSums
    from scgpt_tools.tokens.batch import TokenBatch


class CellModule(lightning.LightningModule):
    """Runs the views that the objectives need, sums their weighted terms, and logs each by name.

    Parameters
    ----------
    model
        The network to train.
    objectives
        Loss terms; those of weight 0 are dropped.
    optimizer
        Rates, decay and schedule.
    seed
        Seed of dropout.  Each step draws from a stream of its own, so that a run that goes on after a checkpoint
        draws what it would have drawn.
    """

    sharded: ClassVar[bool] = False

    def __init__(
        self, model: CellModel, objectives: Sequence[Objective], optimizer: OptimizerConfig, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = tuple(objective for objective in objectives if objective.weight > 0)
        self.optimizer_config = optimizer
        self.seed = seed
        self.epoch_means = EpochMeans()
        self._collectors: list[ProfileSums] = []
        self.run: str | None = None
        """Name of the run, which its checkpoints are marked with."""

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Compute the loss of a minibatch."""
        torch.manual_seed(_stream(self.seed, self.current_epoch, batch_idx, self.global_rank))
        active = [term for term in self._terms() if term.from_step <= self.global_step]
        views = run_views(self.model, batch, active)
        terms = {objective.name: objective(views, batch) for objective in active}
        loss = _weighted_sum(active, terms)
        if not bool(torch.isfinite(loss)):
            raise LossNotFiniteError(self._failure(terms, batch, views["first"]))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        self.epoch_means.add(_named("train", loss, terms), len(batch))
        return loss

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log the loss of a minibatch with every term, whatever the step it begins at."""
        objectives = self._terms()
        views = run_views(self.model, batch, objectives)
        terms = {objective.name: objective(views, batch) for objective in objectives}
        loss = _weighted_sum(objectives, terms)
        if not bool(torch.isfinite(loss)):
            raise LossNotFiniteError(self._failure(terms, batch, views["first"], validating=True))
        measures = {name: value for objective in objectives for name, value in objective.measures(views, batch).items()}
        self.log_dict(_named("validation", loss, terms | measures), batch_size=len(batch), sync_dist=True)
        for collector in self._collectors:
            collector.add(views, batch)

    def on_validation_epoch_start(self) -> None:
        """Begin to collect anew."""
        found = (objective.collector() for objective in self.objectives)
        self._collectors = [collector for collector in found if collector is not None]

    def on_validation_epoch_end(self) -> None:
        """Log what is computed from all validation cells of all processes together."""
        for collector in self._collectors:
            measures = {f"validation_{name}": value for name, value in collector.gathered().measures().items()}
            self.log_dict(measures, sync_dist=True)
        self._collectors = []

    def _terms(self) -> list[Objective]:
        """Loss terms as they are in this epoch."""
        return [objective.at_epoch(self.current_epoch) for objective in self.objectives]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Refuse an update that would destroy the weights; with float16 the loss scaling leaves such updates out.

        Logs the norm of all gradients together, before it is clipped.
        """
        norm = self.gradient_norm()
        if not str(self.trainer.precision).startswith("16"):
            bad = [] if bool(torch.isfinite(norm)) else self.bad_gradients()
            if bad:
                raise LossNotFiniteError(describe_gradients(bad, step=self.global_step, lr=self._lr))
        self.log("gradient_norm", norm)
        if bool(torch.isfinite(norm)):
            self.epoch_means.add({"train_gradient_norm": norm}, 1)

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients together, the same in every process."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # Of sharded gradients it is in pieces.
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def bad_gradients(self) -> list[str]:
        """Names of the parameters whose gradients are not finite."""
        return not_finite((name, parameter.grad) for name, parameter in self.model.named_parameters())

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch, those of an interrupted epoch over both of its parts."""
        self.log_dict(self.epoch_means.take(self.device), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of an epoch that is under way, and refuse to replace a good state by a destroyed one."""
        bad = self.bad_weights(checkpoint)
        if bad:
            raise LossNotFiniteError(
                f"Expected finite weights after step {self.global_step}, found NaN or infinity in {len(bad)} tensors, "
                f"the first being {bad[0]!r}. Lower the learning rate (it was {self._lr:.1e}), or warm up longer; "
                "the checkpoint written before stays."
            )
        checkpoint["epoch_means"] = self.epoch_means.state_dict()
        checkpoint["sharded"] = self.sharded
        checkpoint["run"] = self.run

    def bad_weights(self, checkpoint: dict[str, Any]) -> list[str]:
        """Names of the tensors of a checkpoint that are not finite."""
        return not_finite(checkpoint["state_dict"].items())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with those sums."""
        self.epoch_means.load_state_dict(checkpoint["epoch_means"])

    def configure_optimizers(self) -> Any:
        """Make the optimiser and the schedule, which advances with every optimiser step."""
        mixed = not str(self.trainer.precision).startswith("32")
        optimizer = make_optimizer(self.model, self.optimizer_config, mixed_precision=mixed)
        steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = max(1, -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches))
        schedule = make_schedule(optimizer, self.optimizer_config, steps=steps, steps_per_epoch=int(per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _failure(
        self, terms: dict[str, Tensor], batch: TokenBatch, output: CellOutput, *, validating: bool = False
    ) -> str:
        return describe_failure(
            terms,
            batch,
            output,
            self.model,
            step=self.global_step,
            precision=str(self.trainer.precision),
            lr=self._lr,
            validating=validating,
        )

    @property
    def _lr(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])


class EpochMeans:
    """Means over the cells of an epoch, which survive an interruption."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._cells: dict[str, int] = {}

    def add(self, numbers: Mapping[str, Tensor], n_cells: int) -> None:
        """Count a minibatch; each number has a mean of its own, for some begin later in a run."""
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().cpu().double() * n_cells
            self._cells[name] = self._cells.get(name, 0) + n_cells

    def take(self, device: torch.device) -> dict[str, Tensor]:
        """Return the means and begin anew."""
        means = {name: (total / self._cells[name]).float().to(device) for name, total in self._sums.items()}
        self._sums, self._cells = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": dict(self._sums), "cells": dict(self._cells)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with sums and counts."""
        self._sums, self._cells = dict(state["sums"]), dict(state["cells"])


def run_views(model: CellModel, batch: TokenBatch, objectives: Sequence[Objective]) -> dict[View, CellOutput]:
    """Run the forward passes that some objectives need, each with the heads and the tokens that are read from it."""

    def run(view: View, **options: Any) -> CellOutput:
        readers = [objective for objective in objectives if objective.views[-1] == view]
        heads = tuple(dict.fromkeys(head for objective in readers for head in objective.heads))
        return model(batch, heads, read=_read(model, objectives, view), **options)

    views: dict[View, CellOutput] = {"first": run("first")}
    wanted = {view for objective in objectives for view in objective.views}
    if "again" in wanted:
        with _frozen_statistics(model):
            views["again"] = run("again")
    if "from_cell" in wanted:
        with _frozen_statistics(model):
            views["from_cell"] = run("from_cell", cell=views["first"].cell.detach())
    return views


def _read(model: CellModel, objectives: Sequence[Objective], view: View) -> Read:
    """Which tokens of a view some objectives read after the encoder, by what they say and what their heads read."""
    readers = [objective for objective in objectives if objective.views[-1] == view]
    if model.config.pooling != "cls" and any(objective.cells and view in objective.views for objective in objectives):
        return "all"
    heads = model.config.heads
    from_others = any(not heads[name].of_its_own for objective in readers for name in objective.heads if name in heads)
    tokens = {objective.tokens for objective in readers}
    if from_others or "all" in tokens:
        return "all"
    return "hidden" if "hidden" in tokens else "first"


def _named(part: str, loss: Tensor, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}_loss": loss, **{f"{part}_{name}": value for name, value in numbers.items()}}


def _weighted_sum(objectives: Sequence[Objective], terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([objective.weight * terms[objective.name] for objective in objectives]).sum()


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep a second pass over the same cells from counting twice in running statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _stream(*numbers: int) -> int:
    """Seed that differs in all bits for numbers that differ a little."""
    return int(np.random.default_rng(numbers).integers(2**62))
