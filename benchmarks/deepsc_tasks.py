"""DeepSC on measured cells from pre-training to perturbations, beside scGPT of the same size, scGenePT and baselines.

    python benchmarks/deepsc_tasks.py pretrain FOLDER --seed 0     (and types, and screen; for each seed)
    python benchmarks/deepsc_tasks.py table FOLDER

The data are found by the variable SCGPT_TOOLS_DATA.  Both families are pre-trained on the same cells for the same number
of steps of equal minibatches; then cell types of other cells are named, by a classifier and by nearest neighbours, and
perturbations that training never saw are predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

import scgpt_tools as sct
from scgpt_tools.data.gene_embeddings import GeneEmbeddings
from scgpt_tools.models.families.deepsc import cell_tokenizer
from scgpt_tools.tokens import TokenizerConfig
from scgpt_tools.train import finetune, pretrain

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tools.models import CellModel

SIZES = {"dim": 64, "layers": 3, "heads": 4, "hidden": 256, "dropout": 0.0}
FIT: dict[str, Any] = {"batch_size": 32, "lr": 1e-3, "accelerator": "cpu"}
LENGTH = 300
FAMILIES: dict[str, dict[str, Any]] = {
    "scgpt": {
        "corruption": {"name": "generate_values"},
        "objectives": [{"name": "masked_expression"}, {"name": "masked_expression_from_cell"}],
        "tokenizer": TokenizerConfig(length=LENGTH),
    },
    # Padding is hidden: minibatches of a screen and of cells with few genes have other amounts of it.
    "deepsc": {
        "options": {"gene_layers": 2, "padding_mask": True},
        "corruption": {"name": "mask_bins"},
        "tokenizer": replace(cell_tokenizer(5), length=LENGTH),
    },
}
EPOCHS = {"pretrain": 10, "types": 5, "screen": 20}
# Cells of the means that perturbations are learnt from; from single cells models hardly learn to tell them apart.
MEAN = 8
LABEL = "cell_type_harmonised"
METRICS = ["mse", "mse_de", "pearson_control", "pearson_control_de", "pearson_perturbed_mean", "direction_de"]
METRICS += ["discrimination_l1", "centroid_accuracy"]


def table_of(name: str) -> AnnData:
    """One of the measured data sets."""
    return sct.datasets.load(name)


def pretrained(family: str, folder: Path, seed: int, epochs: int) -> CellModel:
    """A model of pbmc3k and of the bundled cells."""
    demo = folder / "pbmc_demo.h5ad"
    if not demo.exists():
        sct.datasets.pbmc_demo().write_h5ad(demo)
    own = dict(FAMILIES[family])
    measured = Path(os.environ["SCGPT_TOOLS_DATA"]) / "pbmc3k_annotated.h5ad"
    config = {
        "data": {"paths": [str(measured), str(demo)], "validation": 0.05},
        "family": {"name": family, **SIZES, "options": own.pop("options", {})},
        "vocabulary": {"min_cells": 1},
        "tokenizer": sct.config.to_dict(own.pop("tokenizer")),
        "train": {**FIT, "epochs": epochs, "rng": seed, "schedule": "cosine", "warmup": 0.1, "clip": 1.0},
        **own,
    }
    return pretrain(config, output=folder / f"{family}{seed}", overwrite=True)


def scored(truth: pd.Series, found: Any) -> dict[str, float]:
    """Accuracy, and F1 averaged over types."""
    found = np.asarray(found, dtype=str)
    labels = sorted(set(truth))
    return {
        "accuracy": accuracy_score(truth, found),
        "macro F1": f1_score(truth, found, labels=labels, average="macro", zero_division=0),
    }


def cell_types(models: dict[str, CellModel], seed: int, epochs: int) -> list[dict[str, Any]]:
    """Types of ``pbmc_3_chemistries`` from those of ``pbmc3k_annotated``."""
    reference, query = table_of("pbmc3k_annotated"), table_of("pbmc_3_chemistries")
    known = sorted(set(reference.obs[LABEL]) & set(query.obs[LABEL]))
    reference, query = (table[table.obs[LABEL].isin(known)].copy() for table in (reference, query))
    truth, rows = query.obs[LABEL].astype(str), []
    for name, model in models.items():
        for table in (reference, query):
            sct.tl.embed(table, model, key_added="X")
        sct.tl.map_reference(query, reference, label_key=LABEL, use_rep="X")
        rows.append({"method": f"{name}, 10 neighbours", **scored(truth, query.obs["mapped_cell_type"])})
        tuned = finetune(reference, model, task="annotate", label_key=LABEL, epochs=epochs, rng=seed, **FIT)
        sct.tl.annotate(query, tuned)
        rows.append({"method": f"{name}, classifier", **scored(truth, query.obs["scgpt_cell_type"])})
    shared = reference.var_names.intersection(query.var_names)
    matrices = [np.asarray(table[:, shared].X.todense()) for table in (reference, query)]
    pca = PCA(50, svd_solver="randomized", random_state=seed).fit(matrices[0])
    nearest = KNeighborsClassifier(10).fit(pca.transform(matrices[0]), reference.obs[LABEL].astype(str))
    rows.append(
        {"method": "50 components, 10 neighbours", **scored(truth, nearest.predict(pca.transform(matrices[1])))}
    )
    return rows


def texts_of(folder: Path) -> GeneEmbeddings:
    """64 components of how genes vary over the cells of pbmc3k, in place of texts, which are not shipped."""
    cells = table_of("pbmc3k_annotated")
    dense = np.asarray(cells.X.todense())
    scaled = (dense - dense.mean(axis=0)) / (dense.std(axis=0) + 0.1)
    vectors = PCA(64, svd_solver="randomized", random_state=0).fit_transform(scaled.T).astype(np.float32)
    return GeneEmbeddings(tuple(cells.var_names), vectors)


def screened(cells_a_condition: int) -> AnnData:
    """Part of the cells of the screen, as many of each condition and twice as many controls.

    Without PDCD1LG2, which no pre-training cell has, so that no model has a token of it.
    """
    screen = table_of("papalexi2021_thp1_eccite")
    screen = screen[screen.obs["condition"] != "PDCD1LG2+ctrl"].copy()
    draw, rows = np.random.default_rng(0), []
    for name, own in screen.obs.groupby("condition", observed=True).indices.items():
        n = min(len(own), cells_a_condition * (2 if name == "ctrl" else 1))
        rows.append(draw.choice(own, n, replace=False))
    return screen[np.sort(np.concatenate(rows))].copy()


def perturbations(
    models: dict[str, CellModel], folder: Path, seed: int, epochs: int, cells: int
) -> list[dict[str, Any]]:
    """Scores of every model, of the baselines and of the ceiling on held-out perturbations of papalexi."""
    screen = screened(cells)
    sct.pp.perturbation_split(screen, "simulation_single", draw="stable", rng=seed)
    sct.pp.pair_controls(screen, rng=seed)
    starts = {**models, "scgenept": sct.models.to_scgenept(models["scgpt"], "scgenept_ncbi_gpt", texts_of(folder))}
    tuned = {}
    for name, model in starts.items():
        start = time.perf_counter()
        tuned[name] = finetune(
            screen,
            model,
            task="perturb",
            unmeasured="token",
            cells_per_mean=MEAN,
            epochs=epochs,
            dropout=0.0,
            rng=seed,
            **FIT,
        )
        print(f"{name}: fine-tuned in {time.perf_counter() - start:.0f} s", flush=True)
    found = sct.tl.evaluate_perturbation(screen, tuned, metrics=METRICS, analyses=True, rng=seed)
    print(found, flush=True)
    means = found.means().assign(spread=found.spread)
    rows = [{"method": name, **values.to_dict()} for name, values in means.iterrows()]
    asked = found.originals[found.originals["metric"].isin(["scgpt_pearson", "scgpt_pearson_delta"])]
    more = asked.pivot_table(index="method", columns="metric", values="value")
    return [row | (more.loc[row["method"]].to_dict() if row["method"] in more.index else {}) for row in rows]


def run(folder: Path, part: str, seed: int, epochs: int, cells: int, device: str) -> None:
    """One part with one seed; scores go to ``<part><seed>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    if part == "pretrain":
        for family in FAMILIES:
            start = time.perf_counter()
            pretrained(family, folder, seed, epochs)
            print(f"{family}: pre-trained in {time.perf_counter() - start:.0f} s", flush=True)
        return
    models = {family: sct.CellModel.from_pretrained(folder / f"{family}{seed}", device=device) for family in FAMILIES}
    rows = cell_types(models, seed, epochs) if part == "types" else perturbations(models, folder, seed, epochs, cells)
    (folder / f"{part}{seed}.json").write_text(json.dumps(rows, indent=1))


def show(folder: Path) -> None:
    """Means over seeds, with the smallest and the largest."""
    for part in ("types", "screen"):
        files = sorted(folder.glob(f"{part}*.json"))
        groups = pd.DataFrame([row for file in files for row in json.loads(file.read_text())]).groupby(
            "method", sort=False
        )
        mean, low, high = groups.mean(), groups.min(), groups.max()
        text = mean.map("{:.3f}".format) + " (" + low.map("{:.3f}".format) + " to " + high.map("{:.3f}".format) + ")"
        print(f"{part}, {len(files)} seeds\n{text.to_markdown()}\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*EPOCHS, "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--cells", type=int, default=120, help="of each condition of the screen")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    given = parser.parse_args()
    if given.part == "table":
        show(given.folder)
        return
    sct.settings.show_progress = False
    warnings.filterwarnings("ignore", message="The predictions of .* are nearly the same")
    FIT["accelerator"] = given.device
    run(given.folder, given.part, given.seed, given.epochs or EPOCHS[given.part], given.cells, given.device)


if __name__ == "__main__":
    main()
