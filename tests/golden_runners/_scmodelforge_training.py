"""Training and data of scModelForge: schedules, optimiser steps, samplers; and the numbers of its benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from golden_runners._scmodelforge import batch_of, built, same, tensors
from golden_runners._scmodelforge_models import terms_of
from scgpt_tools import metrics
from scgpt_tools.data.curriculum import ShardedCells, WeightedCells
from scgpt_tools.models.formats.rename import write_names
from scgpt_tools.models.formats.scmodelforge import NAMES
from scgpt_tools.train.optim import OptimizerConfig, make_optimizer, parameter_groups
from scgpt_tools.train.schedules import LinearWarmup

if TYPE_CHECKING:
    from pathlib import Path

    from torch.optim import Optimizer


def schedule(optimizer: Optimizer, name: str, **options: int) -> LinearWarmup:
    """A schedule by the name of the original; ``cosine`` has no warm-up, whatever is said of one."""
    if name == "cosine":
        options.pop("warmup_steps", None)
    shape = "linear" if name == "linear" else "cosine"
    return LinearWarmup(optimizer, shape=shape, clamped=False, **options)


def run_schedules(folder: Path, case: dict) -> None:
    _, inputs, expected = tensors(folder)
    steps = inputs["steps"].tolist()
    for name, options in case["call_args"].items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        found, changing = {}, schedule(optimizer, name, **options)
        for step in range(max(steps) + 1):
            found[step] = changing.get_last_lr()[0]
            optimizer.step()
            changing.step()
        same(np.array([found[step] for step in steps]), expected[name], case, name)


def run_steps(folder: Path, case: dict) -> None:
    arguments, called = case["constructor_args"], case["call_args"]
    weights, inputs, expected = tensors(folder)
    model = built(arguments, weights).train()
    batch = batch_of(inputs, called["batch_keys"])
    kind = called["optimizer"]
    config = OptimizerConfig(
        lr=kind["lr"],
        weight_decay=kind["weight_decay"],
        decayed="all_but_biases",
        decoupled=kind["name"] == "adamw",
    )
    optimizer = make_optimizer(model, config)
    chosen = called.get("scheduler")
    changing = schedule(optimizer, **chosen) if chosen else None
    losses, norms, rates = [], [], []
    terms = terms_of(arguments, called["batch_keys"])
    for _ in range(called["steps"]):
        rates.append(optimizer.param_groups[0]["lr"])
        output = model(batch)
        loss = sum(term.weight * term({"first": output}, batch) for term in terms)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), called["clip_norm"])))
        optimizer.step()
        if changing is not None:
            changing.step()
        losses.append(float(loss.detach()))
    same(np.array(losses), expected["losses"], case, "losses")
    same(np.array(norms), expected["grad_norms"], case, "grad_norms")
    same(np.array(rates), expected["learning_rates"], case, "learning_rates")
    same_final(model, expected, case)
    same_groups(model, config, case["expected"]["parameter_groups"])


def same_final(model: torch.nn.Module, expected: dict, case: dict) -> None:
    left_out = case["expected"].get("not_compared", {})
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if "heads.expression.missing" in state:
        state["heads.expression.missing"] = state["heads.expression.missing"].view(1, 1, -1)
    for name, tensor in write_names(state, NAMES[model.config.family]).items():
        kept = np.ones(len(tensor), dtype=bool)
        if f"final.{name}" in left_out:
            start, stop = left_out[f"final.{name}"]
            kept[start:stop] = False
        same(tensor[kept], expected[f"final.{name}"][kept], case, name)


def same_groups(model: torch.nn.Module, config: OptimizerConfig, recorded: list[dict]) -> None:
    """Which parameters decay, by the names of the original."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {
        names[id(parameter)]: torch.full((3,), group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }
    theirs = write_names(decays, NAMES[model.config.family])
    for group in recorded:
        for name in group["params"]:
            assert torch.all(theirs[name] == torch.tensor(group["weight_decay"])), name


def run_weighted(folder: Path, case: dict) -> None:
    made, called = case["constructor_args"], case["call_args"]
    _, _, expected = tensors(folder)
    sampler = WeightedCells(
        called["labels"],
        warmup_epochs=made["curriculum_warmup_epochs"],
        replacement=made["replacement"],
        seed=made["seed"],
    )
    assert sampler.class_weights == case["expected"]["class_weights"]
    for epoch in called["epochs"]:
        sampler.set_epoch(epoch)
        same(sampler.weights(epoch), expected[f"weights_epoch{epoch}"], case, f"weights of epoch {epoch}")
        same(np.array(list(sampler)), expected[f"indices_epoch{epoch}"], case, f"cells of epoch {epoch}")


def run_shards(folder: Path, case: dict) -> None:
    made = case["constructor_args"]
    _, _, expected = tensors(folder)
    for name, cells in expected.items():
        rank, epoch = (int("".join(c for c in part if c.isdigit())) for part in name.split("_"))
        sampler = ShardedCells(
            case["call_args"]["shard_sizes"],
            rank=rank,
            processes=made["num_replicas"],
            shuffle=made["shuffle"],
            drop_last=made["drop_last"],
            seed=made["seed"],
        )
        sampler.set_epoch(epoch)
        same(np.array(list(sampler)), cells, case, name)
        assert len(sampler) == case["expected"][f"len_{name}"]


def run_probe(folder: Path, case: dict) -> None:
    made, expected = case["constructor_args"], case["expected"]["metrics"]
    _, inputs, _ = tensors(folder)
    labels = case["call_args"]["labels"]
    train, test = metrics.probe_split(labels, test_size=made["test_size"], rng=made["seed"])
    same(train, inputs["train_index"], case, "train_index")
    same(test, inputs["test_index"], case, "test_index")
    found = metrics.linear_probe(
        inputs["embeddings"],
        labels,
        test_size=made["test_size"],
        standardise=False,
        max_iter=made["max_iter"],
        rng=made["seed"],
    )
    for name, value in expected.items():
        same(getattr(found, name), np.float64(value), case, name)


def run_decoding(folder: Path, case: dict) -> None:
    made, expected = case["constructor_args"], case["expected"]
    _, inputs, outputs = tensors(folder)
    labels = case["call_args"]["labels"]
    names, changes = metrics.mean_changes(inputs["X"].numpy(), labels, made["control_label"])
    assert names == expected["delta_labels"]
    same(changes, outputs["deltas"], case, "deltas")
    same(metrics.most_changed(changes, made["n_top_genes"]), outputs["top_genes"], case, "top_genes")
    found = metrics.decode_changes(
        inputs["X"].numpy(),
        inputs["embeddings"].numpy(),
        labels,
        control=made["control_label"],
        n_top_genes=made["n_top_genes"],
        test_size=made["test_fraction"],
        rng=made["seed"],
    )
    assert list(found.train) == expected["train_labels"]
    assert list(found.test) == expected["test_labels"]
    said = {
        "pearson_mean": found.pearson,
        "mse_mean": found.mse,
        "direction_accuracy": found.direction,
        "baseline_pearson_mean": found.mean_pearson,
        "baseline_mse_mean": found.mean_mse,
        "baseline_direction_accuracy": found.mean_direction,
        "fraction_above_baseline": found.above_mean,
    }
    for name, value in expected["metrics"].items():
        same(said[name], np.float64(value), case, name)


def run_network(folder: Path, case: dict) -> None:
    """Cosines of genes, judged at the pairs that the table lists."""
    _, inputs, outputs = tensors(folder)
    called, expected = case["call_args"], case["expected"]
    known, vectors = metrics.gene_vectors(
        inputs["X"].numpy(), inputs["embeddings"].numpy(), min_cells=case["constructor_args"]["min_cells_per_gene"]
    )
    names = [called["genes"][number] for number in known]
    assert names == expected["represented"]
    same(vectors, outputs["representations"], case, "representations")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    place = {name: number for number, name in enumerate(names)}
    pairs = [(place[a], place[b], weight) for a, b, weight in called["edges"] if a in place and b in place]
    assert [[names[a], names[b]] for a, b, _ in pairs] == expected["evaluated_edges"]
    same(np.array([cosines[a, b] for a, b, _ in pairs]), outputs["scores"], case, "scores")
    judged, truth = np.full(cosines.shape, np.nan), np.zeros(cosines.shape, dtype=bool)
    for a, b, weight in pairs:
        judged[a, b], truth[a, b] = cosines[a, b], weight > 0
    found = metrics.score_edges(judged, truth)
    same(found.auroc, np.float64(expected["metrics"]["auroc"]), case, "auroc")
    same(found.auprc, np.float64(expected["metrics"]["auprc"]), case, "auprc")
    assert found.n_pairs == expected["metrics"]["n_edges_evaluated"]
