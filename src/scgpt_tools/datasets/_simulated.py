"""A screen that never took place, made from cells that did: for trying things out, never for claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgpt_tools._arguments import renamed
from scgpt_tools._validate import as_seed, check_integer
from scgpt_tools.datasets._examples import pbmc_demo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools._types import RngLike

KNOCKOUTS = ("SPI1", "HLA-DRA", "TYROBP", "S100A9", "CST3", "ISG20")
"""Genes whose loss changes those that go with them."""
WITHOUT_EFFECT = ("NOSIP", "AES")
"""Genes whose loss changes nothing but themselves."""
DOUBLES = (("SPI1", "S100A9"), ("HLA-DRA", "CST3"))
"""Genes that are also knocked out together."""

_TYPES = ("CD14+ Monocyte", "Dendritic")
_REPLICATES = ("rep_1", "rep_2", "rep_3")
_LOSS = -3.0
_LEAST_CORRELATION = 0.1


@renamed(seed="rng")
def simulated_screen(*, n_cells: int = 40, strength: float = 2.0, rng: RngLike = 0) -> AnnData:
    """Simulate a CRISPR screen on the myeloid cells of :func:`pbmc_demo`.

    No cell of it was perturbed.  A knock-out takes its gene away and multiplies every gene that is correlated with it
    over the real cells by ``exp(-strength * correlation)``; pairs multiply.  Each replicate has small factors of its
    own, and counts are drawn anew.  Good for trying things out and for tests, not for claims about models or genes.

    Parameters
    ----------
    n_cells
        Cells of each knock-out and replicate; controls are twice as many.
    strength
        How much a knock-out changes the genes that go with it.
    rng
        Whole number, generator or ``None`` (fresh entropy) for cells, replicates and counts.

    Returns
    -------
    A new table of 765 genes with

    ``X`` : :class:`scipy.sparse.csr_matrix`, float32
        Normalised expression, log1p.
    ``obs["condition"]`` : :class:`pandas.Categorical`
        ``ctrl``, eight single knock-outs, two of them without effect on other genes, and two double ones.
    ``obs["batch"]`` : :class:`pandas.Categorical`
        One of three replicates.
    ``uns["simulated"]`` : :class:`str`
        That it is.
    ``uns["simulated_rng"]`` : :class:`int`
        What was drawn with.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> adata = sct.datasets.simulated_screen(n_cells=10)
    >>> adata.shape
    (360, 765)
    """
    check_integer("n_cells", n_cells)
    seed = as_seed(rng)
    draws = np.random.default_rng(seed)
    real = pbmc_demo()
    real = real[real.obs["cell_type"].isin(_TYPES)].copy()
    rates = np.expm1(real.X.toarray().astype(np.float64))
    effects = _effects(real, strength)
    replicates = dict(zip(_REPLICATES, np.exp(draws.normal(0, 0.1, (len(_REPLICATES), real.n_vars))), strict=True))
    counts, labels = [], []
    for replicate, factor in replicates.items():
        for condition, effect in effects.items():
            chosen = draws.integers(0, len(rates), n_cells * (2 if condition == "ctrl" else 1))
            counts.append(sparse.csr_matrix(draws.poisson(rates[chosen] * factor * np.exp(effect))))
            labels += [(condition, replicate)] * chosen.size
    X = sparse.vstack(counts).tocsr().astype(np.float32)
    totals = np.asarray(X.sum(axis=1)).ravel()
    X = sparse.diags_array(np.median(totals) / totals).astype(np.float32) @ X
    obs = pd.DataFrame(labels, columns=["condition", "batch"], index=[f"cell{i}" for i in range(len(labels))])
    return AnnData(
        X=sparse.csr_matrix(X).log1p(),
        obs=obs.astype("category"),
        var=real.var.copy(),
        uns={
            "simulated": "made by scgpt_tools.datasets.simulated_screen from cells that nobody perturbed",
            "simulated_rng": seed,
        },
    )


def _effects(real: AnnData, strength: float) -> dict[str, NDArray[np.float64]]:
    """Change of every gene's log rate by condition."""
    dense = real.X.toarray()
    varying = dense.std(axis=0) > 0
    correlation = np.zeros((real.n_vars, real.n_vars))
    correlation[np.ix_(varying, varying)] = np.corrcoef(dense[:, varying].T)
    singles = {}
    for gene in (*KNOCKOUTS, *WITHOUT_EFFECT):
        own = int(real.var_names.get_indexer([gene])[0])
        shared = correlation[own] if gene in KNOCKOUTS else np.zeros(real.n_vars)
        change = -strength * np.where(np.abs(shared) > _LEAST_CORRELATION, shared, 0.0)
        change[own] = _LOSS
        singles[gene] = change
    found = {"ctrl": np.zeros(real.n_vars)}
    found |= {f"{gene}+ctrl": change for gene, change in singles.items()}
    return found | {f"{first}+{second}": singles[first] + singles[second] for first, second in DOUBLES}
