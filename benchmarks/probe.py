"""What a linear probe finds in small models after minutes of pre-training on a CPU, beside random weights and PCA.

The encoder of the family `scmodelforge` with each of its three kinds of tokens, trained from scratch on 560 of the 700 blood
cells of `datasets.pbmc_demo`, without labels.  The probe is trained and tested on divisions of all 700.

    python benchmarks/probe.py --seeds 3 --output probe.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools.models.families.scmodelforge import scmodelforge_tokens

TOKENS = {"rank": "rank_value", "binned": "binned_expression", "continuous": "continuous_projection"}


def counts_of(cells):
    """Counts again: the smallest value of a cell is one molecule."""
    X = sp.csr_matrix(cells.X).astype(np.float64)
    X.data = np.expm1(X.data)
    smallest = np.minimum.reduceat(X.data, X.indptr[:-1])
    X.data = np.rint(X.data / np.repeat(smallest, np.diff(X.indptr))).astype(np.float32)
    cells.X = X.astype(np.float32)
    return cells


def configuration(style: str, options: argparse.Namespace, seed: int) -> dict:
    """What one model is trained by; all three kinds of tokens have the same but for the tokens."""
    tokens = {name: value for name, value in asdict(scmodelforge_tokens(style)).items() if name != "medians"}
    return {
        "data": {"paths": ["train.h5ad"], "validation": 0.1},
        "family": {
            "name": "scmodelforge",
            "dim": options.dim,
            "layers": options.layers,
            "heads": 4,
            "hidden": 2 * options.dim,
            "dropout": options.dropout,
            "gain": options.gain,
            "options": {"pooling": options.pooling, "pretraining_task": options.task},
        },
        "tokenizer": tokens,
        "corruption": json.loads(options.corruption),
        "objectives": json.loads(options.objectives),
        "train": {
            "epochs": options.epochs,
            "batch_size": options.batch,
            "lr": options.lr,
            "schedule": "cosine",
            "warmup": 0.05,
            "rng": seed,
            "accelerator": "cpu",
        },
    }


def main() -> None:
    """Train, probe, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--gain", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--task", default="masked_gene_prediction")
    parser.add_argument("--corruption", default='{"name": "mask_genes", "ratio": 0.15}')
    parser.add_argument("--objectives", default='[{"name": "masked_genes"}]')
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    sct.settings.show_progress = False
    cells = counts_of(sct.datasets.pbmc_demo())
    sct.pp.cell_split(cells, test=0.2, val=0.0)
    models, runs = {}, []
    with TemporaryDirectory() as place:
        folder = Path(place)
        cells[cells.obs["split"] == "train"].write_h5ad(folder / "train.h5ad")
        for name in options.tokens:
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                start = perf_counter()
                output = folder / f"{name}{seed}"
                model = sct.train.pretrain(configuration(TOKENS[name], options, seed), data=folder, output=output)
                seconds = perf_counter() - start
                history = pd.read_csv(output / "run" / "history.csv")
                losses = history[[column for column in history if column.endswith("_loss")]].iloc[[0, -1]]
                runs.append(
                    {"tokens": name, "seed": seed, "seconds": round(seconds, 1), "losses": losses.to_dict("list")}
                )
                print(json.dumps(runs[-1]), flush=True)
                models.setdefault(name, []).append(model)
    scores = sct.tl.benchmark(models, cells, n_seeds=5)
    scores.about["runs"], scores.about["torch"] = runs, torch.__version__
    scores.about["settings"] = {name: str(value) for name, value in vars(options).items()}
    print(scores)
    if options.output is not None:
        scores.save(options.output)


if __name__ == "__main__":
    main()
