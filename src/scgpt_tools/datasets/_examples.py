"""Data that needs no network."""

from __future__ import annotations

import pandas as pd
import scanpy as sc
from anndata import AnnData


def pbmc_demo() -> AnnData:
    """700 blood cells of one donor, from the data that scanpy ships.

    A subset of the PBMC 68k data of 10x Genomics with 765 genes, see :func:`scanpy.datasets.pbmc68k_reduced`.

    Returns
    -------
    A new table of 700 cells and 765 genes with

    ``X`` : :class:`scipy.sparse.csr_matrix`, float32
        Normalised expression, log1p.
    ``var_names``
        Gene symbols.
    ``obs["cell_type"]`` : :class:`pandas.Categorical`
        One of ten types, by similarity to sorted cells; the subtypes of T cells overlap.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.datasets.pbmc_demo().shape
    (700, 765)
    """
    shipped = sc.datasets.pbmc68k_reduced()
    # The matrix itself is scaled; what was before that is in `raw`.
    X = shipped.raw.X.copy()
    X.sort_indices()
    return AnnData(
        X=X,
        obs=pd.DataFrame({"cell_type": shipped.obs["bulk_labels"]}, index=shipped.obs_names.rename(None)),
        var=pd.DataFrame(index=shipped.raw.var_names.rename(None)),
    )
