"""Bundled data."""

from __future__ import annotations

import numpy as np
import scanpy as sc
import scipy.sparse as sp

from scgpt_tools.datasets import pbmc_demo
from scgpt_tools.tokens.units import describe_values, warn_about_units


def test_the_demo_data_are_log_values_with_symbols_and_types():
    adata = pbmc_demo()
    assert adata.shape == (700, 765)
    assert sp.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    warn_about_units(describe_values(adata.X), "log1p")
    assert {"CD3D", "MS4A1", "NKG7", "LYZ"} <= set(adata.var_names)
    assert adata.obs["cell_type"].dtype == "category"
    assert adata.obs["cell_type"].value_counts().min() >= 8
    assert list(adata.obs) == ["cell_type"]


def test_the_types_fit_the_expression():
    adata = pbmc_demo()
    expression = sc.get.aggregate(adata, "cell_type", "mean")
    for gene, kind in (("MS4A1", "CD19+ B"), ("GNLY", "CD56+ NK"), ("S100A8", "CD14+ Monocyte")):
        assert expression.obs_names[expression[:, gene].layers["mean"].argmax()] == kind


def test_every_call_makes_a_new_table():
    first = pbmc_demo()
    first.X.data[:] = 0
    first.obs["cell_type"] = "x"
    assert pbmc_demo().X.max() > 1
    assert pbmc_demo().obs["cell_type"].nunique() == 10
