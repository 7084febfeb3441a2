"""What the package does, on what it ships, offline: cells embedded and scored beside baselines, a perturbation predicted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from matplotlib.figure import Figure

from scgpt_tools._files import as_path
from scgpt_tools.data.cell_splits import split_cells
from scgpt_tools.datasets import pbmc_demo, simulated_screen
from scgpt_tools.metrics.embedding import score_clusters
from scgpt_tools.models import zoo
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.pl.embedding import embedding
from scgpt_tools.pl.perturbation import perturbation_de
from scgpt_tools.screens.conditions import control_mask, read_conditions
from scgpt_tools.tl import embed, predict_perturbation
from scgpt_tools.train.pretrain import read_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LABELS, SCREEN_LABELS = "cell_type", "condition"
UNTRAINED = "X_untrained"
_COMPONENTS = 50
RECIPE = "pretrain.yaml"
"""Configuration that a model was trained with, if its folder holds it."""
KNOCKOUT = "SPI1+S100A9"
"""Genes that are knocked out together, in a simulated screen; training saw each alone."""
_SCREEN_CELLS = 20


@dataclass(frozen=True, eq=False)
class Demo:
    """What a demo did."""

    adata: AnnData
    """The cells with all embeddings."""
    model: str
    """Name of the model."""
    scores: pd.DataFrame
    """One row per embedding, one column per score."""
    files: dict[str, Path]
    """What was written, by what it is."""
    seconds: float
    """Time that embedding took."""
    held_out: bool
    """Whether training has seen none of the cells."""
    screen: AnnData
    """A simulated screen with the predicted effect of :data:`KNOCKOUT` on its controls."""
    correlation: float
    """Of the predicted with the simulated change of each gene, those that are knocked out left out.  Both changes are from
    other controls, for noise that both sides share would correlate."""

    def __str__(self) -> str:
        record = self.adata.uns["X_scGPT"]["genes"]
        cells, dim = self.adata.obsm["X_scGPT"].shape
        kinds = self.adata.obs[LABELS].nunique()
        width = max(map(len, self.files))
        which = " that the model has not seen in training" if self.held_out else ""
        return "\n".join(
            [
                f"Genes: {record['n_matched']:,} of {record['n_features']:,} are in the vocabulary of {self.model}.",
                f"Cells: {cells:,}{which}, embedded in {dim} dimensions in {self.seconds:.1f} s.",
                "",
                self.scores.to_string(float_format="{:.3f}".format),
                "",
                f"NMI and ARI compare {kinds} clusters by k-means with {kinds} cell types, which no method has seen; ASW is",
                "the silhouette width of the types, 0.5 where they overlap.  More is better.",
                "",
                f"Knock-out of {KNOCKOUT.replace('+', ' and ')} together, predicted by {zoo.DEMO_PERTURBATION} from "
                f"{int(control_mask(read_conditions(self.screen, SCREEN_LABELS)).sum())} controls of a simulated screen:",
                f"the change of genes correlates with the simulated one, from other controls, by {self.correlation:.2f}.",
                "",
                *(f"{what:{width}}  {path}" for what, path in self.files.items()),
            ]
        )


def run_demo(output: str | PathLike[str], *, model: str | PathLike[str] = "scgpt-demo", rng: int = 0) -> Demo:
    """Embed the bundled cells, score the embedding, draw it, predict a perturbation, and keep all of that.

    Where the model's folder holds the configuration that it was trained with, only cells that training has not seen
    are embedded.

    ``output``: folder to write to; made if it is not there; ``rng``: whole number, generator or ``None`` (fresh
    entropy) for tokens, of the untrained model, of clusters and of the figure.
    """
    folder = as_path("output", output)
    folder.mkdir(parents=True, exist_ok=True)
    adata = pbmc_demo()
    unseen = unseen_cells(zoo.fetch(model) / RECIPE, adata.obs_names)
    adata = adata[unseen].copy()
    trained = CellModel.from_pretrained(model)
    start = perf_counter()
    embed(adata, trained, rng=rng)
    seconds = perf_counter() - start
    embed(adata, untrained_twin(trained, rng), rng=rng, key_added=UNTRAINED)
    sc.pp.pca(adata, n_comps=_COMPONENTS, random_state=rng)
    named = {"X_scGPT": trained.name, UNTRAINED: "untrained, same size", "X_pca": f"PCA, {_COMPONENTS} components"}
    scores = pd.DataFrame(
        {name: score_clusters(adata.obsm[key], adata.obs[LABELS], rng=rng)._asdict() for key, name in named.items()}
    ).T.rename(columns=str.upper)
    files = _write(folder, adata, scores, trained.name, rng)
    screened, correlation = predicted_knockout(rng)
    files["perturbation"] = folder / "perturbation.png"
    figure = perturbation_de(screened, KNOCKOUT, n_genes=15, return_fig=True)
    # The legend stands above the axes, and names of genes are slanted.
    _save(figure, files["perturbation"], bbox_inches="tight")
    logger.info("Wrote scores, figures and cells to %s.", folder)
    return Demo(adata, trained.name, scores, files, seconds, not unseen.all(), screened, correlation)


def predicted_knockout(rng: int) -> tuple[AnnData, float]:
    """A simulated screen with the predicted effect of a double knock-out, and how it goes with the simulated one."""
    screened = simulated_screen(n_cells=_SCREEN_CELLS, rng=rng)
    predict_perturbation(screened, [KNOCKOUT], zoo.DEMO_PERTURBATION, rng=rng)
    conditions = read_conditions(screened, SCREEN_LABELS)
    controls = np.flatnonzero(control_mask(conditions))
    halves = [
        (_mean(screened.X[half]), _mean(screened.layers["predicted"][half])) for half in (controls[::2], controls[1::2])
    ]
    true = _mean(screened.X[conditions == KNOCKOUT])
    others = ~np.isin(screened.var_names, KNOCKOUT.split("+"))
    correlations = [
        np.corrcoef((found - own)[others], (true - other)[others])[0, 1]
        for (own, found), (other, _) in (halves, halves[::-1])
    ]
    return screened, float(np.mean(correlations))


def _mean(values: Any) -> NDArray[np.float64]:
    return np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()


def unseen_cells(recipe: Path, names: Sequence[str]) -> NDArray[np.bool_]:
    """Cells of the bundled data that were put aside for tests when a model was trained on them.

    ``recipe``: configuration of the training; it may be absent.  Returns (cells,) True for the cells to test on: all of
    them if none was put aside.
    """
    if not recipe.is_file():
        return np.ones(len(names), dtype=bool)
    data = read_config(recipe).data
    parts = split_cells(names, test=data.test, val=data.validation, seed=data.rng)
    return parts == "test" if data.test else np.ones(len(names), dtype=bool)


def untrained_twin(model: CellModel, rng: int) -> CellModel:
    """A model of the same size with random weights.

    ``rng``: whole number, generator or ``None`` (fresh entropy) for the weights.
    """
    # Parts draw their weights from torch's global state, which is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng)
        twin = CellModel(model.config, model.vocabulary, name="untrained")
    return twin.to(model.device).eval()


def _write(folder: Path, adata: AnnData, scores: pd.DataFrame, model: str, rng: int) -> dict[str, Path]:
    files = {"scores": folder / "scores.csv", "figure": folder / "embedding.png", "cells": folder / "embedded.h5ad"}
    scores.round(4).to_csv(files["scores"], index_label="embedding")
    named = {"X_scGPT": (model, model), "X_pca": ("PCA", scores.index[-1])}
    nmi = scores["NMI"].to_dict()
    titles = [f"{name} (NMI {nmi[row]:.2f})" for name, row in named.values()]
    figure = embedding(adata, LABELS, use_rep=list(named), titles=titles, rng=rng, return_fig=True)
    _save(figure, files["figure"])
    adata.write_h5ad(files["cells"], compression="gzip")
    return files


def _save(figure: Any, path: Path, **options: Any) -> None:
    assert isinstance(figure, Figure)  # noqa: S101 - as was asked for
    figure.savefig(path, dpi=150, **options)
    plt.close(figure)
