"""The six metrics of the Virtual Cell Challenge 2026, by cell-eval2, on a measured screen.

    python benchmarks/challenge.py FOLDER [--seeds 3]

Papalexi, four cells in ten of each condition held out: they are predicted from held-out controls, which are moved by the change that
the kernel model has learnt from the other cells or left as they are, or by the training cells of the same condition, a replicate.  0 is a
predictor of the mean response, 1 half of the held-out cells for the other half; needs the extra `challenge`.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import pandas as pd
from means import TASKS, divide, screen

import scgpt_tools as sct

if TYPE_CHECKING:
    import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=1000, help="cells of a condition and replicate")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    sct.settings.show_progress = False
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    found = []
    for seed in range(arguments.seeds):
        read, direction, within, _ = TASKS["papalexi-replicate"]
        adata = screen(read(arguments.folder), direction, within, arguments.most, seed)
        divide(adata, 0.4, within, seed)
        held = adata[adata.obs["split"] == "test"].copy()
        measured = counted(held, held.layers["counts"])
        for name, prediction in predictions(adata, held, seed).items():
            try:
                table = sct.tl.score_challenge(measured, prediction, backend="scanpy", rng=seed)
            except ValueError as error:  # cells without effects that can be measured
                print(f"seed {seed}, {name}: {error}")
                continue
            found.append(table["scaled"].rename((seed, name)))
    shown = pd.concat(found, axis=1).T
    shown.index = pd.MultiIndex.from_tuples(shown.index, names=["seed", "method"])
    shown["mean"] = shown.mean(axis=1, skipna=False)
    print(
        f"{held.obs['condition'].nunique() - 1} conditions; means of {arguments.seeds} seeds, 0 the mean response, 1 a replicate"
    )
    print(shown.groupby("method", sort=False).mean().round(2).to_string())
    print(shown["mean"].unstack().round(2).to_string())


def counted(table: ad.AnnData, counts: np.ndarray) -> ad.AnnData:
    obs = pd.DataFrame({"condition": table.obs["condition"].astype(str).to_numpy()}, index=table.obs_names)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=table.var_names))


def predictions(adata: ad.AnnData, held: ad.AnnData, seed: int) -> dict[str, ad.AnnData]:
    """Predicted cells of all knock-outs, as counts."""
    perturbed = [name.replace("+ctrl", "") for name in held.obs["condition"].cat.categories if name != "ctrl"]
    moved = sct.tl.predict_perturbation(adata, perturbed, "kernel", split="split", as_anndata=True, rng=seed)
    moved = moved[moved.obs["control_cell"].isin(held.obs_names)].copy()
    unchanged = moved.copy()
    unchanged.X = held[moved.obs["control_cell"]].X
    other = adata[(adata.obs["split"] == "train") & (adata.obs["condition"] != "ctrl")]
    return {
        "controls as they are": counted(unchanged, sct.tl.predicted_counts(unchanged, rng=seed)),
        "controls moved by the kernel model": counted(moved, sct.tl.predicted_counts(moved, rng=seed)),
        "training cells of the condition": counted(other, other.layers["counts"]),
    }


if __name__ == "__main__":
    main()
