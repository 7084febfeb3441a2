"""DeepSC's losses, schedules and scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from golden_runners._compare import close
from golden_runners._deepsc_models import files, tolerance
from scgpt_tools import metrics
from scgpt_tools.metrics import perturbation_gears as gears
from scgpt_tools.metrics.perturbation_scgpt import scgpt_means, scgpt_metrics
from scgpt_tools.models.deepsc.losses import PretrainingLoss
from scgpt_tools.nn.bin_losses import (
    class_margins,
    cross_entropy,
    exponential_weights,
    focal_cross_entropy,
    level_weights,
    margin_cross_entropy,
    per_class_cross_entropy,
)
from scgpt_tools.nn.losses import masked_huber, masked_mse, masked_relative_error, negative_log_bernoulli
from scgpt_tools.train.optim import OptimizerConfig, make_schedule
from scgpt_tools.train.schedules import RestartsWithWarmup, WarmupCosineCycles

SETTINGS = {
    "default": ({}, 1),
    "plain_ce_mse": ({"mean_ce_loss": False, "enable_mse_loss": True}, 1),
    "ldam": ({"use_ldam_loss": True}, 1),
    "alternating_odd": ({"enable_alternating_ldam_mean_ce_loss": True}, 1),
    "alternating_even": ({"enable_alternating_ldam_mean_ce_loss": True}, 2),
    "adaptive_epoch3": ({"enable_adaptive_ce_loss": True}, 3),
    "exp_regression": ({"use_normal_regression_loss": False, "use_exp_regression_loss": True}, 1),
    "hard_regression": ({"use_normal_regression_loss": False, "use_hard_regression_loss": True}, 1),
}


def run_losses(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    logits, labels, mask = inputs["logits"], inputs["labels"], inputs["mask"].bool()
    prediction, target = inputs["prediction"], inputs["target"]
    counts = case["call_args"]["class_counts"]
    error = (prediction - target).square()
    huber = torch.nn.functional.huber_loss(prediction, target, reduction="none")
    per_class = per_class_cross_entropy(logits, labels)
    found = {
        "ce_mean": cross_entropy(logits, labels),
        "per_class_ce": per_class,
        "per_bin_ce": per_class[1:],
        "ldam_margins": class_margins(counts),
        "ldam": margin_cross_entropy(logits, labels, class_margins(counts)),
        "focal": focal_cross_entropy(logits, labels),
        "masked_mse": masked_mse(prediction, target, mask),
        "pert_masked_mse": masked_mse(prediction, target, mask),
        "masked_huber": masked_huber(prediction, target, mask),
        "masked_huber_sum": masked_huber(prediction, target, mask) * mask.sum(),
        "weighted_mse": (error * level_weights(target, mask)).sum(),
        "weighted_huber": (huber * level_weights(target, mask)).sum(),
        "exp_weighted_mse": (error * exponential_weights(target, mask)).sum(),
        "pert_relative_error": masked_relative_error(prediction, target, mask),
        "pert_neg_log_bernoulli": negative_log_bernoulli(prediction.sigmoid(), target - 3, mask),
    }
    for name, (changes, epoch) in SETTINGS.items():
        leaves = logits.clone().requires_grad_(), prediction.clone().requires_grad_()
        loss = PretrainingLoss(**{**case["constructor_args"], **changes}, class_counts=counts)
        result = loss(leaves[0], labels, leaves[1], target, mask, epoch=epoch)
        result.total.backward()
        found |= {f"{name}.{part}": getattr(result, part) for part in ("total", "ce", "regression")}
        found |= {
            f"{name}.grad_{what}_norm": leaf.grad.norm() for what, leaf in zip(("logits", "pred"), leaves, strict=True)
        }
    assert set(found) == set(expected)
    for name, value in found.items():
        close(value, expected[name], tolerance(case, name), name)


def run_schedules(folder: Path, case: dict) -> None:
    _, _, expected = files(folder, case)
    for schedule in case["call_args"]["schedules"]:
        given = schedule["args"]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=given.get("max_lr", given["lr"]))
        plan = SCHEDULES[schedule["kind"]](optimizer, given)
        rates = []
        for _ in range(schedule["steps"]):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            plan.step()
        close(np.array(rates), expected[schedule["tag"]], tolerance(case, ""), schedule["tag"])


def cycles(optimizer, given: dict):
    warmup = given.get("warmup_steps", math.ceil(0.03 * given["num_epochs"] * given["steps_per_epoch"]))
    return WarmupCosineCycles(optimizer, warmup_steps=warmup)


SCHEDULES = {
    "restarts": lambda optimizer, given: RestartsWithWarmup(
        optimizer,
        cycle_steps=given["first_cycle_steps"],
        warmup_steps=given["warmup_steps"],
        min_lr=given["min_lr"],
        gamma=given["gamma"],
        cycle_mult=given["cycle_mult"],
    ),
    "warmup_cosine": cycles,
    "step": lambda optimizer, given: make_schedule(
        optimizer,
        OptimizerConfig(lr=given["lr"], schedule="step", step_factor=given["gamma"], step_epochs=given["step_size"]),
        steps=100,
        steps_per_epoch=1,
    ),
}


def run_metrics(folder: Path, case: dict) -> None:
    (run_bin_scores if "num_classes" in case["call_args"] else run_perturbation_scores)(folder, case)


def run_bin_scores(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    said = case["expected"]
    scores = metrics.bin_scores(inputs["pred"], inputs["label"], case["call_args"]["num_classes"] - 1)
    for name in ("recall", "precision", "f1"):
        close(getattr(scores, name), expected[name], tolerance(case, name), name)
    close(scores.macro_f1, said["macro_f1"], tolerance(case, ""), "macro F1")
    close(scores.mean_recall, said["average_recall"], tolerance(case, ""), "recall")
    close(scores.mean_precision, said["average_precision"], tolerance(case, ""), "precision")
    for number, share in said["bin_distribution"]:
        close(scores.predicted[number], share, tolerance(case, ""), "share")
    close(np.array(scores.most_predicted(3)), np.array(said["top3"]), tolerance(case, ""), "most predicted")


def run_perturbation_scores(folder: Path, case: dict) -> None:
    _, inputs, _ = files(folder, case)
    given, expected = case["call_args"], case["expected"]
    X = inputs["X"].numpy()
    conditions = np.array(given["conditions"])
    control = X[conditions == "ctrl"].mean(axis=0)
    column = {name: number for number, name in enumerate(given["var_index"])}
    test = gears.HeldOutCells.from_cells(inputs["pred"].numpy(), inputs["truth"].numpy(), given["test_pert_cat"])
    name_of = dict(zip(given["conditions"], given["condition_names"], strict=True))

    def positions(what: str) -> list[np.ndarray]:
        lists = [given["uns"][what][name_of[condition]] for condition in test.conditions]
        return [np.array([column[g] if isinstance(g, str) else g for g in own], dtype=np.int64) for own in lists]

    order, top = np.stack(positions("rank_genes_groups_cov_all")), positions("top_non_dropout_de_20")
    for name, genes, non_zero in (("metrics", order[:, :20], False), ("metrics_non_zero_genes", np.stack(top), True)):
        scores = scgpt_metrics(test.predicted, test.true, control, genes, non_zero_genes=non_zero)
        for metric, value in expected[name].items():
            close(scgpt_means(scores, test.true)[metric], value, tolerance(case, ""), f"{name} {metric}")
        if not non_zero:
            for metric, values in expected["metrics_per_condition"].items():
                close(scores[metric], np.array(values), tolerance(case, ""), metric)
    means = np.stack([X[conditions == name].mean(axis=0) for name in np.unique(conditions)])
    # In which order the pipeline had the top genes of each cell.
    ranked = np.stack(
        [inputs["pred"].numpy()[rows][:, own] for rows, own in zip(test.rows, order[:, :20], strict=True)]
    )
    given_de = np.stack([inputs["pred_de"].numpy()[rows] for rows in test.rows])
    listed = order[:, :20] if np.allclose(ranked, given_de) else None
    deeper = gears.deeper_analysis(test, control, order, gears.variable_genes(means), listed=listed)
    others = {"non_zero": positions("non_zeros_gene_idx"), "non_dropout": positions("non_dropout_gene_idx")}
    listed = gears.list_analysis(test, control, top, "non_dropout", others=others)
    for kind, scores in (("deeper_analysis", deeper), ("non_dropout_analysis", listed)):
        for row, condition in enumerate(test.conditions):
            for metric, value in expected[kind][condition].items():
                close(scores[metric][row], value, tolerance(case, ""), f"{kind} {condition} {metric}")
    averages = gears.subgroup_means(deeper | listed, test.conditions, given["subgroups"])
    for group, values in expected["subgroup_means"].items():
        for metric, value in values.items():
            close(averages[f"{group}_{metric}"], value, tolerance(case, ""), f"{group} {metric}")


VARIANTS = {"losses": run_losses, "schedulers": run_schedules, "metrics": run_metrics}
