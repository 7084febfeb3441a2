"""Cycles of the learning rate by name, for any task."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.train.optim import CYCLES, OptimizerConfig, make_schedule
from scgpt_tools.train.schedules import LinearWarmup, RestartsWithWarmup, WarmRestarts, WarmupCosineCycles


def rates(config: OptimizerConfig, steps: int = 40) -> list[tuple[float, float]]:
    """Of two groups, before each step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (config.lr, 2 * config.lr)]
    optimizer = torch.optim.SGD(groups)
    plan = make_schedule(optimizer, config, steps=steps, steps_per_epoch=10)
    found = []
    for _ in range(steps):
        found.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        plan.step()
    return found


@pytest.mark.parametrize("schedule", CYCLES)
def test_all_groups_are_scheduled(schedule):
    found = rates(OptimizerConfig(lr=1e-3, schedule=schedule, warmup=0.1))
    assert max(first for first, _ in found) == pytest.approx(1e-3)
    assert max(second for _, second in found) == pytest.approx(2e-3)
    assert found[4] == pytest.approx((1e-3, 2e-3)) or schedule == "cosine_cycles"


def test_peaks_fall():
    found = [first for first, _ in rates(OptimizerConfig(lr=1e-3, schedule="restarts", warmup=4))]
    assert found[4] == pytest.approx(1e-3)
    assert found[16] == pytest.approx(0.9e-3)
    assert min(found) == pytest.approx(1e-3 / 60)


def test_warm_ups_begin_where_the_originals_do():
    """At a hundredth of the peak, or at the floor, also where there is no warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan, found = WarmRestarts(optimizer, warmup_steps=2), []
    for _ in range(5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert found == pytest.approx([0.01, 0.505, 1.0, 0.5, 1.0])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan, found = RestartsWithWarmup(optimizer, cycle_steps=2, warmup_steps=0, min_lr=0.1), []
    for _ in range(4):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert found == pytest.approx([0.1, 0.55, 0.9, 0.5])


def test_the_dip_of_the_original_can_be_left_out():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan = WarmupCosineCycles(optimizer, warmup_steps=2, exact=True)
    found = []
    for _ in range(4):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert found[2] == pytest.approx(1.0)
    assert found == pytest.approx([0.01, 0.505, 1.0, 0.9330127])


def test_cycles_need_a_length():
    with pytest.raises(ValueError, match="`warmup` for schedule='restarts'"):
        OptimizerConfig(schedule="restarts")


def warmed_up(steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plan, found = LinearWarmup(optimizer, **options), []
    for _ in range(steps):
        found.append(plan.get_last_lr()[0])
        optimizer.step()
        plan.step()
    return found


def test_a_warm_up_from_zero_and_what_follows():
    line = warmed_up(14, total_steps=10, warmup_steps=2, shape="linear")
    assert line[:4] == pytest.approx([0, 0.5, 1, 0.875])
    assert line[10:] == [0.0] * 4
    assert warmed_up(14, total_steps=10)[10:] == pytest.approx([0.0] * 4)
    assert warmed_up(14, total_steps=10, clamped=False)[13] > 0.2
    with pytest.raises(ValueError, match="`shape`"):
        warmed_up(1, total_steps=10, shape="step")
