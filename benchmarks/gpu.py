"""What a CUDA device makes of embedding, prediction and training, beside scGPT's own functions on the same device.

    python benchmarks/gpu.py CELLS.h5ad [--peer FOLDER] [--cells 3000] [--tasks embed predict train]

A model of the published size (12 layers, 512 wide) with random weights and the genes of the data.  Cells are repeated
until there are as many as asked for.  Rates are of whole calls: from a table in memory to a result in memory, tokenizing,
copies to the device and back included.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from embed import flops, untied
from predict import BATCH, SIZE, cells_of, peer, pred_perturb

import scgpt_tools as sct
from scgpt_tools.models import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

TASKS = ("embed", "predict", "train")
EMBEDDING = {
    "ours, bf16": {"precision": "bf16"},
    "ours, bf16, padded": {"precision": "bf16", "attention": "sdpa"},
    "ours, fp16": {"precision": "fp16"},
    "ours, fp32": {"precision": "fp32"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="cells with log-normalised X and a layer of counts")
    parser.add_argument("--layer", default="counts")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--peer", type=Path, help="folder that holds the package scgpt")
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--length", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sct.settings.show_progress, sct.settings.verbosity = False, "error"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} cores\n")
    for task in arguments.tasks:
        {"embed": embed, "predict": predict, "train": train}[task](arguments)


def repeated(adata: ad.AnnData, n_cells: int) -> ad.AnnData:
    rows = np.arange(n_cells) % adata.n_obs
    return ad.AnnData(adata.X[rows], obs={"label": np.asarray(adata.obs["label"])[rows]}, var=adata.var[[]])


def embed(arguments: argparse.Namespace) -> None:
    adata = untied(ad.read_h5ad(arguments.data), arguments.layer)
    adata.obs["label"] = "none"
    adata = repeated(adata, arguments.cells)
    vocabulary = sct.Vocabulary.from_genes(adata.var_names)
    torch.manual_seed(0)
    model = sct.CellModel(FAMILIES["scgpt"](vocabulary, **SIZE), vocabulary).cuda().eval()

    def ours(cells: ad.AnnData, **options: object) -> np.ndarray:
        sct.tl.embed(cells, model, length=arguments.length, key_added="X", show_progress=False, **options)
        return cells.obsm["X"]

    runs: dict[str, Callable[[ad.AnnData], np.ndarray]] = {
        name: (lambda cells, options=options: ours(cells, batch_size=256, **options))
        for name, options in EMBEDDING.items()
    }
    if arguments.peer is not None:
        from peers import ScGPT

        with TemporaryDirectory() as folder:
            theirs = ScGPT(arguments.peer, model.export(folder))
        theirs.model.cuda()
        runs["scGPT, fp16 autocast"] = lambda cells: theirs.embed(cells, length=arguments.length)
    lengths = np.minimum(np.diff(adata.X.indptr) + 1, arguments.length)
    whole = np.diff(adata.X.indptr) + 1 <= arguments.length
    work = sum(flops(lengths, SIZE["layers"], SIZE["dim"], SIZE["hidden"]))
    print(f"Embedding {len(lengths)} cells, {lengths.mean():.0f} tokens a cell")
    print("| | cells/s | TFLOP/s | GiB on the device | smallest cosine to fp32 |\n| --- | --: | --: | --: | --: |")
    reference = ours(adata[:512].copy(), precision="fp32")
    for name, run in runs.items():
        close = (run(adata[:512].copy()) * reference).sum(axis=1)[whole[:512]].min()
        rate, memory = rate_of(lambda run=run: run(adata), len(lengths), arguments.rounds)
        print(f"| {name} | {rate:.0f} | {work / len(lengths) * rate / 1e12:.1f} | {memory:.2f} | {close:.6f} |")
    print()


def predict(arguments: argparse.Namespace) -> None:
    controls = cells_of(arguments.data, 256, 1500)
    vocabulary = sct.Vocabulary.from_genes(controls.var_names)
    torch.manual_seed(0)
    model = sct.CellModel(FAMILIES["scgpt_perturbation"](vocabulary, **SIZE), vocabulary).eval()
    theirs = None if arguments.peer is None else peer(arguments.peer, model).cuda()
    model.cuda()

    def ours(precision: str, batch_size: int) -> np.ndarray:
        sct.tl.predict_perturbation(
            controls,
            [controls.var_names[0]],
            model,
            key=None,
            precision=precision,
            batch_size=batch_size,
            show_progress=False,
        )
        return controls.layers["predicted"]

    runs: dict[str, Callable[[], np.ndarray]] = {
        "ours, bf16": lambda: ours("bf16", 64),
        "ours, fp32": lambda: ours("fp32", 64),
    }
    if theirs is not None:
        runs[f"scGPT, fp32, minibatches of {BATCH}"] = lambda: pred_perturb(
            theirs, controls, vocabulary.ids(controls.var_names)
        )
    print(f"Predicting {controls.n_obs} cells of {controls.n_vars} genes")
    print("| | cells/s | GiB on the device | largest difference to fp32 |\n| --- | --: | --: | --: |")
    reference = ours("fp32", 64).copy()
    for name, run in runs.items():
        error = np.abs(run() - reference).max()
        rate, memory = rate_of(run, controls.n_obs, arguments.rounds)
        print(f"| {name} | {rate:.0f} | {memory:.2f} | {error:.1e} of {np.abs(reference).max():.1f} |")
    print()


def train(arguments: argparse.Namespace) -> None:
    adata = ad.read_h5ad(arguments.data)
    adata.X = adata.layers[arguments.layer].astype(np.float32)
    adata.obs["label"] = adata.obs[arguments.label].astype(str)
    adata = repeated(adata, arguments.cells)
    vocabulary = sct.Vocabulary.from_genes(adata.var_names)
    torch.manual_seed(0)
    base = sct.CellModel(FAMILIES["scgpt"](vocabulary, **SIZE), vocabulary)
    print(f"Fine-tuning for cell types on {adata.n_obs} cells, one epoch, whole call, validation included")
    print("| precision | cells/s | GiB on the device |\n| --- | --: | --: |")
    for precision in ("bf16", "fp32"):
        options = {"label_key": "label", "epochs": 1, "batch_size": 32, "lr": 1e-4, "precision": precision}

        def run(options: dict[str, object] = options) -> None:
            sct.train.finetune(adata, base, task="annotate", accelerator="gpu", **options)

        rate, memory = rate_of(run, adata.n_obs, 1)
        print(f"| {precision} | {rate:.0f} | {memory:.2f} |")


def rate_of(run: Callable[[], object], n_cells: int, rounds: int) -> tuple[float, float]:
    """Cells a second and the peak of memory on the device."""
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return n_cells / median(seconds), torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    main()
