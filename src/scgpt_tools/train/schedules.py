"""Schedules of the learning rate with cycles, as torch has them: each changes a factor of every group's rate (DeepSC)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from torch.optim.lr_scheduler import LambdaLR

from scgpt_tools._validate import check_choice, check_fraction, check_integer, check_number

if TYPE_CHECKING:
    from torch.optim import Optimizer


START = 0.01
"""Share of the peak at which a warm-up begins that does not begin at a floor."""


class RestartsWithWarmup(LambdaLR):
    """Cycles of a linear warm-up from a floor and a cosine back to it; each peak is lower than the last.

    Parameters
    ----------
    optimizer
        What to schedule; the rate of each of its groups is the peak of the first cycle.
    cycle_steps
        Optimiser steps of the first cycle, its warm-up included.
    warmup_steps
        Steps of each warm-up.
    min_lr
        The floor, for all groups.
    gamma
        Factor from one peak to the next.
    cycle_mult
        Factor from the cosine of one cycle to that of the next.
    last_epoch
        Steps that were made before; -1 for none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        cycle_steps: int,
        warmup_steps: int,
        min_lr: float = 5e-6,
        gamma: float = 0.9,
        cycle_mult: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        check_integer("warmup_steps", warmup_steps, least=0)
        check_integer("cycle_steps", cycle_steps, least=warmup_steps + 1)
        check_number("min_lr", min_lr, least=0)
        check_fraction("gamma", gamma, zero=False)
        check_number("cycle_mult", cycle_mult, above=0)
        shape = (cycle_steps, warmup_steps, cycle_mult)
        rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        super().__init__(optimizer, [_restarts(rate, min_lr, gamma, *shape) for rate in rates], last_epoch=last_epoch)


class WarmupCosineCycles(LambdaLR):
    """A linear warm-up from a hundredth, then cycles of a cosine to 0, each peak lower than the last.

    Parameters
    ----------
    optimizer
        What to schedule; all of its groups are.
    warmup_steps
        Optimiser steps of the warm-up.
    cycle_steps
        Steps of a cycle; ``None`` for three times the warm-up.
    decay
        Factor from one peak to the next.
    exact
        Begin the first cycle at its peak.  The original begins one step before, below the peak.
    last_epoch
        Steps that were made before; -1 for none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        cycle_steps: int | None = None,
        decay: float = 0.9,
        exact: bool = False,
        last_epoch: int = -1,
    ) -> None:
        check_integer("warmup_steps", warmup_steps)
        check_fraction("decay", decay, zero=False)
        period = 3 * warmup_steps if cycle_steps is None else check_integer("cycle_steps", cycle_steps)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return _warmed(step, warmup_steps)
            place = step - warmup_steps - (0 if exact else 1)
            cycle = max(place // period, 0)
            return float(decay**cycle * (1 + math.cos(math.pi * (place - cycle * period) / period)) / 2)

        super().__init__(optimizer, factor, last_epoch=last_epoch)


class WarmRestarts(LambdaLR):
    """A linear warm-up from a hundredth, then cosines to 0 that begin again at the peak.

    Parameters
    ----------
    optimizer
        What to schedule.
    warmup_steps
        Optimiser steps of the warm-up and of each cosine.
    last_epoch
        Steps that were made before; -1 for none.
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int, last_epoch: int = -1) -> None:
        check_integer("warmup_steps", warmup_steps)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return _warmed(step, warmup_steps)
            return (1 + math.cos(math.pi * ((step - warmup_steps) % warmup_steps) / warmup_steps)) / 2

        super().__init__(optimizer, factor, last_epoch=last_epoch)


def _warmed(step: int, steps: int) -> float:
    """Factor of a step of a linear warm-up."""
    return START + (1 - START) * step / steps


def _restarts(peak: float, floor: float, gamma: float, steps: int, warmup: int, multiple: float) -> Any:
    """Factor of one group's rate at each step."""

    def factor(step: int) -> float:
        cycle, place, length = 0, step, steps
        while place >= length:
            place -= length
            cycle += 1
            length = max(int((length - warmup) * multiple) + warmup, warmup + 1)
        top = peak * gamma**cycle
        if step == 0:
            rate = floor  # also without a warm-up, as in the original
        elif place < warmup:
            rate = floor + (top - floor) * place / warmup
        else:
            rate = floor + (top - floor) * (1 + math.cos(math.pi * (place - warmup) / (length - warmup))) / 2
        return rate / peak

    return factor


class LinearWarmup(LambdaLR):
    """A linear warm-up from 0, then a cosine or a line down to 0 (scModelForge).

    Parameters
    ----------
    optimizer
        What to schedule.
    total_steps
        Optimiser steps of the whole run.
    warmup_steps
        Steps of the warm-up.
    shape
        What follows it.
    clamped
        Stay at 0 after the last step.  scModelForge's cosine rises again; its line does not.
    last_epoch
        Steps that were made before; -1 for none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        warmup_steps: int = 0,
        shape: Literal["cosine", "linear"] = "cosine",
        clamped: bool = True,
        last_epoch: int = -1,
    ) -> None:
        check_integer("total_steps", total_steps)
        check_integer("warmup_steps", warmup_steps, least=0)
        check_choice("shape", shape, ("cosine", "linear"))

        def factor(step: int) -> float:
            if step < warmup_steps:
                return step / warmup_steps
            progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            if shape == "linear":
                return max(0.0, 1 - progress)
            return (1 + math.cos(math.pi * (min(1.0, progress) if clamped else progress))) / 2

        super().__init__(optimizer, factor, last_epoch=last_epoch)
