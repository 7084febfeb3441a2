"""A small perturbation screen with known effects, for tests of data, metrics and preprocessing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

N_GENES = 40
SINGLES = ("G0", "G1", "G2", "G3", "G4", "G5", "G6", "G7")
DOUBLES = (("G0", "G1"), ("G2", "G3"), ("G4", "G5"), ("G0", "G6"), ("G1", "G7"))
CONDITIONS = ("ctrl", *(f"{gene}+ctrl" for gene in SINGLES), *(f"{a}+{b}" for a, b in DOUBLES))


def effects() -> dict[str, np.ndarray]:
    """Change of the log mean by each gene; doubles add up."""
    rng = np.random.default_rng(3)
    shared = np.where(np.arange(N_GENES) % 4 == 0, 0.5, 0.0)
    own = {gene: shared + rng.normal(0, 0.6, N_GENES) * (rng.random(N_GENES) < 0.4) for gene in SINGLES}
    return own


def screen(cells: int = 16, *, seed: int = 0, batches: tuple[str, ...] = ("a", "b")) -> ad.AnnData:
    """Log values of ``cells`` cells a condition and batch, as CSR; controls are twice as many."""
    rng, change = np.random.default_rng(seed), effects()
    base = rng.normal(0.5, 0.5, N_GENES)
    blocks, labels, where = [], [], []
    for shift, batch in enumerate(batches):
        for condition in CONDITIONS:
            n = cells * 2 if condition == "ctrl" else cells
            mean = base + 0.1 * shift + sum(change.get(gene, 0) for gene in condition.split("+"))
            blocks.append(np.log1p(rng.poisson(np.exp(mean), (n, N_GENES))))
            labels += [condition] * n
            where += [batch] * n
    obs = pd.DataFrame(
        {"condition": pd.Categorical(labels), "cell_type": "K562", "batch": where},
        index=[f"cell{i}" for i in range(len(labels))],
    )
    order = rng.permutation(len(labels))
    matrix = sp.csr_matrix(np.concatenate(blocks).astype(np.float32))
    var = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return ad.AnnData(matrix[order], obs=obs.iloc[order], var=var)


def controls(adata: ad.AnnData) -> np.ndarray:
    """(n,) which cells are controls."""
    return (adata.obs["condition"] == "ctrl").to_numpy()
