"""Parameter groups and learning rates."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import ContextConfig
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.train.fit import FitConfig
from scgpt_tools.train.optim import OptimizerConfig, make_optimizer, make_schedule, parameter_groups, rate_factor
from scgpt_tools.train.starting import perturbation_model


def test_every_trainable_parameter_is_in_one_group(make_model):
    model = make_model()
    model.embedder.genes.table.weight.requires_grad_(False)
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1, head_lr=1e-3))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_one_pass_of_the_optimiser_is_as_many_operations(make_model):
    """On a CPU in one precision; mixed precision has its own way."""
    stepped = []
    for mixed in (False, True):
        model = make_model(dropout=0.0)
        optimizer = make_optimizer(model, OptimizerConfig(lr=1e-2, weight_decay=0.1), mixed_precision=mixed)
        assert bool(optimizer.defaults["fused"]) is not mixed
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                draw = torch.Generator().manual_seed(100 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            optimizer.step()
        stepped.append(model.state_dict())
    assert set(stepped[0]) == set(stepped[1])
    for name, tensor in stepped[0].items():
        torch.testing.assert_close(tensor, stepped[1][name], atol=1e-5, rtol=1e-4)


def test_a_state_goes_on_in_the_ways_of_the_run_that_loads_it(make_model):
    """Float16 scales gradients, which a step in one pass would have to know of."""
    model = make_model(dropout=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for mixed in (False, True):
        before, after = (
            make_optimizer(model, OptimizerConfig(), mixed_precision=precision) for precision in (mixed, not mixed)
        )
        ways = [{name: group[name] for name in ("fused", "foreach", "capturable")} for group in after.param_groups]
        before.step()
        state = before.state_dict()
        assert bool(state["param_groups"][0]["fused"]) is not bool(ways[0]["fused"])
        after.load_state_dict(state)
        assert all(group.items() >= way.items() for group, way in zip(after.param_groups, ways, strict=True))
        after.step()
        assert {int(values["step"]) for values in after.state.values()} == {2}
    with pytest.raises(ValueError, match="different number of parameter groups"):
        after.load_state_dict({**state, "param_groups": state["param_groups"][:1]})


def test_norms_and_biases_do_not_decay(make_model):
    model = make_model()
    groups = {group["name"]: group for group in parameter_groups(model, OptimizerConfig(weight_decay=0.1))}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for kind, expected in (("decay", 0.1), ("no_decay", 0.0)):
        for part in ("backbone", "new"):
            group = groups[f"{part}.{kind}"]
            assert group["weight_decay"] == expected
            for parameter in group["params"]:
                name = names[id(parameter)]
                assert name.startswith("heads.") == (part == "new")
                assert (name.endswith("bias") or "norm" in name) == (kind == "no_decay"), name


def test_heads_have_a_rate_of_their_own(make_model):
    groups = parameter_groups(make_model(), OptimizerConfig(lr=1e-4, head_lr=1e-2))
    assert {group["name"].partition(".")[0]: group["lr"] for group in groups} == {"backbone": 1e-4, "new": 1e-2}
    assert {group["lr"] for group in parameter_groups(make_model(), OptimizerConfig(lr=3e-4))} == {3e-4}


def rate_of_each(model, **options):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(**options))
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_all_new_parts_have_the_rate_of_the_heads(tiny_vocabulary, make_model):
    generator = perturbation_model(make_model())
    integrator = make_model().adapt(context=ContextConfig(batches=2), batch_names=("a", "b"))
    for model, part in ((generator, "embedder.perturbation.weight"), (integrator, "context.")):
        rates = rate_of_each(model, lr=1e-4, head_lr=1e-2)
        assert any(name.startswith(part) for name in rates)
        for name, lr in rates.items():
            assert lr == (1e-2 if name.startswith(("heads.", part)) else 1e-4), name


@pytest.mark.parametrize("layers", [1, 3])
def test_lower_layers_learn_more_slowly(layers, tiny_vocabulary):
    model = CellModel(scgpt(tiny_vocabulary, dim=16, layers=layers, heads=2, hidden=16), tiny_vocabulary)
    rates = rate_of_each(model, lr=1e-3, layer_decay=0.5, weight_decay=0.1)
    assert len(rates) == len(list(model.parameters()))
    expected = {f"encoder.blocks.{layer}.": 1e-3 * 0.5 ** (layers - 1 - layer) for layer in range(layers)}
    expected |= {"embedder.": 1e-3 * 0.5**layers, "heads.": 1e-3}
    for start, lr in expected.items():
        found = {value for name, value in rates.items() if name.startswith(start)}
        assert list(found) == [pytest.approx(lr)], start
    assert parameter_groups(model, OptimizerConfig(lr=1e-3, layer_decay=0.5))[0]["lr"] == 1e-3


def test_a_frozen_model_is_refused(make_model):
    with pytest.raises(ValueError, match="frozen"):
        parameter_groups(make_model().requires_grad_(False), OptimizerConfig())


def test_without_decay_it_is_plain_adam(make_model):
    """One step of ours against torch's Adam, which scGPT was trained with."""
    ours, theirs = make_model(), make_model()
    optimizers = (
        make_optimizer(ours, OptimizerConfig(lr=1e-3)),
        torch.optim.Adam(theirs.parameters(), lr=1e-3),
    )
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        for parameter in model.parameters():
            parameter.grad = parameter.detach() * 0.3 + 0.01
        optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def rates(config, steps=100, steps_per_epoch=20):
    return [rate_factor(step, config, steps=steps, steps_per_epoch=steps_per_epoch) for step in range(steps)]


def test_step_schedule_is_a_factor_an_epoch():
    factors = rates(OptimizerConfig(schedule="step", step_factor=0.9))
    expected = [0.9**epoch for epoch in range(5) for _ in range(20)]
    assert factors == pytest.approx(expected)
    assert rates(OptimizerConfig(schedule="step", step_factor=0.5, step_epochs=2))[59] == 0.5


def test_cosine_rises_then_falls_to_its_end():
    factors = rates(OptimizerConfig(schedule="cosine", warmup=10, end=0.1))
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    middle = rate_factor(55, OptimizerConfig(schedule="cosine", warmup=10, end=0.1), steps=100, steps_per_epoch=20)
    assert middle == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rate_factor(100, OptimizerConfig(schedule="cosine", end=0.1), steps=100, steps_per_epoch=20) == 0.1


def test_a_line_falls_to_its_end():
    factors = rates(OptimizerConfig(schedule="linear", warmup=10, end=0.1))
    assert factors[10] == 1
    assert [a - b for a, b in zip(factors[10:], factors[11:], strict=False)] == pytest.approx([0.01] * 89)
    assert rate_factor(120, OptimizerConfig(schedule="linear", end=0.1), steps=100, steps_per_epoch=20) == 0.1


def test_everything_but_biases_can_decay(make_model):
    model = make_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1, decayed="all_but_biases"))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert "encoder.blocks.0.attention_norm.weight" in decayed
    assert "embedder.genes.norm.weight" not in decayed
    assert not any(name.endswith("bias") for name in decayed)


def test_decay_by_the_gradient(make_model):
    model = make_model()
    assert type(make_optimizer(model, OptimizerConfig(decoupled=False))) is torch.optim.Adam
    assert type(make_optimizer(model, OptimizerConfig())) is torch.optim.AdamW


def test_warmup_can_be_a_share():
    assert rates(OptimizerConfig(schedule="constant", warmup=0.25)) == rates(
        OptimizerConfig(schedule="constant", warmup=25)
    )


def test_schedule_reaches_the_optimizer(make_model):
    config = OptimizerConfig(lr=1e-3, head_lr=1e-2, schedule="cosine", warmup=2)
    optimizer = make_optimizer(make_model(), config)
    schedule = make_schedule(optimizer, config, steps=10, steps_per_epoch=5)
    seen = []
    for _ in range(10):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    for step, row in enumerate(seen):
        factor = rate_factor(step, config, steps=10, steps_per_epoch=5)
        highest = [1e-3 if group["name"].startswith("backbone") else 1e-2 for group in optimizer.param_groups]
        assert row == pytest.approx([factor * lr for lr in highest])


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"head_lr": -1.0}, {"weight_decay": -0.1}, {"step_factor": 0.0}, {"end": 2.0}, {"betas": (0.9, 1.0)},
     {"warmup": -1.0}, {"step_epochs": 0}, {"layer_decay": 0.0}, {"layer_decay": 1.5}, {"lr": math.nan}],
)  # fmt: skip
def test_wrong_settings_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        OptimizerConfig(**options)


WRONG = {
    "lr": [0, -1e-4, math.nan, math.inf, "1e-4", None, True],
    "head_lr": [0.0, math.nan, "fast"],
    "layer_decay": [0.0, 1.1, math.nan, None],
    "weight_decay": [-0.1, math.nan, "0"],
    "decayed": ["all", None],
    "decoupled": ["no", 1, None],
    "betas": [(0.9,), (0.9, 1.0), 0.9, (0.9, "x")],
    "eps": [0.0, -1.0, math.nan],
    "schedule": ["triangle", "Cosine", None, 3],
    "warmup": [-1, math.nan, "5"],
    "end": [-0.1, 1.5, math.nan],
    "step_factor": [0.0, 1.5, "0.9"],
    "step_epochs": [0, 1.5, None],
    "epochs": [0, -1, 1.5, "3", None, True],
    "max_steps": [0, 2.5, "3"],
    "batch_size": [0, 1.5, "32", None],
    "accumulate": [0, 1.5],
    "gradient_checkpointing": ["False", 1, None],
    "clip": [0, -1.0, math.nan, math.inf, "1"],
    "precision": ["16", "float32", 32, None],
    "monitor": ["", 3],
    "mode": ["minimum", None],
    "patience": [0, -1, 1.5],
    "folder": [3, "", "  ", ["run"]],
    "resume": ["False", 1, None],
    "checkpoint_steps": [0, "10"],
    "rng": [-1, 1.5, "0", True, 2**63],
    "workers": [-1, 1.5, None],
    "accelerator": ["GPU", "tpu", "", None],
    "devices": [0, -1, 1.5, "two", "0,,1", [0, 1], None],
    "nodes": [0, 1.5],
    "strategy": ["", None, "deepspeed_stage_2"],
    "deterministic": ["no", 0],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=str
)
def test_every_setting_is_checked(name, value):
    with pytest.raises((TypeError, ValueError), match=rf"^Expected `{name}"):
        FitConfig(**{name: value})


def test_every_setting_is_among_them():
    assert [field.name for field in fields(FitConfig)] == list(WRONG)


def test_settings_are_kept_as_what_they_are_for(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = FitConfig(folder="~/run", lr=np.float64(1), epochs=np.int64(3), betas=[0.5, 0.9], devices="0,1", clip=None)
    assert config.folder == Path("/home/somebody/run")
    assert (config.lr, config.epochs, config.betas, config.devices) == (1.0, 3, (0.5, 0.9), "0,1")
    assert [type(value) for value in (config.lr, config.epochs)] == [float, int]


@pytest.mark.parametrize("rng", [None, np.random.default_rng(3)])
def test_a_run_keeps_the_number_that_it_draws_with(rng):
    config = FitConfig(rng=rng)
    assert isinstance(config.rng, int)
    assert config.rng == config.seed != FitConfig(rng=rng).rng
    with pytest.raises(ValueError, match="Expected a whole number for `rng` with several devices"):
        FitConfig(rng=rng, devices=2)
