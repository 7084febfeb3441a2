"""Fitting: it learns, it can be stopped and gone on with, and it says what went wrong."""

from __future__ import annotations

import math
from copy import deepcopy

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from scgpt_tools.models.config import AdversaryConfig, ClassifierConfig, Named
from scgpt_tools.objectives import (
    BatchAdversary,
    CellType,
    ContrastiveCells,
    ElasticSimilarity,
    MaskedExpression,
    MaskedExpressionFromCell,
    RegeneratedExpression,
)
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.train.callbacks import History
from scgpt_tools.train.diagnosis import LossNotFiniteError
from scgpt_tools.train.fit import FitConfig, _check_places, _check_shares, fit
from scgpt_tools.train.module import EpochMeans
from scgpt_tools.train.unfreezing import GradualUnfreezing

BOTH = (MaskedExpression(), MaskedExpressionFromCell())
QUICK = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_it_learns(make_model, make_data):
    history = History()
    model = fit(
        make_model(),
        make_data(),
        [*BOTH, ElasticSimilarity(weight=10.0)],
        FitConfig(**QUICK | {"epochs": 12, "lr": 5e-3}),
        callbacks=[history],
    )
    table = history.table
    assert len(table) == 12
    for column in ("train_loss", "validation_masked_expression", "validation_masked_expression_from_cell"):
        assert table[column].iloc[-1] < 0.8 * table[column].iloc[0], column
    assert not model.training


def test_history_says_everything(make_model, make_data, tmp_path):
    fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, folder=tmp_path))
    table = pd.read_csv(tmp_path / "history.csv", index_col="epoch")
    assert list(table.index) == [0, 1]
    assert list(table["step"]) == [4, 8]
    expected = {f"{part}_{name}" for part in ("train", "validation") for name in
                ("loss", "masked_expression", "masked_expression_from_cell")}  # fmt: skip
    assert expected | {"lr", "seconds", "cells_per_second", "tokens_per_second"} <= set(table.columns)
    assert np.isfinite(table.to_numpy()).all()
    sums = table["train_masked_expression"] + table["train_masked_expression_from_cell"]
    assert np.allclose(sums, table["train_loss"], rtol=1e-5)


def test_loggers_get_steps_and_epochs(make_model, make_data, tmp_path):
    logger = CSVLogger(tmp_path, name="log", version="0")
    fit(make_model(), make_data(), BOTH, FitConfig(**QUICK), loggers=[logger])
    logged = pd.read_csv(tmp_path / "log" / "0" / "metrics.csv")
    assert logged["loss"].notna().sum() == 2  # once in each short epoch
    for name in ("train_loss", "train_masked_expression", "validation_masked_expression_from_cell"):
        assert logged[name].notna().sum() == 2


def test_seeds_decide_and_global_random_numbers_stay(make_model, make_data):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (
        weights(fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, rng=seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert_same_weights(first, second)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_global_settings_stay(make_model, make_data):
    fit(make_model(), make_data(), BOTH, FitConfig(**QUICK | {"epochs": 1}, deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_workers_change_nothing(make_model, make_data):
    first, second = (
        weights(fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, workers=workers))) for workers in (0, 2)
    )
    assert_same_weights(first, second)


def test_weight_zero_is_absent(make_model, make_data):
    first, second = (
        weights(fit(make_model(), make_data(), objectives, FitConfig(**QUICK)))
        # The contrastive term would run a second pass and draw other dropout masks; the classifier does not even exist.
        for objectives in (BOTH, (*BOTH, ContrastiveCells(weight=0.0), CellType(weight=0.0)))
    )
    assert_same_weights(first, second)


def test_terms_can_begin_later(make_model, make_data):
    history = History()
    objectives = (*BOTH, RegeneratedExpression(from_step=4))
    fit(make_model(), make_data(), objectives, FitConfig(**QUICK), callbacks=[history])
    assert np.isnan(history.table["train_regenerated_expression"].iloc[0])
    assert np.isfinite(history.table["train_regenerated_expression"].iloc[1])
    assert np.isfinite(history.table["validation_regenerated_expression"]).all()


def test_classes_are_learnt_and_measured(make_model, make_data):
    from scgpt_tools.models.config import ClassifierConfig

    model = make_model().adapt(heads=Named(cell_type=ClassifierConfig(classes=2, names=("even", "odd"))))
    history = History()
    config = FitConfig(**QUICK | {"epochs": 30, "lr": 5e-3}, monitor="validation_accuracy", mode="max")
    model = fit(model, make_data(corruption=None, sampling="balanced"), [CellType()], config, callbacks=[history])
    assert history.table["validation_accuracy"].max() >= 0.9
    data = make_data(corruption=None)
    (batch,) = data.loader("validation", batch_size=64)
    with torch.no_grad():
        right = (model(batch)["cell_type"].argmax(1) == batch.label).float().mean().item()
    assert right == pytest.approx(history.table["validation_accuracy"].max())


def test_the_best_weights_are_returned(make_model, make_data):
    """Something breaks the model after the first epoch: the first epoch's weights come back."""

    class Break(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.model.heads["expression"].value[-1].bias.data.fill_(1e4)

    history = History()
    model = fit(make_model(), make_data(), BOTH, FitConfig(**QUICK), callbacks=[Break(), history])
    assert history.table["validation_loss"].idxmin() == 0
    alone = fit(make_model(), make_data(), BOTH, FitConfig(**QUICK | {"epochs": 1}))
    assert_same_weights(weights(model), weights(alone))


def test_early_stopping(make_model, make_data):
    history = History()
    # At this rate nothing gets better, so the second epoch without improvement is the last.
    config = FitConfig(**QUICK | {"epochs": 30, "lr": 1e-30}, patience=2, monitor="validation_masked_expression")
    fit(make_model(), make_data(), BOTH, config, callbacks=[history])
    assert len(history.table) == 3


def test_max_steps(make_model, make_data):
    history = History()
    fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, max_steps=3), callbacks=[history])
    assert history.table["step"].iloc[-1] == 3


def test_without_validation_the_last_weights_are_returned(make_model, make_data):
    data = make_data(validation=[])
    model = fit(make_model(), data, BOTH, FitConfig(**QUICK))
    assert not torch.equal(
        model.state_dict()["embedder.genes.table.weight"], make_model().state_dict()["embedder.genes.table.weight"]
    )


def test_accumulated_gradients_are_those_of_larger_minibatches(make_model, make_data):
    """One step from two halves equals one step from the whole, up to the mean of means."""
    data = make_data(validation=[], corruption=MaskValues(ratio=0.4))
    config = QUICK | {"epochs": 1, "clip": None}
    whole = fit(make_model(dropout=0.0), data, [MaskedExpression()], FitConfig(**config | {"batch_size": 60}))
    parts = fit(
        make_model(dropout=0.0), data, [MaskedExpression()], FitConfig(**config | {"batch_size": 30, "accumulate": 2})
    )
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, atol=3e-3, rtol=0, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_computes_twice_and_changes_nothing(dropout, make_model, make_data):
    calls, results = {}, {}
    for on in (False, True):
        model = make_model(dropout=dropout)
        calls[on] = 0

        def count(*_, on=on):
            calls[on] += 1

        model.encoder.blocks[0].register_forward_pre_hook(count)
        config = FitConfig(**QUICK, gradient_checkpointing=on)
        results[on] = weights(fit(model, make_data(), BOTH, config))
        assert not model.encoder.gradient_checkpointing
    assert_same_weights(results[False], results[True])
    assert calls[True] > 1.5 * calls[False]


def test_mixed_precision_keeps_weights_in_single_precision(make_model, make_data):
    history = History()
    config = FitConfig(**QUICK, precision="bf16")
    model = fit(make_model(), make_data(), BOTH, config, callbacks=[history])
    assert np.isfinite(history.table["train_loss"]).all()
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


# ------------------------------------------------------------------------------------------------------- resuming


class Interrupted(Exception):
    """Stands for whatever ends a run."""


class Interrupt(lightning.Callback):
    """Ends a run before a minibatch, counted from the first."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch * len(trainer.train_dataloader) + batch_idx == self.at:
            raise Interrupted


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8, 11])
@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_steps": 1},
        {"checkpoint_steps": 2, "accumulate": 2, "schedule": "cosine", "warmup": 2.0},
        {"checkpoint_steps": None, "workers": 1},
    ],
    ids=["every step", "accumulated", "every epoch"],
)
def test_a_resumed_run_is_the_uninterrupted_run(options, stop, make_model, make_data, tmp_path):
    objectives = (*BOTH, RegeneratedExpression(from_step=3))
    config = QUICK | {"epochs": 3} | options

    def run(folder, *, resume=False, callbacks=()):
        settings = FitConfig(**config, folder=folder, resume=resume)
        return weights(fit(make_model(), make_data(), objectives, settings, callbacks=callbacks))

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", callbacks=[Interrupt(stop)])
    assert_same_weights(run(tmp_path / "cut", resume=True), whole)
    before, after = (
        pd.read_csv(tmp_path / name / "history.csv").drop(columns=["seconds", "cells_per_second", "tokens_per_second"])
        for name in ("whole", "cut")
    )
    pd.testing.assert_frame_equal(after, before)


def test_a_run_goes_on_from_a_state_of_another_device(make_model, make_data, tmp_path):
    def run(folder, *callbacks, resume=False):
        settings = FitConfig(**QUICK, folder=folder, resume=resume, checkpoint_steps=1)
        return weights(fit(make_model(), make_data(), BOTH, settings, callbacks=callbacks))

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", Interrupt(3))
    state = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    for group in state["optimizer_states"][0]["param_groups"]:
        assert group["fused"]
        group |= {"fused": None, "foreach": True, "capturable": True}  # as a GPU may compute, and a CPU cannot
    torch.save(state, tmp_path / "cut" / "last.ckpt")
    assert_same_weights(run(tmp_path / "cut", resume=True), whole)


def test_a_finished_run_is_not_run_again(make_model, make_data, tmp_path):
    config = FitConfig(**QUICK, folder=tmp_path)
    done = weights(fit(make_model(), make_data(), BOTH, config))
    history = History()
    again = fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, folder=tmp_path, resume=True), callbacks=[history])
    assert_same_weights(weights(again), done)


@pytest.mark.parametrize("stop", [1, 6])
def test_a_run_resumed_in_mid_epoch_holds_what_it_held(stop, make_model, make_data, tmp_path):
    """Lightning says nothing at the start of an epoch that goes on in its middle."""

    def run(folder, *callbacks, resume=False):
        model = make_model()
        settings = FitConfig(**QUICK | {"epochs": 3}, folder=folder, resume=resume, checkpoint_steps=1)
        return weights(fit(model, make_data(), BOTH, settings, callbacks=[GradualUnfreezing(model, 1), *callbacks]))

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", Interrupt(stop))
    assert_same_weights(run(tmp_path / "cut", resume=True), whole)


def test_the_best_state_of_an_earlier_run_is_not_taken(make_model, make_data, tmp_path):
    """A new run in the same folder ends before its first validation."""
    old = weights(fit(make_model(seed=1), make_data(), BOTH, FitConfig(**QUICK, folder=tmp_path)))
    new = weights(fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, max_steps=1, folder=tmp_path / "other")))
    again = weights(fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, max_steps=1, folder=tmp_path)))
    assert not (tmp_path / "best.ckpt").exists()
    assert_same_weights(again, new)
    assert any(not torch.equal(again[name], old[name]) for name in old)


# --------------------------------------------------------------------------------------------------------- errors


class Poison(lightning.Callback):
    """Puts NaN somewhere before a step."""

    def __init__(self, at, where):
        self.at, self.where = at, where

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at:
            if self.where == "parameters":
                next(pl_module.model.parameters()).data.fill_(math.nan)
            else:
                getattr(batch, self.where).fill_(math.nan)


@pytest.mark.parametrize(
    ("where", "cause"),
    [("parameters", "Lower the learning rate"), ("values", "`values`"), ("target", "`target`")],
)
def test_nan_stops_with_step_and_cause_and_keeps_the_last_state(where, cause, make_model, make_data, tmp_path):
    config = FitConfig(**QUICK, folder=tmp_path, checkpoint_steps=1)
    with pytest.raises(LossNotFiniteError, match=f"step 3.*masked_expression.*{cause}"):
        fit(make_model(), make_data(), BOTH, config, callbacks=[Poison(3, where)])
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
    resumed = fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, folder=tmp_path, resume=True))
    assert_same_weights(weights(resumed), weights(fit(make_model(), make_data(), BOTH, FitConfig(**QUICK))))


def last_is_finite(folder):
    state = torch.load(folder / "last.ckpt", weights_only=True)
    return all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())


def test_a_rate_beyond_reason_leaves_no_broken_checkpoint(make_model, make_data, tmp_path):
    config = FitConfig(**QUICK | {"lr": 1e30}, folder=tmp_path, checkpoint_steps=1)
    with pytest.raises(LossNotFiniteError, match="lower the learning rate"):
        fit(make_model(), make_data(), BOTH, config)
    assert last_is_finite(tmp_path)


class Destroy(lightning.Callback):
    """Stands for an update that makes a weight infinite."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.after:
            next(pl_module.model.parameters()).data[0, 0] = math.inf


@pytest.mark.parametrize(("steps", "kept"), [(1, 2), (None, None)])
def test_destroyed_weights_do_not_replace_good_ones(steps, kept, make_model, make_data, tmp_path):
    config = FitConfig(**QUICK | {"epochs": 1}, folder=tmp_path, checkpoint_steps=steps)
    data = make_data(validation=[])
    after = len(data.loader("train", batch_size=config.batch_size)) if kept is None else kept + 1
    with pytest.raises(LossNotFiniteError, match=rf"weights after step {after},.*1 tensors.*Lower the learning rate"):
        fit(make_model(), data, BOTH, config, callbacks=[Destroy(after)])
    assert (tmp_path / "last.ckpt").exists() == (kept is not None)
    if kept is not None:
        assert last_is_finite(tmp_path)
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == kept


class PoisonGradients(lightning.Callback):
    """Makes one gradient infinite before a step."""

    def __init__(self, at):
        self.at = at

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.at:
            pl_module.model.heads["expression"].value[0].weight.grad[0, 0] = math.inf


def test_gradients_that_are_not_finite_change_nothing(make_model, make_data, tmp_path):
    model, before = make_model(), weights(make_model())
    with pytest.raises(
        LossNotFiniteError, match=r"gradients at step 0.*1 parameters.*'heads.expression.value.0.weight'"
    ):
        fit(model, make_data(), BOTH, FitConfig(**QUICK, checkpoint_steps=1), callbacks=[PoisonGradients(0)])
    assert_same_weights(weights(model), before)
    config = FitConfig(**QUICK, folder=tmp_path, checkpoint_steps=1)
    with pytest.raises(LossNotFiniteError, match="gradients at step 2"):
        fit(make_model(), make_data(), BOTH, config, callbacks=[PoisonGradients(2)])
    assert last_is_finite(tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_minibatch_without_hidden_values_is_named(make_model, make_data):
    data = make_data(corruption=MaskValues(ratio=0.01))
    with pytest.raises(LossNotFiniteError, match="No value of this minibatch is hidden"):
        fit(make_model(), data, BOTH, FitConfig(**QUICK))


def test_missing_heads_are_named_before_training(make_model, make_data):
    model = make_model()
    before = weights(model)
    with pytest.raises(ValueError, match="'batch', which the objective 'batch_adversary' reads"):
        fit(model, make_data(), [*BOTH, BatchAdversary()], FitConfig(**QUICK))
    assert_same_weights(weights(model), before)


def test_unknown_metrics_are_refused(make_model, make_data):
    with pytest.raises(ValueError, match="validation_masked_expression"):
        fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, monitor="validation_masked_expresion"))
    with pytest.raises(ValueError, match="metric"):
        fit(make_model(), make_data(validation=[]), BOTH, FitConfig(**QUICK, monitor="validation_loss"))


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"batch_size": 0}, {"clip": 0.0}, {"patience": 0}, {"checkpoint_steps": 0}],
)
def test_wrong_settings_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        FitConfig(**options)


@pytest.mark.parametrize("strategy", ["fsdp_cpu_offload", "deepspeed_stage_2", "FSDP"])
def test_other_ways_to_cut_weights_are_refused(strategy):
    with pytest.raises(ValueError, match=f"found '{strategy}'. Use 'fsdp'"):
        FitConfig(strategy=strategy)


def test_sharding_does_not_scale_losses():
    with pytest.raises(ValueError, match="'fp32' or 'bf16' with strategy='fsdp', found 'fp16'"):
        FitConfig(strategy="fsdp", precision="fp16")


def test_a_run_goes_on_with_the_strategy_that_it_began_with(make_model, make_data, tmp_path):
    """Before any process group is made."""
    fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, folder=tmp_path))
    with pytest.raises(ValueError, match="'ddp' or 'auto', found 'fsdp'; it comes from a run without sharding"):
        fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, folder=tmp_path, resume=True, strategy="fsdp"))


def test_patience_needs_a_metric(make_model, make_data):
    data = make_data(validation=[])
    with pytest.raises(ValueError, match="Expected validation cells, or another metric as `monitor`, for patience=2"):
        fit(make_model(), data, BOTH, FitConfig(**QUICK, patience=2))
    fit(make_model(), data, BOTH, FitConfig(**QUICK | {"epochs": 1}, patience=2, monitor="train_loss"))


def test_sums_of_an_epoch_are_made_where_float64_is():
    """Some devices have no float64, so numbers leave them first."""

    class Number:
        def __init__(self, here):
            self.here = here

        def detach(self):
            return self

        def cpu(self):
            return Number(True)

        def double(self):
            assert self.here
            return torch.tensor(2.0, dtype=torch.float64)

    means = EpochMeans()
    means.add({"loss": Number(False)}, 3)
    assert means.take(torch.device("cpu")) == {"loss": torch.tensor(2.0)}


def test_resuming_needs_a_folder(make_model, make_data):
    with pytest.raises(ValueError, match="folder"):
        fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, resume=True))


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ("gpu", "Expected a GPU for accelerator='gpu', found none"),
        ("cuda", "Expected a CUDA device"),
        ("mps", "of Apple"),
    ],
)
def test_a_device_that_is_not_there_is_named(accelerator, message, make_model, make_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        fit(make_model(), make_data(), BOTH, FitConfig(**QUICK | {"accelerator": accelerator}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_are_looked_at_before_training(value, cells, make_model, make_data):
    cells.X[37, 3] = value
    begun = []

    class Watch(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            begun.append(1)

    with pytest.raises(ValueError, match="found .* in cell 'cell37', gene 'GENE3'"):
        fit(make_model(), make_data(), BOTH, FitConfig(**QUICK), callbacks=[Watch()])
    assert not begun


def test_the_history_shows_the_rate_of_the_epoch(make_model, make_data):
    history = History()
    fit(make_model(), make_data(), BOTH, FitConfig(**QUICK, step_factor=0.5), callbacks=[history])
    assert history.table["lr"].tolist() == [1e-3, 5e-4]


class PoisonValidation(lightning.Callback):
    """Makes a weight infinite for the time of validation."""

    def on_validation_start(self, trainer, pl_module):
        self.bias = pl_module.model.heads["expression"].value[-1].bias
        self.before = self.bias.detach().clone()
        self.bias.data.fill_(math.nan)

    def on_validation_end(self, trainer, pl_module):
        self.bias.data.copy_(self.before)


def test_a_loss_of_validation_that_is_no_number_chooses_nothing(make_model, make_data):
    with pytest.raises(LossNotFiniteError, match="Expected a finite loss in validation after step 4"):
        fit(make_model(), make_data(), BOTH, FitConfig(**QUICK), callbacks=[PoisonValidation()])


def test_weights_that_are_no_numbers_are_not_returned(make_model, make_data):
    class Ruin(lightning.Callback):
        def on_train_end(self, trainer, pl_module):
            pl_module.model.heads["expression"].value[-1].bias.data.fill_(math.inf)

    with pytest.raises(LossNotFiniteError, match="finite weights after training, found NaN or infinity in 1 tensors"):
        fit(make_model(), make_data(validation=[]), BOTH, FitConfig(**QUICK | {"epochs": 1}), callbacks=[Ruin()])


def test_an_adversary_that_is_none_is_refused(make_model, make_data):
    model = make_model().adapt(heads=Named(batch=ClassifierConfig(classes=2)))
    with pytest.raises(
        ValueError, match="head 'batch' to be an adversary, whose gradient is reversed, found Classifier"
    ):
        fit(model, make_data(corruption=None), [BatchAdversary()], FitConfig(**QUICK))


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_the_reversed_gradient_can_be_scaled(factor, make_model, make_data):
    """What the discriminator learns stays; what it teaches the encoder is multiplied."""
    model = make_model(dropout=0.0).adapt(heads=Named(batch=AdversaryConfig(classes=2)))
    found = {}

    class Watch(lightning.Callback):
        def on_after_backward(self, trainer, pl_module):
            if not found:
                found.update(
                    {name: p.grad.clone() for name, p in pl_module.model.named_parameters() if p.grad is not None}
                )

    def gradients(reversal):
        found.clear()
        start = deepcopy(model)
        settings = FitConfig(**QUICK | {"epochs": 1}, max_steps=1, clip=None)
        fit(start, make_data(corruption=None), [BatchAdversary(reversal=reversal)], settings, callbacks=[Watch()])
        assert start.heads["batch"].reversal == 1.0
        return found["heads.batch.out.weight"], found["encoder.blocks.0.attention.query.weight"]

    head, encoder = gradients(1.0)
    own_head, own_encoder = gradients(factor)
    torch.testing.assert_close(own_head, head)
    torch.testing.assert_close(own_encoder, factor * encoder)


def test_processes_that_would_not_train_together_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match="2 processes that torchrun has started, found devices=1.* devices=2, strategy='ddp'"
    ):
        _check_places(FitConfig(folder=tmp_path))
    _check_places(FitConfig(folder=tmp_path, devices=2, strategy="ddp", accelerator="cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    _check_places(FitConfig(folder=tmp_path, accelerator="cpu"))


def test_what_processes_leave_out_is_said(make_data, caplog):
    """50 cells to train on, the last minibatch of which has 2, and 10 to validate on."""
    config = FitConfig(batch_size=8)
    data = make_data()
    _check_shares(data, config, 1, says=True)
    _check_shares(data, config, 2, says=True)
    _check_shares(data, config, 3, says=False)
    assert not caplog.text
    _check_shares(data, config, 3, says=True)
    assert "3 processes share each minibatch evenly: 2 of 50 cells are left out" in caplog.text
    assert "and 1 of 10, the same always, of its validation" in caplog.text
    with pytest.raises(ValueError, match="Expected at least 11 cells to validate on, one for each process, found 10"):
        _check_shares(data, config, 11, says=True)
    with pytest.raises(ValueError, match="Expected at least 61 cells to train on"):
        _check_shares(make_data(validation=[]), config, 61, says=True)
