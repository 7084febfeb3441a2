"""Do networks of perturbations predict better cells if they learn from pairs by optimal transport?

    python benchmarks/transport.py run FOLDER TASK ARM SEED -o RESULTS [--most 100] [--epochs 20]
    python benchmarks/transport.py show -o RESULTS

``run`` fine-tunes ``scgpt-demo`` once and compares the cells that it predicts of each condition with held-out ones, beside controls
that are moved by its mean change, controls as they are, and controls moved by what baselines know.  Tasks are those of ``means.py``
in which cells of seen conditions are held out.  Arms differ in the pairs that are learnt from
and in nothing else: random ones, those by transport with one control or four a cell, and means of 16 random pairs.  Cells are paired
within their part of the split, so that no held-out cell has a say in the pairs of others.  A seed draws the division, pairs, weights
and minibatches.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from means import ARMS as RECIPES
from means import LENGTH, TASKS
from together import N_CONTROLS, clipped, divided, predict

import scgpt_tools as sct
from scgpt_tools.screens.held_out import HeldOutScreen
from scgpt_tools.screens.predicted_cells import CellScores, Samples, score_cells

ARMS = {
    "random": {"method": "random"},
    "transport": {"method": "transport"},
    "transport-4": {"method": "transport", "n": 4},
    "means": {"method": "random"},
}
BATCH_SIZE = 16
"""Smaller than the default of 64, for more steps on few cells."""
METRICS = ("mse", "variance", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, shows = commands.add_parser("run"), commands.add_parser("show")
    runs.add_argument("folder", type=Path)
    runs.add_argument("task", choices=[name for name, task in TASKS.items() if task[3] == 0.4])
    runs.add_argument("arm", choices=ARMS)
    runs.add_argument("seed", type=int)
    runs.add_argument("--most", type=int, default=100, help="cells of a condition")
    runs.add_argument("--epochs", type=int, default=20)
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
    arm, seed = arguments.arm, arguments.seed
    adata = divided(arguments)
    test = HeldOutScreen.read(adata, seed=seed)
    sct.pp.pair_controls(adata, within="split", rng=seed, **ARMS[arm])
    genes = {gene for name in adata.obs["condition"].unique() for gene in str(name).split("+")} - {"ctrl"}
    base = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    torch.manual_seed(seed)
    base = base.adapt(vocabulary=base.vocabulary.extended([*adata.var_names, *sorted(genes)]))
    recipe = RECIPES["means-long" if arm == "means" else "single-long"] | {
        "epochs": arguments.epochs,
        "batch_size": BATCH_SIZE,
    }
    began = perf_counter()
    model = sct.train.finetune(
        adata, base, task="perturb", unmeasured="token", length=LENGTH, accelerator="cpu", rng=seed, **recipe
    )
    trained = perf_counter() - began
    profiles, cells = predict(adata, model, test)
    found = pd.concat([of_means(test, {arm: profiles}), of_cells(test, arm, profiles, cells, seed)])
    name = f"{arguments.task}_{arm}_{seed}"
    found.assign(task=arguments.task, seed=seed).to_csv(arguments.output / f"{name}.csv", index=False)
    print(f"{name}: {adata.n_obs} cells, {trained:.0f} s", table(found).to_string(), sep="\n", flush=True)


def of_means(test: HeldOutScreen, profiles: dict[str, np.ndarray]) -> pd.DataFrame:
    """Errors of mean profiles by condition and method."""
    scores = test.table(profiles)
    return scores.loc[scores["metric"] == "mse", ["condition", "method", "metric", "value"]]


def of_cells(
    test: HeldOutScreen, arm: str, profiles: np.ndarray, cells: dict[str, np.ndarray], seed: int
) -> pd.DataFrame:
    """Energy distance to true cells, and variance as a share of theirs, by condition and method."""
    plain = Samples.read(test, {}, n_controls=N_CONTROLS, seed=seed)
    changes = dict(zip(test.rows, profiles - test.truth.control, strict=True))
    moved = {
        name: clipped(plain.controls[context], changes[name]).astype(np.float32)
        for name, context in zip(test.rows, test.row_contexts, strict=True)
    }
    samples = Samples.read(test, {arm: cells, f"{arm}, moved controls": moved}, n_controls=N_CONTROLS, seed=seed)
    scores = score_cells(samples, CellScores(own=True))
    spread = []
    for method in samples.methods:
        for number, name in enumerate(samples.rows):
            predicted, true = samples.pair(method, number)
            share = float(predicted.var(axis=0).sum() / true.var(axis=0).sum())
            spread.append((name, method, "variance", share))
    return pd.concat([scores, pd.DataFrame(spread, columns=scores.columns)], ignore_index=True)


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over conditions of what is shown."""
    shown = scores[scores["metric"].isin(METRICS)]
    means = shown.groupby(["method", "metric"], sort=False)["value"].mean().unstack()
    return means.reindex(columns=METRICS).round(4)


def show(folder: Path) -> None:
    every = pd.concat(map(pd.read_csv, sorted(folder.glob("*.csv"))), ignore_index=True)
    every = every.drop_duplicates(["task", "seed", "method", "metric", "condition"])
    for task, own in every.groupby("task", sort=False):
        by_seed = pd.concat({seed: table(scores) for seed, scores in own.groupby("seed")}, names=["seed"])
        grouped = by_seed.groupby("method", sort=False)
        spread = grouped.agg(["min", "max"])
        spread.columns = [" ".join(column) for column in spread.columns]
        print(f"\n{task}, {own['seed'].nunique()} seeds\n{grouped.mean().join(spread).round(4).to_string()}")


if __name__ == "__main__":
    main()
