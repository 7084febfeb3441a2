"""How long a training step takes, beside scGPT's own training loop.

    python benchmarks/training.py CHECKPOINT CELLS.h5ad --label cell_type [--peer FOLDER] [--recipe annotate masked]

Both start from the same weights and see the same cells: ours through ``train.fit`` with its loader and Lightning, scGPT
through its ``trainer.train`` with its data loader.  A step is measured from one optimiser step to the next, so loading,
forward, backward and optimiser count, and set-up does not.  Before, the losses of one minibatch are compared.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from lightning import Callback

import scgpt_tools as sct
from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.objectives import CellType, MaskedExpression, MaskedExpressionFromCell
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.train.fit import FitConfig, fit
from scgpt_tools.train.module import run_views
from scgpt_tools.train.parts import parts_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgpt_tools.objectives.base import Objective

RECIPES: dict[str, list[Objective]] = {
    "annotate": [CellType()],
    "masked": [MaskedExpression(), MaskedExpressionFromCell()],
}


class Clock(Callback):
    """Times of the optimiser steps."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.times.append(time.perf_counter())


class Ours:
    """A model and its cells, ready to be trained with a recipe."""

    def __init__(self, adata: ad.AnnData, label: str, arguments: argparse.Namespace, recipe: str) -> None:
        self.objectives, self.arguments = RECIPES[recipe], arguments
        base = sct.CellModel.from_pretrained(arguments.checkpoint, device="cpu")
        codes = adata.obs[label].astype("category").cat
        parts = parts_for(
            base.config,
            self.objectives,
            classes=tuple(map(str, codes.categories)),
            batches=None,
            batch_parts=False,
            tokenizer=replace(base.config.tokenizer, length=arguments.length),
            dropout=arguments.dropout,
        )
        torch.manual_seed(0)
        self.model = base.adapt(**parts)
        source = RowSource(adata)
        table = CellTable(
            source, FeatureTable.from_var(source.var, base.vocabulary), label=codes.codes.to_numpy().astype(np.int64)
        )
        masks = MaskValues(ratio=0.4, mask_value=-1.0) if recipe == "masked" else None
        self.data = CellDataModule([table], self.model.tokenizer, corruption=masks)
        self.cells = next(iter(self.data.loader("train", batch_size=adata.n_obs)))

    def loss(self) -> float:
        """Loss of the first cells, without dropout."""
        batch = self.cells.select(slice(self.arguments.batch_size))
        self.model.eval()
        with torch.inference_mode():
            views = run_views(self.model, batch, self.objectives)
            return sum(float(term(views, batch)) for term in self.objectives)

    def steps(self) -> list[float]:
        """Seconds of each step but the first."""
        clock, arguments = Clock(), self.arguments
        config = FitConfig(
            epochs=1000, max_steps=arguments.steps + 1, batch_size=arguments.batch_size, lr=1e-4, accelerator="cpu"
        )
        fit(self.model, self.data, self.objectives, config, callbacks=[clock])
        return np.diff(clock.times).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--layer", default="counts")
    parser.add_argument("--peer", type=Path, help="folder that holds the package scgpt")
    parser.add_argument("--recipe", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=1200)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    sct.settings.show_progress = False

    adata = ad.read_h5ad(arguments.data)[: arguments.cells].copy()
    adata.X = adata.layers[arguments.layer].astype(np.float32)
    peer = None
    if arguments.peer is not None:
        from peers import ScGPT

        peer = ScGPT(arguments.peer, arguments.checkpoint)
    for recipe in arguments.recipe:
        ours = Ours(adata, arguments.label, arguments, recipe)
        runs: dict[str, Callable[[], list[float]]] = {"ours": ours.steps}
        if peer is not None:
            trained = peer.trainee(ours.model, ours.cells, recipe=recipe, batch_size=arguments.batch_size)
            here, there = ours.loss(), trained.loss()
            print(f"{recipe}: loss of the first cells {here:.5f}, scGPT's {there:.5f}")
            if abs(here - there) > 1e-4 * abs(here):
                raise SystemExit("The losses disagree; the times would not be comparable.")
            runs["scGPT"] = lambda trained=trained: trained.steps(arguments.steps + 1)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                seconds[name] += run()
        rates = {name: arguments.batch_size / median(times) for name, times in seconds.items()}
        for name, rate in rates.items():
            print(f"{recipe}, {name}: {rate:.2f} cells/s", end="")
            print(f", {rate / rates['scGPT']:.1f} times scGPT" if "scGPT" in rates and name != "scGPT" else "")
        lengths = ours.cells.mask.sum(dim=1).float()
        print(f"{lengths.mean():.0f} tokens a cell, at most {lengths.max():.0f}; {arguments.threads} threads")


if __name__ == "__main__":
    main()
