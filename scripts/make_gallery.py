"""Draw every plot of the package on measured cells, for the gallery of the documentation, on light and on dark ground.

    SCGPT_TOOLS_DATA=folder python scripts/make_gallery.py docs/gallery

The folder holds the files of `LOADED`; the demo model computes what is drawn.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from PIL import Image

import scgpt_tools as sct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

LOADED = ("pbmc_3_chemistries", "pbmc3k_annotated", "papalexi2021_thp1_eccite", "pbmc_citeseq_2runs")
GROUNDS = {"light": "default", "dark": "dark_background"}
KNOCKOUTS = ("STAT1", "IFNGR1", "IFNGR2", "JAK2", "SMAD4", "IRF1", "CD86", "CMTM6")


def cells() -> Iterator[tuple[str, Callable[[], object]]]:
    """Plots of cells, their types and batches."""
    blood = sct.datasets.load("pbmc_3_chemistries")
    sct.tl.embed(blood, "scgpt-demo")
    sc.pp.pca(blood)
    in_reference = blood.obs["batch"] != "5p"
    reference, query = blood[in_reference].copy(), blood[~in_reference].copy()
    sct.tl.map_reference(query, reference, label_key="cell_type_harmonised")
    yield "embedding", lambda: sct.pl.embedding(blood, "cell_type_harmonised", return_fig=True)
    yield (
        "embedding_genes",
        lambda: sct.pl.embedding(blood, ["batch", "LYZ", "n_genes"], use_rep="X_scGPT", return_fig=True),
    )
    yield (
        "confusion_matrix",
        lambda: sct.pl.confusion_matrix(
            query, truth="cell_type_harmonised", predicted="mapped_cell_type", return_fig=True
        ),
    )
    yield (
        "confidence",
        lambda: sct.pl.confidence(query, key="mapped_cell_type", truth="cell_type_harmonised", return_fig=True),
    )
    scores = sct.tl.score_embedding(
        blood, label_key="cell_type_harmonised", batch_key="batch", embeddings=["X_scGPT"], show_progress=False
    )
    yield "scores", lambda: sct.pl.scores(scores, return_fig=True)
    reports = {name: sct.pp.match_genes(sct.datasets.load(name), "scgpt-demo", min_coverage=0.0) for name in LOADED[:3]}
    yield "coverage", lambda: sct.pl.coverage(reports, return_fig=True)


def genes() -> Iterator[tuple[str, Callable[[], object]]]:
    """Plots of genes."""
    blood = sct.datasets.load("pbmc3k_annotated")
    sc.pp.highly_variable_genes(blood, n_top_genes=300)
    blood = blood[:, blood.var["highly_variable"]].copy()
    sct.tl.gene_network(blood, "scgpt-demo")
    sct.tl.gene_programs(blood, resolution=4)
    sct.tl.score_programs(blood, groupby="cell_type")
    program = blood.var["gene_program"].value_counts().index[2]
    yield "gene_network", lambda: sct.pl.gene_network(blood, program=str(program), return_fig=True)
    yield "program_heatmap", lambda: sct.pl.program_heatmap(blood, "cell_type", return_fig=True)


def perturbations() -> Iterator[tuple[str, Callable[[], object]]]:
    """Plots of a screen, with the mean of training replicates in the place of a model."""
    adata = sct.datasets.load("papalexi2021_thp1_eccite")
    adata = adata[adata.obs["condition"].isin(["ctrl", *(f"{gene}+ctrl" for gene in KNOCKOUTS)])].copy()
    sct.pp.parse_conditions(adata, missing="ignore")
    sct.pp.cell_split(adata, "batch", test=["rep_3"])
    sct.pp.perturbation_de(adata)
    adata.layers["predicted"] = _means_of_training(adata)
    test = adata[adata.obs["split"] == "test"].copy()
    yield "perturbation_scatter", lambda: sct.pl.perturbation_scatter(test, "STAT1", return_fig=True)
    yield "perturbation_de", lambda: sct.pl.perturbation_de(test, "STAT1", n_genes=12, return_fig=True)
    scores = sct.tl.evaluate_perturbation(adata, {"training replicates": "predicted"}, show_progress=False)
    yield "perturbation_benchmark", lambda: sct.pl.perturbation_benchmark(scores, return_fig=True)
    yield "perturbation_heatmap", lambda: sct.pl.perturbation_heatmap(_effects(adata), n_genes=25, return_fig=True)


def modalities() -> Iterator[tuple[str, Callable[[], object]]]:
    """Plots of a MuData."""
    mdata = sct.datasets.load("pbmc_citeseq_2runs")
    sct.tl.embed(mdata, "scgpt-demo", modality="rna")
    mdata.obsm["X_scGPT"] = mdata["rna"].obsm["X_scGPT"]
    counts = {"rna": "counts", "prot": "counts"}
    model = sct.train.finetune(
        mdata,
        "scgpt-demo",
        task="multiomic",
        layer=counts,
        modalities={"rna": {"most": 300, "extend": True}, "prot": {}},
        epochs=2,
    )
    sct.tl.modality_weights(mdata, model, layer=counts)
    yield (
        "joint_embedding",
        lambda: sct.pl.joint_embedding(mdata, ["batch", f"prot:{mdata['prot'].var_names[0]}"], return_fig=True),
    )
    yield "modality_weights", lambda: sct.pl.modality_weights(mdata, groupby="batch", return_fig=True)


def _means_of_training(adata: AnnData) -> np.ndarray:
    found = adata.X.toarray()
    for condition in adata.obs["condition"].unique():
        own = (adata.obs["condition"] == condition).to_numpy()
        trained = own & (adata.obs["split"] == "train").to_numpy()
        found[own & ~trained] = np.asarray(adata.X[trained].mean(axis=0)).ravel()
    return found


def _effects(adata: AnnData) -> AnnData:
    profiles = sc.get.aggregate(adata, by="condition", func="mean")
    control = profiles["ctrl"].layers["mean"].ravel()
    perturbed = profiles[[name for name in profiles.obs_names if name != "ctrl"]].copy()
    obs = pd.DataFrame(index=[name.removesuffix("+ctrl") for name in perturbed.obs_names])
    return sc.AnnData(
        perturbed.layers["mean"], obs=obs, var=adata.var, layers={"effect": perturbed.layers["mean"] - control}
    )


SUBJECTS = {function.__name__: function for function in (cells, genes, perturbations, modalities)}


def main() -> None:
    """Draw the figures of some subjects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sct.settings.show_progress = False
    # The demo model knows fewer genes than these tables have, which its page says.
    warnings.filterwarnings("ignore", message="Only .* features")
    for subject in arguments.only:
        for name, draw in SUBJECTS[subject]():
            for ground, style in GROUNDS.items():
                with plt.style.context(style):
                    figure = draw()
                    file = arguments.folder / f"{name}_{ground}.png"
                    figure.savefig(file, dpi=72, bbox_inches="tight")
                    # Few colours are enough, and a third of the bytes.
                    Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)
                    plt.close("all")


if __name__ == "__main__":
    main()
