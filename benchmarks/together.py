"""Do networks of perturbations add to models without one, and which of their cells look like real ones?

    python benchmarks/together.py run FOLDER TASK DATA_SEED -o RESULTS [--trainings 3] [--most 24] [--epochs 30]
    python benchmarks/together.py show -o RESULTS

``run`` fine-tunes ``scgpt-demo`` with several seeds on one division of a screen, by means of 16 cells, and asks

- what the mean over these networks is worth beside each of them (``network``, ``ensemble``);
- of conditions that were seen: whether measured effects, shrunken towards the network's instead of towards zero, are nearer to those of
  other cells (``anchored``, beside ``shrunken_mean``);
- of doubles that are held out: whether the kernel model gets better with a share of what the networks say otherwise, fitted on
  validation doubles (``kernel + network``);
- which cells have the variance of true ones and are near to them: those of the network, controls moved by its mean effect in
  several ways, and those of baselines.

Tasks are those of ``means.py`` in which cells are held out, and ``norman-doubles``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from means import ARMS, LENGTH, TASKS, divide, norman, screen

import scgpt_tools as sct
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.perturbation import held_out_means, open_predictor
from scgpt_tools.metrics.kernel_ridge import kernel
from scgpt_tools.metrics.shrinkage import shrink_effects
from scgpt_tools.screens.held_out import HeldOutScreen
from scgpt_tools.screens.predicted_cells import CellScores, Samples, score_cells

if TYPE_CHECKING:
    import anndata as ad

DOUBLES = "norman-doubles"
SHOWN = ("mse", "mse_weighted", "pearson_control", "pearson_perturbed_mean", "centroid_accuracy", "discrimination_l1")
N_CONTROLS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, shows = commands.add_parser("run"), commands.add_parser("show")
    runs.add_argument("folder", type=Path)
    runs.add_argument("task", choices=[*(name for name, task in TASKS.items() if task[3] == 0.4), DOUBLES])
    runs.add_argument("seed", type=int)
    runs.add_argument("--trainings", type=int, default=3)
    runs.add_argument("--most", type=int, default=24, help="cells of a condition")
    runs.add_argument("--epochs", type=int, default=30)
    for own in (runs, shows):
        own.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.command == "show":
        show(arguments.output)
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    sct.settings.show_progress = False
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    adata = divided(arguments)
    parts = ("test", "val") if arguments.task == DOUBLES else ("test",)
    screens = {part: HeldOutScreen.read(adata, part=part, seed=arguments.seed) for part in parts}
    networks = [train(adata, seed, arguments.epochs) for seed in range(arguments.trainings)]
    effects, cells = {}, []
    for part, own in screens.items():
        found = [predict(adata, network, own) for network in networks]
        effects[part] = np.stack([profiles - own.truth.control for profiles, _ in found])
        cells = [kept for _, kept in found] if part == "test" else cells
    test = screens["test"]
    control, mean = test.truth.control, effects["test"].mean(axis=0)
    profiles = {f"network #{seed}": control + own for seed, own in enumerate(effects["test"])}
    profiles["ensemble"] = control + mean
    if arguments.task == DOUBLES:
        known, asked = (kernel(test.train, own.targets).effects for own in (screens["val"], test))
        otherwise = effects["val"].mean(axis=0) - known
        left = screens["val"].truth.true - screens["val"].truth.control - known
        share = float(np.sum(otherwise * left) / np.sum(otherwise**2))
        print(f"share of the network: {share:.3f}")
        profiles["kernel + network"] = control + asked + share * (mean - asked)
        profiles["kernel + network, share 0 to 1"] = control + asked + np.clip(share, 0, 1) * (mean - asked)
    else:
        profiles["anchored"] = control + anchored(test, mean)
    name = f"{arguments.task}_{arguments.most}_{arguments.seed}"
    table = test.table(profiles)
    table.assign(task=arguments.task, seed=arguments.seed).to_csv(arguments.output / f"{name}_means.csv", index=False)
    of_cells(test, cells, mean, arguments.seed).assign(task=arguments.task, seed=arguments.seed).to_csv(
        arguments.output / f"{name}_cells.csv", index=False
    )
    show(arguments.output, name)


def divided(arguments: argparse.Namespace) -> ad.AnnData:
    if arguments.task != DOUBLES:
        read, direction, within, held_out = TASKS[arguments.task]
        adata = screen(read(arguments.folder), direction, within, arguments.most, arguments.seed)
        divide(adata, held_out, within, arguments.seed)
        return adata
    adata = screen(norman(arguments.folder), "up", None, arguments.most, arguments.seed)
    names = [str(name) for name in adata.obs["condition"].cat.categories if name != "ctrl"]
    doubles = np.random.default_rng(arguments.seed).permutation([name for name in names if "ctrl" not in name])
    parts = {"test": list(doubles[:5]), "val": list(doubles[5:9])}
    parts["train"] = ["ctrl"] + [name for name in names if name not in (*parts["test"], *parts["val"])]
    sct.pp.perturbation_split(adata, "custom", parts=parts)
    return adata


def train(adata: ad.AnnData, seed: int, epochs: int) -> sct.CellModel:
    """A network trained as the arm ``means-long`` of ``means.py``."""
    genes = {gene for name in adata.obs["condition"].unique() for gene in str(name).split("+")} - {"ctrl"}
    base = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    torch.manual_seed(seed)
    base = base.adapt(vocabulary=base.vocabulary.extended([*adata.var_names, *sorted(genes)]))
    began = perf_counter()
    options = ARMS["means-long"] | {"epochs": epochs}
    model = sct.train.finetune(
        adata, base, task="perturb", unmeasured="token", length=LENGTH, accelerator="cpu", rng=seed, **options
    )
    print(f"training {seed}: {perf_counter() - began:.0f} s", flush=True)
    return model


def predict(adata: ad.AnnData, network: sct.CellModel, own: HeldOutScreen) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    predictor = open_predictor(
        adata, network, Request(device="cpu"), key="condition", unmeasured="token", opened=own.source
    )
    return held_out_means(own, predictor, n_controls=N_CONTROLS, keep=True, show_progress=False)


def anchored(test: HeldOutScreen, predicted: np.ndarray) -> np.ndarray:
    """Effects of conditions that were seen: measured ones, shrunken towards predicted ones."""
    train = test.train.by_genes()
    rows = [train.perturbed.index(tuple(sorted(genes))) for genes in test.targets]
    return predicted + shrink_effects(train.effects[rows] - predicted, train.errors[rows])


def of_cells(test: HeldOutScreen, networks: list[dict[str, np.ndarray]], mean: np.ndarray, seed: int) -> pd.DataFrame:
    """Energy distance to true cells, and variance as a share of theirs, by condition and method."""
    plain = Samples.read(test, {"network": networks[0]}, n_controls=N_CONTROLS, seed=seed)
    baselines = test.baselines()
    models: dict[str, dict[str, np.ndarray]] = {"network": networks[0], "members of the ensemble": {}}
    for number, name in enumerate(test.rows):
        controls = plain.controls[plain.contexts[number]].astype(float)
        kernel_effect = baselines["kernel"][number] - test.truth.control[number]
        shrunken = baselines["shrunken_mean"][number] - test.truth.control[number]
        models["members of the ensemble"][name] = np.concatenate([kept[name] for kept in networks])
        for whose, effect in (("network", mean[number]), ("kernel", kernel_effect), ("shrunken", shrunken)):
            for how, move in MOVES.items():
                models.setdefault(f"{whose}, {how}", {})[name] = move(controls, effect).astype(np.float32)
    samples = Samples.read(test, models, n_controls=N_CONTROLS, seed=seed)
    scores = score_cells(samples, CellScores(own=True))
    spread = []
    for method in samples.methods:
        for number, name in enumerate(samples.rows):
            predicted, true = samples.pair(method, number)
            share = float(predicted.var(axis=0).sum() / true.var(axis=0).sum())
            spread.append((name, method, "variance", share))
    return pd.concat([scores, pd.DataFrame(spread, columns=scores.columns)], ignore_index=True)


def shifted(controls: np.ndarray, effect: np.ndarray) -> np.ndarray:
    return controls + effect


def clipped(controls: np.ndarray, effect: np.ndarray) -> np.ndarray:
    return (controls + effect).clip(min=0)


def scaled_down(controls: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Genes that go down are multiplied, those that go up are shifted: never below zero, and of the predicted mean."""
    mean = controls.mean(axis=0)
    factor = np.where(mean > 0, ((mean + effect) / np.where(mean > 0, mean, 1)).clip(min=0), 0)
    return np.where(effect < 0, controls * factor, controls + effect)


def scaled(controls: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """All genes are multiplied, so that zeros stay."""
    mean = controls.mean(axis=0)
    factor = np.where(mean > 0, ((mean + effect) / np.where(mean > 0, mean, 1)).clip(min=0), 0)
    return np.where(mean > 0, controls * factor, controls + effect.clip(min=0))


MOVES = {"shifted": shifted, "clipped": clipped, "scaled down": scaled_down, "scaled": scaled}


def show(folder: Path, name: str = "*") -> None:
    for kind in ("means", "cells"):
        files = sorted(folder.glob(f"{name}_{kind}.csv"))
        table = pd.concat([pd.read_csv(file).assign(file=file.stem.rsplit("_", 2)[0]) for file in files])
        table["method"] = table["method"].str.replace(r" #\d+", "", regex=True)
        if kind == "means":
            table = table[table["metric"].isin(SHOWN)]
        for task, own in table.groupby("file"):
            shown = own.groupby(["method", "metric"], sort=False)["value"].mean().unstack()
            print(f"\n{task}, {own['seed'].nunique()} divisions\n{shown.to_string(float_format='{:.4f}'.format)}")


if __name__ == "__main__":
    main()
