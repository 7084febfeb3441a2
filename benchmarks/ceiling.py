"""Is the ceiling what a prediction scores that knows the truth, in real screens?

    python benchmarks/ceiling.py FOLDER [--seeds 4]

Of conditions with many cells a few are the screen, and the mean of all others is an oracle: what each condition really does, but for
little noise.  Its scores stand beside the estimate that the few cells alone give of them.  The oracle has noise too, so it is
a little worse than a perfect prediction.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from means import hill, norman, papalexi

import scgpt_tools as sct
from scgpt_tools.metrics.evaluation import evaluation_table
from scgpt_tools.metrics.panel import METRICS
from scgpt_tools.screens.held_out import CEILING, HeldOutScreen

if TYPE_CHECKING:
    import anndata as ad

# Table, direction, cells of a condition in the screen, and fewest in all.
TASKS = {
    "papalexi-16": (papalexi, "down", 16, 300),
    "papalexi-48": (papalexi, "down", 48, 300),
    "hill-24": (hill, "down", 24, 100),
    "norman-16": (norman, "up", 16, 60),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    for task in arguments.tasks:
        read, direction, most, fewest = TASKS[task]
        adata = read(arguments.folder).copy()
        sct.pp.parse_conditions(adata, missing="ignore", direction=direction)
        found = pd.concat(scored(adata, most, fewest, seed) for seed in range(arguments.seeds))
        means = found.pivot_table(index="metric", columns="method", values="value", sort=False)
        print(f"\n{task}\n{means.to_string(float_format='{:.4f}'.format)}", flush=True)


def scored(adata: ad.AnnData, most: int, fewest: int, seed: int) -> pd.DataFrame:
    """Scores of the oracle and of the ceiling for one half of the conditions, the other half being training."""
    random = np.random.default_rng(seed)
    labels = adata.obs["condition"].astype(str)
    often = labels.value_counts()
    conditions = [name for name in often.index if often[name] >= fewest and name != "ctrl"]
    cells, truth = [], {}
    for name in [*conditions, "ctrl"]:
        rows = random.permutation(np.flatnonzero(labels == name))
        few = 4 * most if name == "ctrl" else most
        cells.append(rows[:few])
        truth[name] = np.asarray(adata.X[rows[few:]].mean(axis=0), dtype=np.float64).ravel()
    screen = adata[np.concatenate(cells)].copy()
    test = set(random.permutation(conditions)[: len(conditions) // 2])
    screen.obs["split"] = ["test" if name in test else "train" for name in screen.obs["condition"].astype(str)]
    held = HeldOutScreen.read(screen, seed=seed)
    profiles = np.stack([truth[name] for name in held.conditions])
    # Errors are those of profiles, the other scores those of changes against the control.
    errors = evaluation_table({"oracle": profiles}, held.truth)
    oracle = evaluation_table({"oracle": held.truth.control + profiles - truth["ctrl"]}, held.truth)
    down = errors["metric"].map(lambda name: not METRICS[name].higher_is_better)
    oracle.loc[down, "value"] = errors.loc[down, "value"]
    return pd.concat([oracle, held.ceiling.scores(CEILING)], ignore_index=True)


if __name__ == "__main__":
    main()
