"""Do models of perturbations learn more from means of cells than from single cells?

    python benchmarks/means.py run FOLDER TASK ARM SEED -o RESULTS
    python benchmarks/means.py show -o RESULTS

``run`` fine-tunes ``scgpt-demo`` once and scores it beside all baselines, ``show`` makes tables of what is in RESULTS.  Tasks are
a screen and what is held out: cells of conditions that were seen, a cell line in which none was, or conditions.  The arms
``default`` is what ``finetune`` does unless told otherwise, ``single-15`` and ``means-15`` have the settings of scGPT's authors,
``single-long`` and ``means-long`` those of the tutorial on gene texts; within a pair nothing differs but the number of cells whose mean is taken.  A seed draws the division, weights, minibatches
and the halves of the controls.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from time import perf_counter

import anndata as ad
import numpy as np
import pandas as pd
import torch

import scgpt_tools as sct

NORMAN = "norman2019_mcfaline2024_cells"
LONG = {"epochs": 30, "lr": 1e-3, "schedule": "cosine", "controls": False, "patience": None}
ARMS = {
    "default": {},
    "single-15": {"cells_per_mean": 1, "epochs": 15, "lr": 1e-4},
    "means-15": {"cells_per_mean": 16, "epochs": 15, "lr": 1e-4},
    "single-long": {"cells_per_mean": 1, **LONG},
    "means-long": {"cells_per_mean": 16, **LONG},
}
LENGTH = 128
"""Genes of a cell in training, drawn anew every epoch; every gene is predicted."""
FEWEST = 40
"""Cells of a condition, below which it is left out."""
SHOWN = ("mse", "mse_weighted", "pearson_control", "pearson_perturbed_mean", "centroid_accuracy", "discrimination_l1")


def hill(folder: Path) -> ad.AnnData:
    return ad.read_h5ad(folder / "hill2018_mcf10a_cropseq_panel.h5ad")


def norman(folder: Path) -> ad.AnnData:
    adata = ad.read_h5ad(folder / f"{NORMAN}.h5ad")
    return adata[adata.obs["cell_type"] == "K562"]


def mcfaline(folder: Path) -> ad.AnnData:
    adata = ad.read_h5ad(folder / f"{NORMAN}.h5ad")
    return adata[adata.obs["cell_type"] != "K562"]


def papalexi(folder: Path) -> ad.AnnData:
    return ad.read_h5ad(folder / "papalexi2021_thp1_eccite.h5ad")


# Table, direction, context, and what is held out: a share of the cells, a value of the context, or conditions.
TASKS = {
    "hill-cells": (hill, "down", None, 0.4),
    "hill-conditions": (hill, "down", None, "simulation_single"),
    "norman-cells": (norman, "up", None, 0.4),
    "norman-conditions": (norman, "up", None, "simulation"),
    "mcfaline-cells": (mcfaline, "down", "cell_type", 0.4),
    "mcfaline-line": (mcfaline, "down", "cell_type", ["U87MG"]),
    "papalexi-replicate": (papalexi, "down", "batch", ["rep_3"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, shows = commands.add_parser("run"), commands.add_parser("show")
    runs.add_argument("folder", type=Path)
    runs.add_argument("task", choices=TASKS)
    runs.add_argument("arm", choices=ARMS)
    runs.add_argument("seed", type=int)
    runs.add_argument("--most", type=int, default=100, help="cells of a condition and context")
    runs.add_argument("--epochs", type=int, help="for a try")
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
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    read, direction, within, held_out = TASKS[arguments.task]
    adata = screen(read(arguments.folder), direction, within, arguments.most, arguments.seed)
    divide(adata, held_out, within, arguments.seed)
    settings = ARMS[arguments.arm] | ({"epochs": arguments.epochs} if arguments.epochs else {})
    # Tokens of all genes, perturbed ones that are not measured among them, also of those that training does not see.
    genes = {gene for name in adata.obs["condition"].unique() for gene in str(name).split("+")} - {"ctrl"}
    base = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    torch.manual_seed(arguments.seed)
    base = base.adapt(vocabulary=base.vocabulary.extended([*adata.var_names, *sorted(genes)]))
    began = perf_counter()
    model = sct.train.finetune(
        adata, base, task="perturb", unmeasured="token", length=LENGTH, within=within, accelerator="cpu", rng=arguments.seed,
        **settings,
    )  # fmt: skip
    trained = perf_counter() - began
    scores = sct.tl.evaluate_perturbation(
        adata, {arguments.arm: model}, within=within, unmeasured="token", n_controls=128, rng=arguments.seed
    )
    name = f"{arguments.task}_{arguments.arm}_{arguments.seed}"
    scores.table.assign(task=arguments.task, seed=arguments.seed).to_csv(arguments.output / f"{name}.csv", index=False)
    print(
        f"{name}: {trained:.0f} s, {len(model.history)} epochs",
        scores.means()[list(SHOWN)].round(4),
        sep="\n",
        flush=True,
    )


def screen(adata: ad.AnnData, direction: str, within: str | None, most: int, seed: int) -> ad.AnnData:
    """At most so many cells of each condition and context, of conditions with enough."""
    labels = adata.obs["condition"].astype(str)
    often = labels.map(labels.value_counts()) >= FEWEST
    places = pd.Series(np.arange(adata.n_obs))[often.to_numpy()]
    keys = [labels[often].to_numpy()] + ([adata.obs[within].astype(str)[often].to_numpy()] if within else [])
    random = np.random.default_rng(seed)
    kept = [
        random.permutation(own.to_numpy())[: most * (4 if "ctrl" == key[0] else 1)] for key, own in places.groupby(keys)
    ]
    adata = adata[np.sort(np.concatenate(kept))].copy()
    sct.pp.parse_conditions(adata, missing="ignore", direction=direction)
    return adata


def divide(adata: ad.AnnData, held_out: float | str | list[str], within: str | None, seed: int) -> None:
    if isinstance(held_out, str):
        sct.pp.perturbation_split(adata, held_out, draw="stable", rng=seed)
        return
    if isinstance(held_out, list):
        sct.pp.cell_split(adata, within, test=held_out)
        return
    sct.pp.cell_split(
        adata, test=held_out, val=0.1, stratify=["condition", within] if within else "condition", rng=seed
    )


def show(folder: Path) -> None:
    table = pd.concat(map(pd.read_csv, sorted(folder.glob("*.csv"))), ignore_index=True)
    table = table[table["metric"].isin(SHOWN)].drop_duplicates(["task", "seed", "method", "metric", "condition"])
    for task, own in table.groupby("task", sort=False):
        by_seed = own.groupby(["method", "seed", "metric"], sort=False)["value"].mean().unstack()
        shown = by_seed.groupby("method", sort=False).mean().join(
            by_seed.groupby("method", sort=False)["mse"].agg(["min", "max", "size"]), how="left"
        )  # fmt: skip
        print(f"\n{task}\n{shown.to_string(float_format='{:.4f}'.format)}")


if __name__ == "__main__":
    main()
