"""What a model of several modalities is worth on measured cells, beside RNA alone and methods made for each question.

    python benchmarks/multiomics.py embedding FOLDER [--seeds 0 1 2] [--coordinates totalVI=latent.csv]
    python benchmarks/multiomics.py imputation FOLDER [--seeds 0 1 2]
    python benchmarks/multiomics.py chromatin FOLDER
    python benchmarks/multiomics.py totalvi FOLDER latent.csv        # where scvi-tools is installed

FOLDER holds ``pbmc_citeseq_2runs.h5mu``, ``mimitou2019_pbmc_eccite.h5mu``, ``cao2018_a549_scicar.h5mu`` and
``pbmc3k_annotated.h5ad``.  The model is ``scgpt-demo``, fine-tuned with the settings of ``HOW``; RESULTS.md says
what they were chosen on.  Cells have three sets of labels: of a classifier on RNA that never saw them, gates on their proteins, and
both, where they agree.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import SpectralEmbedding
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

import scgpt_tools as sct

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "scgpt-demo"
RNA = {"most": 500, "extend": True}
HOW = {
    "task": "multiomic", "layer": "counts", "epochs": 30, "batch_size": 16, "dropout": 0.0, "accelerator": "cpu",
}  # fmt: skip
# Steps that change what was learnt of cells, which predictions gain from and embeddings lose by.
IMPUTING = {"lr": 3e-3}
SCORES = [
    "Bio conservation",
    "Batch correction",
    "Graph connectivity",
    "iLISI",
    "BRAS",
    "Silhouette label",
    "KMeans NMI",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=["embedding", "imputation", "chromatin", "totalvi"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--coordinates", nargs="*", default=[], help="name=file.csv, a row for each cell")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if hasattr(md, "set_options"):  # mudata 0.4 knows no other way
        md.set_options(pull_on_update=False)
    pd.set_option("display.width", 200)
    sct.settings.show_progress = False
    {"embedding": embedding, "imputation": imputation, "chromatin": chromatin, "totalvi": totalvi}[arguments.question](
        arguments
    )


def embedding(arguments: argparse.Namespace) -> None:
    """Scores of scIB for all cells, with three sets of labels; fine-tuning does not see labels."""
    coordinates = dict(given.split("=") for given in arguments.coordinates)
    for name, batch in (("pbmc_citeseq_2runs", "batch"), ("mimitou2019_pbmc_eccite", None)):
        mdata = load(arguments.folder, name)
        embed_all(mdata, arguments.seeds, batch)
        if batch is not None:
            for method, file in coordinates.items():
                mdata.obsm[method] = pd.read_csv(file, index_col=0).loc[mdata.obs_names].to_numpy()
        by_rna, by_proteins = rna_labels(mdata, arguments.folder), gated(mdata, GATES[name])
        agreed = by_rna.where(by_rna == by_proteins)
        for kind, labels in {"RNA": by_rna, "proteins": by_proteins, "both, where they agree": agreed}.items():
            table = scores(mdata, labels, batch)
            print(
                f"\n{name}, labels by {kind}, {int(labels.notna().sum())} cells\n{table.round(3).to_string()}",
                flush=True,
            )


def embed_all(mdata: md.MuData, seeds: list[int], batch: str | None) -> None:
    """Embed by the models and by what they are compared with."""
    for seed in seeds:
        joint = tuned(mdata, seed, batch_key=batch)
        alone = tuned(mdata, seed, batch_key=batch, modalities={"rna": RNA})
        sct.tl.embed(mdata, joint, layer="counts", key_added=f"joint, seed {seed}")
        sct.tl.embed(mdata, joint, layer="counts", modalities=["rna"], key_added=f"joint model, RNA only, seed {seed}")
        sct.tl.embed(mdata, alone, layer="counts", key_added=f"RNA fine-tuned, seed {seed}")
    sct.tl.embed(mdata, MODEL, modality="rna", layer="counts", key_added="zero-shot")
    mdata.obsm["RNA zero-shot"] = mdata["rna"].obsm["zero-shot"]
    mdata.obsm["PCA of RNA"] = components(mdata["rna"])
    neighbours = weighted_neighbours(mdata)
    if neighbours is not None:
        mdata.obsm["WNN"] = neighbours


def scores(mdata: md.MuData, labels: pd.Series, batch: str | None) -> pd.DataFrame:
    """Scores of all embeddings on cells of kinds that ten cells or more are of."""
    keys = [key for key in mdata.obsm if key not in mdata.mod]
    frequent = labels.map(labels.value_counts()) >= 10
    cells = mdata["rna"][frequent.to_numpy()].copy()
    cells.obs["label"] = labels[frequent].to_numpy()
    for key in keys:
        cells.obsm[key] = np.asarray(mdata.obsm[key])[frequent]
    table = sct.tl.score_embedding(
        cells, label_key="label", batch_key=batch, embeddings=keys, baselines=[], layer="counts"
    )
    return table.reindex(columns=SCORES).dropna(axis=1, how="all")


def imputation(arguments: argparse.Namespace) -> None:
    """Correlation of imputed with measured proteins over held-out cells."""
    for name, batch in (("pbmc_citeseq_2runs", "batch"), ("mimitou2019_pbmc_eccite", None)):
        mdata = load(arguments.folder, name)
        held_out = np.random.default_rng(0).random(mdata.n_obs) < 0.25
        train, test = mdata[~held_out].copy(), mdata[held_out].copy()
        truth, columns = clr(test["prot"]), {}
        for scale in (True, False):
            both = components(ad.concat([train["rna"], test["rna"]]), scale=scale)
            known, asked = np.split(both, [train.n_obs])
            for k in (5, 15):
                nearest = KNeighborsRegressor(k).fit(known, clr(train["prot"])).predict(asked)
                columns[f"{k} nearest cells, {'scaled' if scale else 'unscaled'} PCA"] = correlations(nearest, truth)
        alone = md.MuData({"rna": test["rna"].copy()})
        models = {f"seed {seed}": tuned(train, seed, batch_key=batch, **IMPUTING) for seed in arguments.seeds}
        for which, model in {**models, "all seeds": list(models.values())}.items():
            sct.tl.impute(alone, model, modality="prot", layer="counts", batch_key=batch)
            found = alone.obsm["prot_imputed"][list(test["prot"].var_names)].to_numpy()
            columns[f"imputed, {which}"] = correlations(found, truth)
        table = pd.DataFrame(columns, index=test["prot"].var_names)
        print(
            f"\n{name}, {train.n_obs} cells to learn from, {test.n_obs} held out\n{table.mean().round(3).to_string()}"
        )
        print(table.round(2).to_string(), flush=True)


def chromatin(arguments: argparse.Namespace) -> None:
    """Whether hours of treatment can be read off neighbours."""
    mdata = load(arguments.folder, "cao2018_a549_scicar")
    layer = {"rna": "counts"}
    atac = {"most": 1000, "length": 150}
    model = tuned(
        mdata, arguments.seeds[0], layer=layer, modalities={"rna": RNA, "atac": atac}, epochs=8, batch_size=32
    )
    sct.tl.embed(mdata, model, layer=layer, key_added="joint")
    for part in ("rna", "atac"):
        sct.tl.embed(mdata, model, layer=layer, modalities=[part], key_added=f"{part} alone")
    sct.tl.embed(mdata, MODEL, modality="rna", layer="counts", key_added="zero-shot")
    mdata.obsm["RNA zero-shot"], mdata.obsm["PCA of RNA"] = mdata["rna"].obsm["zero-shot"], components(mdata["rna"])
    hours = mdata["rna"].obs["condition"].astype(str)
    for key in ("joint", "rna alone", "atac alone", "RNA zero-shot", "PCA of RNA"):
        accuracy = cross_val_score(KNeighborsClassifier(15), mdata.obsm[key], hours, cv=5).mean()
        print(f"{key:15s} accuracy of the 15 nearest cells {accuracy:.3f}", flush=True)


def totalvi(arguments: argparse.Namespace) -> None:
    """Latent space of totalVI with its defaults, as a table."""
    import scvi  # in an environment of its own

    scvi.settings.seed = arguments.seeds[0]
    mdata = load(arguments.folder, "pbmc_citeseq_2runs")
    cells = mdata["rna"].copy()
    cells.obsm["protein"] = pd.DataFrame(
        dense(mdata["prot"].layers["counts"]), index=cells.obs_names, columns=mdata["prot"].var_names
    )
    sc.pp.highly_variable_genes(cells, n_top_genes=4000, batch_key="batch")
    cells = cells[:, cells.var["highly_variable"]].copy()
    scvi.model.TOTALVI.setup_anndata(cells, layer="counts", batch_key="batch", protein_expression_obsm_key="protein")
    model = scvi.model.TOTALVI(cells)
    model.train(accelerator="cpu")
    pd.DataFrame(model.get_latent_representation(), index=cells.obs_names).to_csv(arguments.target)


def load(folder: Path, name: str) -> md.MuData:
    mdata = md.read_h5mu(folder / f"{name}.h5mu")
    for table in mdata.mod.values():
        if "batch" in table.obs:
            table.obs["batch"] = table.obs["batch"].astype(str)
    return mdata


def tuned(mdata: md.MuData, seed: int, **changes: object) -> sct.CellModel:
    arguments = HOW | {"modalities": {"rna": RNA, "prot": {}}, "rng": seed} | changes
    return sct.train.finetune(mdata, MODEL, **arguments)


def dense(X: object) -> np.ndarray:
    return np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=float)


def clr(table: ad.AnnData) -> np.ndarray:
    counts = dense(table.layers["counts"])
    return np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))


def correlations(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """Pearson's, protein by protein; 0 for what is the same in all cells."""
    pairs = zip(found.T, truth.T, strict=True)
    return [np.corrcoef(a, b)[0, 1] if a.std() > 0 and b.std() > 0 else 0.0 for a, b in pairs]


def log_normalised(rna: ad.AnnData) -> ad.AnnData:
    cells = ad.AnnData(rna.layers["counts"].copy(), obs=rna.obs[[]].copy(), var=rna.var[[]].copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells


def reduced(rna: ad.AnnData, *, scale: bool = True) -> ad.AnnData:
    cells = log_normalised(rna)
    sc.pp.highly_variable_genes(cells, n_top_genes=min(2000, cells.n_vars - 1))
    cells = cells[:, cells.var["highly_variable"]].copy()
    if scale:
        sc.pp.scale(cells, max_value=10)
    sc.pp.pca(cells, n_comps=30, random_state=0)
    return cells


def components(rna: ad.AnnData, *, scale: bool = True) -> np.ndarray:
    return reduced(rna, scale=scale).obsm["X_pca"]


def weighted_neighbours(mdata: md.MuData) -> np.ndarray | None:
    """Spectral coordinates of muon's weighted nearest neighbours, if muon is installed."""
    try:
        import muon
    except ImportError:
        print("Without WNN: muon is not installed.")
        return None
    prot = ad.AnnData(clr(mdata["prot"]), obs=mdata["prot"].obs[[]].copy())
    sc.pp.scale(prot)
    sc.pp.pca(prot, n_comps=10, random_state=0)
    both = md.MuData({"rna": reduced(mdata["rna"]), "prot": prot})
    for table in both.mod.values():
        sc.pp.neighbors(table, n_neighbors=15)
    muon.pp.neighbors(both, key_added="wnn", n_neighbors=15)
    graph = both.obsp["wnn_connectivities"].toarray()
    return SpectralEmbedding(20, affinity="precomputed", random_state=0).fit_transform((graph + graph.T) / 2)


def rna_labels(mdata: md.MuData, folder: Path) -> pd.Series:
    """Cell types by a linear classifier, trained on other cells."""
    reference = ad.read_h5ad(folder / "pbmc3k_annotated.h5ad")
    known, asked = log_normalised(reference), log_normalised(mdata["rna"])
    sc.pp.highly_variable_genes(known, n_top_genes=2000)
    genes = known.var_names[known.var["highly_variable"]].intersection(asked.var_names)
    classifier = LogisticRegression(C=0.1, max_iter=300)
    classifier.fit(known[:, genes].X, reference.obs["cell_type_harmonised"].astype(str))
    return pd.Series(classifier.predict(asked[:, genes].X), index=mdata.obs_names).astype(str)


def gated(mdata: md.MuData, gates: Callable[[pd.DataFrame], dict[str, pd.Series]]) -> pd.Series:
    """Cell types by thresholds on CLR of proteins; the first gate that a cell passes counts."""
    level = pd.DataFrame(clr(mdata["prot"]), mdata.obs_names, [name.split("_")[0] for name in mdata["prot"].var_names])
    passed = gates(level)
    return pd.Series(np.select(list(passed.values()), list(passed), default="other"), index=mdata.obs_names)


def gates_citeseq(level: pd.DataFrame) -> dict[str, pd.Series]:
    t_cell = level["CD3"] > 1.2
    return {
        "B": level["CD19"] > 1.5,
        "CD4 T": t_cell & (level["CD4"] > level["CD8a"]),
        "CD8 T": t_cell,
        "CD14+ monocyte": level["CD14"] > 1.2,
        "NK": level["CD56"] > 0.8,
    }


def gates_eccite(level: pd.DataFrame) -> dict[str, pd.Series]:
    t_cell = level["CD5"] > 1
    return {
        "B": level["CD19"] > 1.5,
        "CD4 T": t_cell & (level["CD4"] > 2) & (level["CD4"] > level["CD8"]),
        "CD8 T": t_cell & (level["CD8"] > 2),
        "NK": ~t_cell & ((level["CD16"] > 1) | (level["CD56"] > 0.8)),
    }


GATES = {"pbmc_citeseq_2runs": gates_citeseq, "mimitou2019_pbmc_eccite": gates_eccite}


if __name__ == "__main__":
    main()
