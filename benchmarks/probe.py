"""What a linear probe finds in small models after a minute of pre-training on a CPU, beside random weights and PCA.

The encoder of the family `scmodelforge` with each of its three kinds of tokens, trained from scratch on four fifths of the cells
without their labels; the probe is trained and tested on divisions of all cells.  Cells are the 700 of `datasets.pbmc_demo`, or
those of a file with counts.  Binned tokens are continuous ones to an encoder, which reads values; bins are only asked for.

    python benchmarks/probe.py --seeds 3 --output probe.json
    python benchmarks/probe.py --cells pbmc3k_annotated.h5ad --genes 1000 --epochs 10
    python benchmarks/probe.py --asked tokens

Models that are in `--folder` already are not trained again, so that several processes can train some each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch

import scgpt_tools as sct
from scgpt_tools.models.families.scmodelforge import scmodelforge_tokens

TOKENS = {"rank": "rank_value", "binned": "binned_expression", "continuous": "continuous_projection"}
ASKED = {
    "cell": [{"name": "masked_genes_from_cell", "among": "unseen"}],
    "cell, all genes": [{"name": "masked_genes_from_cell"}],
    "tokens": [{"name": "masked_genes"}],
    "both": [{"name": "masked_genes"}, {"name": "masked_genes_from_cell"}],
}
"""Who is asked for hidden genes."""


def bundled_cells() -> ad.AnnData:
    """Counts of the bundled cells, of which the smallest value of a cell is one molecule."""
    cells = sct.datasets.pbmc_demo()
    molecules = np.expm1(cells.X.data)
    smallest = np.minimum.reduceat(molecules, cells.X.indptr[:-1])
    cells.X.data = np.rint(molecules / np.repeat(smallest, np.diff(cells.X.indptr))).astype(np.float32)
    return cells


def read_cells(options: argparse.Namespace) -> ad.AnnData:
    """Cells with counts, labels and a division; genes that vary most over the training cells if some are to be chosen."""
    cells = bundled_cells() if options.cells is None else ad.read_h5ad(options.cells)
    cells = cells[cells.obs[options.label_key].notna()].copy()
    sct.pp.cell_split(cells, test=0.2, val=0.0)
    if options.genes is not None:
        train = cells[cells.obs["split"] == "train"].copy()
        sc.pp.normalize_total(train, target_sum=1e4)
        sc.pp.log1p(train)
        sc.pp.highly_variable_genes(train, n_top_genes=options.genes)
        cells = cells[:, train.var["highly_variable"]].copy()
        cells = cells[np.asarray(cells.X.sum(axis=1)).ravel() > 0].copy()
    return cells


def configuration(style: str, options: argparse.Namespace, seed: int) -> dict:
    """What one model is trained by; all three kinds have the same but for the tokens."""
    return {
        "data": {"paths": ["train.h5ad"], "validation": 0.1},
        "family": {
            "name": "scmodelforge",
            "dim": options.dim,
            "layers": options.layers,
            "heads": 4,
            "hidden": 2 * options.dim,
            "dropout": 0.0,
            "options": {"pooling": options.pooling},
        },
        "tokenizer": {name: value for name, value in asdict(scmodelforge_tokens(style)).items() if name != "medians"},
        "corruption": {"name": "mask_genes", "ratio": 0.3},
        "objectives": ASKED[options.asked],
        "train": {
            "epochs": options.epochs,
            "batch_size": 16,
            "lr": options.lr,
            "schedule": "cosine",
            "warmup": 0.05,
            "rng": seed,
            "accelerator": options.device,
        },
    }


def trained(cells: ad.AnnData, folder: Path, name: str, seed: int, options: argparse.Namespace) -> dict:
    """Train a model unless it is there; returns what it took."""
    record = folder / "probe.json"
    if not record.exists():
        start = process_time()
        with TemporaryDirectory() as place:
            cells[cells.obs["split"] == "train"].write_h5ad(Path(place) / "train.h5ad")
            sct.train.pretrain(configuration(TOKENS[name], options, seed), data=place, output=folder, overwrite=True)
        losses = pd.read_csv(folder / "run" / "history.csv")["validation_loss"].iloc[[0, -1]].round(3).tolist()
        found = {"tokens": name, "seed": seed, "cpu_s": round(process_time() - start), "losses": losses}
        record.write_text(json.dumps(found))
    return json.loads(record.read_text())


def main() -> None:
    """Train, probe, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, help="an .h5ad with counts; none takes the bundled cells")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--genes", type=int, help="genes to choose; none takes all")
    parser.add_argument("--tokens", nargs="+", choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--asked", choices=ASKED, default="cell")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--pooling", choices=("cls", "mean"), default="mean")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--folder", type=Path, help="where to keep the models")
    parser.add_argument("--train-only", action="store_true", help="probe nothing yet")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sct.settings.show_progress = False
    cells = read_cells(options)
    models, runs = {}, []
    with TemporaryDirectory() as place:
        folder = Path(place) if options.folder is None else options.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.tokens:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                runs.append(trained(cells, folder / f"{name}{seed}", name, seed, options))
                print(json.dumps(runs[-1]), flush=True)
                models.setdefault(name, []).append(
                    sct.CellModel.from_pretrained(folder / f"{name}{seed}", device=options.device)
                )
    if options.train_only:
        return
    question = {"name": "linear_probe", "label_key": options.label_key}
    scores = sct.tl.benchmark(models, cells, question, n_seeds=5)
    scores.about["runs"], scores.about["torch"] = runs, torch.__version__
    scores.about["settings"] = {name: str(value) for name, value in vars(options).items()}
    print(scores)
    if options.output is not None:
        scores.save(options.output)


if __name__ == "__main__":
    main()
