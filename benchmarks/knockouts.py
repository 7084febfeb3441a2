"""Whether genes that are knocked out in silico move cells as much, and where to, as those that were knocked out in cells.

    python benchmarks/knockouts.py FOLDER [--seeds 0 1 2] [--untuned] [--cells 300]

FOLDER holds ``papalexi2021_thp1_eccite.h5ad``.  ``scgpt-demo`` learns from the control cells only, by predicting values
that are hidden; then each target that the panel measures is removed from control cells, and its shift is compared with
that of cells in which it was knocked out.  Beside it stand the expression of the gene in control cells (highly expressed
genes move cells whatever they do), the model before it saw these cells, and how well the measured shift repeats itself in
two halves of the cells.  Targets that the panel lacks cannot be removed.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.stats import spearmanr

import scgpt_tools as sct

MODEL, CONTROL = "scgpt-demo", "ctrl"
ASKED = ["IFNGR2", "STAT1", "IRF1", "CD86"]
HOW = {"task": "integrate", "batch_key": "batch", "epochs": 5, "batch_size": 64, "lr": 1e-3, "accelerator": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--untuned", action="store_true", help="also the model as it is")
    parser.add_argument("--cells", type=int, default=300, help="control cells of each replicate to change genes in")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    pd.set_option("display.width", 200)
    sct.settings.show_progress = False
    sct.settings.verbosity = "warning"
    cells = ad.read_h5ad(arguments.folder / "papalexi2021_thp1_eccite.h5ad")
    cells.obs["gene"] = cells.obs["condition"].astype(str).str.removesuffix("+ctrl")
    targets = [gene for gene in sorted(set(cells.obs["gene"])) if gene in cells.var_names]
    lacking = sorted(set(cells.obs["gene"]) - {CONTROL} - set(targets))
    print(f"measured targets: {', '.join(targets)}\nnot in the panel: {', '.join(lacking)}")
    print(f"of those asked for: {', '.join(gene for gene in ASKED if gene in targets)}", flush=True)
    cells = cells[cells.obs["gene"].isin([CONTROL, *targets])].copy()
    rows = [one(cells, targets, seed, arguments.cells) for seed in arguments.seeds]
    if arguments.untuned:
        rows.append(one(cells, targets, 0, arguments.cells, tuned=False))
    for name, table in rows:
        print(f"\n{name}\n{table.round(4).to_string()}")
    print("\nrank correlation over targets with what was measured, interval by resampling targets")
    print(pd.concat([correlations(name, table) for name, table in rows], ignore_index=True).round(2).to_string())


def one(
    cells: ad.AnnData, targets: list[str], seed: int, n_cells: int, *, tuned: bool = True
) -> tuple[str, pd.DataFrame]:
    """Shifts in silico and measured, in the embedding of one model and in expression."""
    controls = cells[cells.obs["gene"] == CONTROL].copy()
    model = sct.CellModel.from_pretrained(MODEL)
    if tuned:
        # Half of the panel is new to the demo model; its genes begin with random vectors.
        model = model.adapt(model.vocabulary.extended(cells.var_names.difference(model.vocabulary.tokens)))
        model = sct.train.finetune(controls, model, rng=seed, **HOW)
    batch_key = "batch" if tuned else None
    found = sct.tl.knockout(
        controls, model, genes=targets, n_cells=n_cells * 3, n_null=100, min_cells=10, batch_key=batch_key, rng=seed
    )
    in_silico = found.obs[found.obs["role"] == "asked"].set_index("gene")
    sct.tl.embed(cells, model, batch_key=batch_key, key_added="X_now")
    table = pd.DataFrame(
        {
            "in silico": in_silico["displacement"],
            "shift of changed cells": in_silico["shift"],
            "z-score": in_silico["z_score"],
            "q": in_silico["q_value"],
            "expression": mean_of(controls, targets),
            "measured, embedding": measured(cells, cells.obsm["X_now"], targets),
            "measured, expression": measured(cells, pca(cells), targets),
            "measured again": measured(cells, cells.obsm["X_now"], targets, half=True),
        }
    )
    moves = pd.DataFrame(found.obsm["displacement"][: len(in_silico)], index=in_silico.index)
    table["cosine with the measured move"] = [
        cosine(moves.loc[gene], mean_move(cells, cells.obsm["X_now"], gene)) for gene in table.index
    ]
    return (f"fine-tuned on controls, seed {seed}" if tuned else "not fine-tuned"), table


def mean_of(controls: ad.AnnData, targets: list[str]) -> pd.Series:
    return pd.Series(np.asarray(controls[:, targets].X.mean(axis=0)).ravel(), index=targets)


def pca(cells: ad.AnnData) -> np.ndarray:
    other = ad.AnnData(cells.X.copy(), obs=cells.obs[[]], var=cells.var[[]])
    sc.pp.pca(other, n_comps=30, random_state=0)
    return other.obsm["X_pca"]


def measured(cells: ad.AnnData, points: np.ndarray, targets: list[str], *, half: bool = False) -> pd.Series:
    """Squared distance of the mean of perturbed cells from that of controls, less what is expected of the noise.

    Replicates are compared within themselves, and the least of cells decides nothing: both means are of all cells.  With
    ``half``, of every second cell of a condition.
    """
    rows = np.arange(cells.n_obs) % 2 == 0 if half else np.ones(cells.n_obs, dtype=bool)
    return pd.Series({gene: squared_shift(cells, points, gene, rows) for gene in targets})


def squared_shift(cells: ad.AnnData, points: np.ndarray, gene: str, rows: np.ndarray) -> float:
    total, weight = 0.0, 0
    for batch in cells.obs["batch"].unique():
        inside = rows & (cells.obs["batch"] == batch).to_numpy()
        own = points[inside & (cells.obs["gene"] == gene).to_numpy()].astype(float)
        other = points[inside & (cells.obs["gene"] == CONTROL).to_numpy()].astype(float)
        if len(own) < 5 or len(other) < 5:
            continue
        noise = sum(part.var(axis=0, ddof=1).sum() / len(part) for part in (own, other))
        total += len(own) * (((own.mean(axis=0) - other.mean(axis=0)) ** 2).sum() - noise)
        weight += len(own)
    return total / weight


def mean_move(cells: ad.AnnData, points: np.ndarray, gene: str) -> np.ndarray:
    moves, sizes = [], []
    for batch in cells.obs["batch"].unique():
        inside = (cells.obs["batch"] == batch).to_numpy()
        own = points[inside & (cells.obs["gene"] == gene).to_numpy()]
        moves.append(own.mean(axis=0) - points[inside & (cells.obs["gene"] == CONTROL).to_numpy()].mean(axis=0))
        sizes.append(len(own))
    return np.average(moves, axis=0, weights=sizes)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def correlations(name: str, table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for truth in ("measured, embedding", "measured, expression"):
        for score in ("in silico", "shift of changed cells", "z-score", "expression", "measured again"):
            if score == "measured again" and truth != "measured, embedding":
                continue
            pair = table[[score, truth]].dropna()
            low, high = interval(pair.to_numpy())
            rows.append((name, truth, score, len(pair), spearmanr(pair).statistic, low, high))
    return pd.DataFrame(rows, columns=["model", "truth", "score", "targets", "spearman", "low", "high"])


def interval(pairs: np.ndarray, n_draws: int = 2000) -> tuple[float, float]:
    """95 % of rank correlations of targets drawn with replacement, draws of fewer than three different ones left out."""
    rng = np.random.default_rng(0)
    draws = (pairs[rng.integers(0, len(pairs), len(pairs))] for _ in range(n_draws))
    found = [spearmanr(draw).statistic for draw in draws if len(np.unique(draw, axis=0)) > 2]
    return tuple(np.nanquantile(found, (0.025, 0.975)))


if __name__ == "__main__":
    main()
