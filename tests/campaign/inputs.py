"""Good inputs: small tables and models that every function of the campaign works with, made anew on each call."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from warnings import catch_warnings, filterwarnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import mudatas
import scgpt_tools as sct
import screen_tables
from generators import generator
from scgpt_tools.metrics import BenchmarkScores, PerturbationScores
from scgpt_tools.metrics.benchmark import benchmark_table
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.models.config import ClassifierConfig, RegressorConfig
from scgpt_tools.vocabulary import Vocabulary

N_CELLS = 18
GENES = [f"GENE{i}" for i in range(24)]
TYPES = ("B", "NK", "T")


@cache
def _cells() -> ad.AnnData:
    rng = np.random.default_rng(3)
    kind = np.arange(N_CELLS) % 3
    rates = np.where(np.arange(24) % 3 == kind[:, None], 6.0, 1.0)
    counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(TYPES)[kind]),
            "batch": pd.Categorical(np.array(["a", "b"])[np.arange(N_CELLS) // 3 % 2]),
            "scgpt_cell_type": pd.Categorical(np.array(TYPES)[np.roll(kind, 1)]),
            "scgpt_cell_type_confidence": rng.random(N_CELLS).astype(np.float32),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame({"symbol": GENES}, index=GENES)
    adata = ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy()})
    adata.obsm["X_scGPT"] = rng.normal(kind[:, None], 0.3, (N_CELLS, 4)).astype(np.float32)
    adata.obsm["X_pca"] = rng.normal(kind[:, None], 0.3, (N_CELLS, 2)).astype(np.float32)
    return adata


def cells() -> ad.AnnData:
    """Counts of three types of cells in two batches, with an embedding and predicted types."""
    return _cells().copy()


@cache
def _screen() -> ad.AnnData:
    adata = screen_tables.screen(5)
    conditions = sorted(set(adata.obs["condition"]) - {"ctrl"})
    parts = {"train": ["ctrl", *conditions[:-2]], "val": conditions[-2:-1], "test": conditions[-1:]}
    sct.pp.perturbation_split(adata, "custom", parts=parts)
    sct.pp.pair_controls(adata, within="batch")
    sct.pp.perturbation_de(adata)
    adata.layers["predicted"] = adata.X.toarray() + 0.5
    return adata


def screen() -> ad.AnnData:
    """Log values of a screen, parsed, split, paired, ranked and with predictions."""
    return _screen().copy()


def plain_screen() -> ad.AnnData:
    """The cells of the screen as they come."""
    return screen_tables.screen(5)


def effects() -> ad.AnnData:
    """What a screen on paper returns."""
    rng = np.random.default_rng(5)
    a, b, c = rng.normal(size=(3, 40))
    table = ad.AnnData(
        np.stack([a, b, c, a + b, 0.5 * b]).astype(np.float32),
        obs=pd.DataFrame({"n_genes": [1, 1, 1, 2, 2]}, index=["G0", "G1", "G2", "G0+G1", "G1+G2"]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(40)]),
    )
    table.layers["effect"] = table.X.copy()
    return table


@cache
def _network() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = _cells().copy()
    adata.varm["X_scGPT_genes"] = (np.repeat(np.eye(3, 8), 8, axis=0) + rng.normal(0, 0.08, (24, 8))).astype(np.float32)
    sct.tl.gene_network(adata, use_rep="X_scGPT_genes", show_progress=False)
    sct.tl.gene_programs(adata)
    sct.tl.score_programs(adata, groupby="cell_type")
    return adata


def network() -> ad.AnnData:
    """Cells whose genes have vectors, a network, programs and their scores."""
    return _network().copy()


@cache
def _attention() -> ad.AnnData:
    return sct.tl.attention(cells(), embedder(), genes=GENES[:8], groupby="cell_type", show_progress=False)


def attention() -> ad.AnnData:
    """Attention between genes by type of cell."""
    return _attention().copy()


@cache
def _mudata() -> md.MuData:
    mdata = mudatas.make_mudata(16)
    shares = np.random.default_rng(0).dirichlet([1, 1], 16)
    mdata.obs["rna:mod_weight"], mdata.obs["prot:mod_weight"] = shares.T
    mdata.obs["kind"] = mdata["rna"].obs["kind"]
    mdata.obsm["X_scGPT"] = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)
    return mdata


def multiome() -> md.MuData:
    """RNA and proteins of the same cells."""
    with mudatas.without_pulling(), catch_warnings():
        # A protein has the name of a gene on purpose.
        filterwarnings("ignore", message="var_names are not unique")
        return _mudata().copy()


@cache
def embedder() -> CellModel:
    """A model that knows two thirds of the genes."""
    vocabulary = Vocabulary.from_genes(GENES[:16])
    return _made("scgpt", vocabulary)


@cache
def annotator() -> CellModel:
    """The same with a head for three classes."""
    plain = embedder().config
    heads = plain.heads.replace(cell_type=ClassifierConfig(classes=3, names=TYPES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return CellModel(replace(plain, heads=heads), embedder().vocabulary, name="tiny annotator").eval()


@cache
def regressor() -> CellModel:
    """The same with a head for two numbers."""
    plain = embedder().config
    head = RegressorConfig(names=("age", "score"), centre=(40.0, 0.0), scale=(10.0, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return CellModel(
            replace(plain, heads=plain.heads.replace(targets=head)), embedder().vocabulary, name="tiny regressor"
        ).eval()


@cache
def perturber() -> CellModel:
    """A generator for the genes of the screen."""
    return generator([f"G{i}" for i in range(40)], strength=20)


@cache
def texts() -> CellModel:
    """A model of perturbations with embeddings of texts about the genes of the screen."""
    genes = [f"G{i}" for i in range(40)]
    vectors = {gene: np.random.default_rng(i).normal(size=4) for i, gene in enumerate(genes)}
    base = _made("scgpt", Vocabulary.from_genes(genes))
    return sct.models.to_scgenept(base, "scgenept_ncbi", vectors)


@cache
def joint() -> CellModel:
    """A model of RNA and proteins, trained for a moment."""
    with sct.settings.override(show_progress=False):
        return sct.train.finetune(
            multiome(), mudatas.make_base(), task="multiomic", epochs=1, batch_size=8, accelerator="cpu"
        )


def method_scores() -> PerturbationScores:
    """Scores of a model, a baseline and the ceiling."""
    rng = np.random.default_rng(2)
    roles = {"mine": "model", "no_change": "baseline", "ceiling": "ceiling"}
    rows = [
        (f"C{number}", "unseen", method, role, metric, rng.random())
        for method, role in roles.items()
        for metric in ("mse", "mae")
        for number in range(4)
    ]
    table = pd.DataFrame(rows, columns=["condition", "group", "method", "role", "metric", "value"])
    return PerturbationScores(table, table.iloc[:0], pd.Series(dtype=float), "0" * 64)


def benchmark_scores() -> BenchmarkScores:
    """Scores of a model and a baseline by three seeds."""
    rng = np.random.default_rng(2)
    rows = [
        {
            "dataset": "data", "benchmark": "linear_probe", "model": model, "role": role, "replicate": 0, "seed": seed,
            "metric": metric, "value": rng.random(), "reference": 0.3, "reason": "",
        }
        for model, role in (("mine", "model"), ("PCA", "baseline"))
        for metric in ("accuracy", "f1_macro")
        for seed in range(3)
    ]  # fmt: skip
    return BenchmarkScores(benchmark_table(rows))


@cache
def _knockouts() -> ad.AnnData:
    shifts = sct.tl.knockout(
        cells(), embedder(), genes=GENES[:4], groupby="cell_type", n_null=None, min_cells=1, show_progress=False
    )
    shifts.obs["z_score"], shifts.obs["q_value"] = np.linspace(-1, 3, shifts.n_obs), np.linspace(1, 0.01, shifts.n_obs)
    return shifts


def knockouts() -> ad.AnnData:
    """Genes knocked out in silico, by type of cell."""
    return _knockouts().copy()


def _made(family: str, vocabulary: Vocabulary) -> CellModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = FAMILIES[family](vocabulary, dim=16, layers=2, heads=2, hidden=16, dropout=0.1)
        return CellModel(config, vocabulary, name="tiny").eval()
