"""An index of many annotated cells: seconds, memory and recall; and what its confidences and rejections are worth.

    OMP_NUM_THREADS=2 python benchmarks/atlas.py FOLDER [--cells 200000] [--queries 10000] [--indexes exact compressed scgpt]
    python benchmarks/atlas.py --calibration pbmc_3_chemistries.h5ad

The first writes synthetic embeddings to the folder (512 dimensions of unit length: 40 types of unequal size in 20 donors,
each cell a point of a 24-dimensional cloud around its type, moved by its donor, with noise in all dimensions), makes each
index from the file in a process of its own, and maps new cells of the same types and donors with it in another.  Seconds
are those of the processors, all together, which other programs disturb less than those of the clock.  Recall is the share
of the exact nearest neighbours, which are kept in the folder, among those found.

The second embeds real cells of three chemistries with the demo model and maps each to the other two: how far confidences are
from the share of right answers, and how many cells of known types, and of each type that is left out of the reference, are
rejected at 0.05.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from memory import peak

import scgpt_tools as sct

DIM, TYPES, DONORS, INSIDE = 512, 40, 20, 24
NEIGHBOURS = (10, 50)
PIECE = 50_000


def cells(n: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Synthetic embeddings of a world that is the same for every seed."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    shares = world.dirichlet(np.full(TYPES, 0.5))
    centres = 3 * world.normal(size=(TYPES, DIM))
    axes = world.normal(size=(TYPES, INSIDE, DIM)) * np.geomspace(1, 0.2, INSIDE)[:, None]
    moves = 0.5 * world.normal(size=(DONORS, DIM))
    kinds, donors = rng.choice(TYPES, n, p=shares), rng.integers(0, DONORS, n)
    vectors = np.empty((n, DIM), dtype=np.float32)
    for start in range(0, n, PIECE):
        some = slice(start, start + PIECE)
        inside = rng.normal(size=(len(kinds[some]), INSIDE))
        block = centres[kinds[some]] + moves[donors[some]] + 0.3 * rng.normal(size=(len(inside), DIM))
        for kind in range(TYPES):
            block[kinds[some] == kind] += inside[kinds[some] == kind] @ axes[kind]
        vectors[some] = block / np.linalg.norm(block, axis=1, keepdims=True)
    names = [f"{seed}-{number}" for number in range(n)]
    return vectors, pd.DataFrame({"kind": kinds.astype(str), "donor": donors.astype(str)}, index=names)


def table(n: int, seed: int) -> ad.AnnData:
    vectors, obs = cells(n, seed)
    return ad.AnnData(obs=obs, obsm={"X_scGPT": vectors})


def build(source: Path, folder: Path, index: str) -> None:
    """Index a file in this process; prints seconds and the peak of memory."""
    before, start = peak(), time.process_time()
    if index == "exact":
        sct.tl.index_reference(ad.read_h5ad(source), label_key="kind", batch_key="donor").save(folder)
    else:
        sct.tl.index_store(
            source, folder, label_key="kind", batch_key="donor", index=index, show_progress=False, overwrite=True
        )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{time.process_time() - start:.1f} {peak():.0f} {peak() - before:.0f} {size:.0f}")


def use(source: Path, folder: Path, query: Path, found: Path) -> None:
    """Map the queries in this process; prints seconds, the peak of memory and the accuracy; keeps the neighbours."""
    adata = ad.read_h5ad(query)
    before, start = peak(), time.process_time()
    sct.tl.map_reference(adata, folder, k=max(NEIGHBOURS), calibrate=True, reject=0.05)
    seconds = time.process_time() - start
    right = (adata.obs["mapped_cell_type"].astype(str) == adata.obs["kind"]).mean()
    np.save(found, adata.obsm["mapped_cell_type_neighbors"])
    print(f"{seconds:.1f} {peak():.0f} {peak() - before:.0f} {right:.4f}")


def in_a_process(*words: object) -> list[str]:
    ran = subprocess.run([sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True)
    return ran.stdout.split()


def compare(folder: Path, n: int, n_queries: int, indexes: list[str]) -> None:
    source, query = folder / f"reference{n}.h5ad", folder / f"query{n_queries}.h5ad"
    for path, size, seed in ((source, n, 1), (query, n_queries, 2)):
        if not path.exists():
            table(size, seed).write_h5ad(path)
    truth = folder / f"index_{n}_exact.npy"
    print(
        f"{'index':28} {'build/s':>8} {'peak/MiB':>9} {'file/MiB':>9} {'map/s':>7} {'peak/MiB':>9}"
        + "".join(f" {f'recall@{k}':>10}" for k in NEIGHBOURS)
        + f" {'accuracy':>9}"
    )
    for index in indexes:
        place = folder / f"index_{n}_{index.replace(',', '_')}"
        found = folder / f"{place.name}.npy"
        built = in_a_process(folder, "--build", source, place, index)
        mapped = in_a_process(folder, "--use", source, place, query, found)
        rows, exact = np.load(found), np.load(truth)
        recalls = [
            np.mean([np.isin(one[:k], two[:k]).mean() for one, two in zip(exact, rows, strict=True)])
            for k in NEIGHBOURS
        ]
        print(
            f"{index:28} {built[0]:>8} {built[1]:>9} {built[3]:>9} {mapped[0]:>7} {mapped[1]:>9}"
            + "".join(f" {recall:10.3f}" for recall in recalls)
            + f" {mapped[3]:>9}",
            flush=True,
        )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean distance of confidence and share of right answers in ten groups of equal size."""
    groups = np.array_split(np.argsort(confidence, kind="stable"), 10)
    return float(np.mean([abs(confidence[group].mean() - right[group].mean()) for group in groups]))


def calibration(path: Path, model: str, label_key: str) -> None:
    from sklearn.metrics import roc_auc_score

    adata = ad.read_h5ad(path)
    sct.tl.embed(adata, model, show_progress=False)
    key = "mapped_cell_type"
    rows: list[dict[str, object]] = []
    for batch in adata.obs["batch"].unique():
        reference, query = (
            adata[chosen].copy() for chosen in (adata.obs["batch"] != batch, adata.obs["batch"] == batch)
        )
        kinds = query.obs[label_key].astype(str).to_numpy()
        for across in (None, "batch"):
            row: dict[str, object] = {"query": batch, "held out across": across or "cells"}
            index = sct.tl.index_reference(reference, label_key=label_key, batch_key=across)
            for name, calibrate in (("votes", False), ("calibrated", True)):
                sct.tl.map_reference(query, index, calibrate=calibrate)
                right = query.obs[key].astype(str).to_numpy() == kinds
                row["accuracy"] = right.mean()
                row[f"error of {name}"] = calibration_error(query.obs[f"{key}_confidence"].to_numpy(), right)
            sct.tl.map_reference(query, index, reject=0.05)
            row["known lost"] = (query.obs[key] == "unassigned").mean()
            for kind in np.unique(kinds):
                without = reference[(reference.obs[label_key].astype(str) != kind).to_numpy()].copy()
                index = sct.tl.index_reference(without, label_key=label_key, batch_key=across)
                sct.tl.map_reference(query, index, reject=0.05)
                unknown = kinds == kind
                rows.append(
                    {
                        **row,
                        "left out": kind,
                        "cells": unknown.sum(),
                        "found out": (query.obs[key] == "unassigned").to_numpy()[unknown].mean(),
                        "AUROC": roc_auc_score(unknown, -query.obs[f"{key}_p_value"].to_numpy()),
                        "AUROC of votes": roc_auc_score(unknown, -query.obs[f"{key}_confidence"].to_numpy()),
                    }
                )
    found = pd.DataFrame(rows)
    numbers = ["accuracy", "error of votes", "error of calibrated", "known lost"]
    print(found.groupby(["held out across", "query"])[numbers].first().round(3).to_string())
    numbers = ["cells", "found out", "AUROC", "AUROC of votes"]
    print(found.groupby(["held out across", "left out"])[numbers].mean().round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="scratch; a folder that exists")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--indexes", nargs="+", default=["exact", "compressed", "scgpt"], help="exact first")
    parser.add_argument("--calibration", type=Path, help="table with `batch` and cell types")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--model", default="scgpt-demo")
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--use", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(Path(arguments.build[0]), Path(arguments.build[1]), arguments.build[2])
    elif arguments.use:
        use(*map(Path, arguments.use))
    elif arguments.calibration:
        calibration(arguments.calibration, arguments.model, arguments.label_key)
    elif arguments.folder:
        compare(arguments.folder, arguments.cells, arguments.queries, arguments.indexes)
    else:
        parser.error("expected a folder, or a table for --calibration")


if __name__ == "__main__":
    main()
