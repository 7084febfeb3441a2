"""How long and how fast a model learns where nobody says: in steps of the optimiser, and by the width of the model.

Epochs of a small table have few steps: with a fixed number of epochs a hundred cells teach a model nothing.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools.train.runs import begun_with

if TYPE_CHECKING:
    from collections.abc import Collection

    from scgpt_tools.train.fit import FitConfig

PATIENCE = 100
"""Steps without a better validation metric after which a model has converged; it makes as many at least, and the epochs that
the task has for it."""
MOST = 2_000
"""Steps after which to stop anyway, where the usual epochs have fewer."""
WITHOUT_VALIDATION = 300
"""Least number of steps where no held-out cells tell when to stop."""
WIDTH = 512
"""Width of the models that the usual learning rates are for, scGPT's."""
LARGEST_SHARE, FEW = 0.25, 50


def automatic_share(n_cells: int, usual: float = 0.1) -> float:
    """Share of the cells to validate on: the usual one, and of few cells as much as gives 50, up to a quarter."""
    return min(LARGEST_SHARE, max(usual, FEW / max(n_cells, 1)))


def paced(settings: FitConfig, said: Collection[str], *, width: int, n_train: int, n_validation: int) -> FitConfig:
    """Settings of a run on so many cells.

    ``said``: fields that the user or the family has set, which stay as they are; with ``epochs`` or ``max_steps`` the
    length of the run does.  ``width``: of the model; narrower models than scGPT's learn at a rate that rises in inverse
    proportion, as Adam's steps have to for the same change of what a layer gives (Yang et al., 2022).
    """
    changes: dict[str, Any] = {}
    if "lr" not in said and width < WIDTH:
        changes["lr"] = settings.lr * WIDTH / width
    if not {"epochs", "max_steps"} & set(said):
        per_epoch = max(1, ceil(n_train / (settings.batch_size * settings.accumulate * _processes(settings))))
        least = MOST if n_validation else WITHOUT_VALIDATION
        changes["epochs"] = max(settings.epochs, ceil(least / per_epoch))
        if n_validation and "patience" not in said:
            changes["patience"] = max(settings.patience or 2, ceil(PATIENCE / per_epoch))
        if not {"step_epochs", "schedule"} & set(said):
            # A tenth less each epoch would end the learning of few cells before it has begun.
            changes["step_epochs"] = max(settings.step_epochs, ceil(PATIENCE / per_epoch))
    if settings.resume and settings.folder is not None and "step_epochs" not in said:
        # However long it is to be now, and whoever shares its cells, a run keeps the schedule that it began with.
        begun = begun_with(settings.folder).get("step_epochs", changes.get("step_epochs"))
        changes |= {} if begun is None else {"step_epochs": begun}
    return replace(settings, **changes)


def _processes(settings: FitConfig) -> int:
    """How many share the cells of an epoch."""
    if settings.devices == "auto":
        devices = 1 if settings.accelerator == "cpu" else max(1, torch.cuda.device_count())
    elif isinstance(settings.devices, int):
        devices = settings.devices
    else:
        devices = len([number for number in settings.devices.split(",") if number.strip()])
    return devices * settings.nodes
