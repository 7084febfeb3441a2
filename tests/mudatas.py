"""A small MuData of two kinds of cells, in which proteins follow from genes; some cells lack a modality."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from warnings import catch_warnings, filterwarnings

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.vocabulary import Vocabulary

GENES = [f"GENE{i}" for i in range(24)]
PROTEINS = ["CD4", "GENE3", "CD19", "IgG"]
PEAKS = [f"chr1:{100 * i}-{100 * i + 50}" for i in range(12)]


def make_mudata(n_cells: int = 40, *, seed: int = 0, mosaic: bool = False, peaks: bool = False) -> md.MuData:
    """Cells with RNA and proteins, one protein with the name of a gene, and perhaps with peaks."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n_cells) % 2
    names = np.array([f"cell{i}" for i in range(n_cells)])
    rates = np.where(kind[:, None] == (np.arange(len(GENES)) % 2), 6.0, 0.7)
    rna = _table(rng.poisson(rates), names, GENES)
    rna.obs["kind"] = np.array(["even", "odd"])[kind]
    rna.obs["batch"] = np.where(np.arange(n_cells) % 3, "a", "b")
    high = np.where(kind[:, None] == np.array([0, 1, 0, 2]), 40.0, 4.0)
    prot = _table(rng.poisson(high), names, PROTEINS, dense=True)
    prot.obs["batch"] = rna.obs["batch"].to_numpy()
    tables = {"rna": rna, "prot": prot[3:].copy() if mosaic else prot}
    if mosaic:
        tables["rna"] = rna[:-4].copy()
    if peaks:
        tables["atac"] = _table(rng.random((n_cells, len(PEAKS))) < np.linspace(0.1, 0.9, len(PEAKS)), names, PEAKS)
    with without_pulling(), catch_warnings():
        # A protein has the name of a gene on purpose.
        filterwarnings("ignore", message="var_names are not unique")
        return md.MuData(tables)


def without_pulling() -> AbstractContextManager[object]:
    """Leave the columns of modalities where they are: an option of mudata 0.3, and all that 0.4 does."""
    return md.set_options(pull_on_update=False) if hasattr(md, "set_options") else nullcontext()


def make_base(seed: int = 0) -> CellModel:
    """A model of RNA that knows 20 of the genes."""
    import torch

    vocabulary = Vocabulary.from_genes(GENES[:20])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = scgpt(vocabulary, dim=16, layers=1, heads=2, hidden=16, dropout=0.0)
        return CellModel(config, vocabulary, name="tiny").eval()


def contents(mdata: md.MuData) -> dict[str, object]:
    """All that a MuData holds, as something to compare."""
    parts: dict[str, object] = {"obs": mdata.obs.to_csv(), "obsm": sorted(mdata.obsm), "uns": repr(dict(mdata.uns))}
    for name, table in mdata.mod.items():
        X = table.X.toarray() if sp.issparse(table.X) else np.asarray(table.X)
        parts[name] = (X.tobytes(), table.obs.to_csv(), table.var.to_csv(), sorted(table.layers), repr(dict(table.uns)))
    return parts


def _table(X: np.ndarray, cells: np.ndarray, features: list[str], *, dense: bool = False) -> ad.AnnData:
    values = X.astype(np.float32)
    obs, var = pd.DataFrame(index=cells), pd.DataFrame(index=features)
    return ad.AnnData(values if dense else sp.csr_matrix(values), obs=obs, var=var)
