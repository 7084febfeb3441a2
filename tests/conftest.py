"""Small inputs that many tests share: the same cells in every form that a table can have, and a vocabulary."""

from __future__ import annotations

import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

N_CELLS, N_GENES = 12, 30
FORMS = ("dense", "csr", "csc", "float64", "int32", "view", "backed", "zarr", "dask")


def pytest_configure(config: pytest.Config) -> None:
    """Compare with what a CPU computes, in commands of their own too; tests for a GPU are asked for by their marker."""
    if "gpu" not in config.getoption("markexpr").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _every_warning_again():
    """What a test has warned of, the next one is to hear again."""
    from scgpt_tools._warnings import forget_warnings

    forget_warnings()


@pytest.fixture
def without_bars():
    """No progress bars."""
    from scgpt_tools import settings

    with settings.override(show_progress=False):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def counts() -> sp.csr_matrix:
    """Counts of cells with very different numbers of expressed genes; the last cell has one gene."""
    rng = np.random.default_rng(7)
    dense = rng.poisson(3.0, size=(N_CELLS, N_GENES)) * (rng.random((N_CELLS, N_GENES)) < 0.6)
    dense[3, 10:] = 0
    dense[-1] = 0
    dense[-1, 4] = 5
    return sp.csr_matrix(dense.astype(np.float32))


@pytest.fixture
def gene_names() -> list[str]:
    return [f"GENE{i}" for i in range(N_GENES)]


@pytest.fixture
def adata(counts, gene_names) -> ad.AnnData:
    """Cells in memory, CSR."""
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(["B", "T", "NK"] * (N_CELLS // 3)), "batch": ["a", "b"] * (N_CELLS // 2)},
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    var = pd.DataFrame({"symbol": [name.lower() for name in gene_names]}, index=gene_names)
    return ad.AnnData(X=counts.copy(), obs=obs, var=var)


@pytest.fixture
def as_form(tmp_path):
    """Function that gives the same cells in one of :data:`FORMS`."""
    opened = []

    def convert(adata: ad.AnnData, form: str) -> ad.AnnData:
        twin = _FORMS[form](adata.copy(), tmp_path)
        if twin.isbacked:
            opened.append(twin)
        return twin

    yield convert
    for twin in opened:
        twin.file.close()


@pytest.fixture(params=FORMS)
def twin(request, adata, as_form) -> ad.AnnData:
    """The cells of ``adata``, once in each form."""
    return as_form(adata, request.param)


@pytest.fixture
def vocabulary(gene_names):
    """Two thirds of the genes, in another order than the columns, between special tokens and foreign genes."""
    from scgpt_tools.vocabulary import Vocabulary

    known = [name for i, name in enumerate(gene_names) if i % 3]
    return Vocabulary(["<pad>", "OTHER1", *reversed(known), "<cls>", "<eoc>", "OTHER2"])


def _with_matrix(change):
    def convert(adata, folder):
        adata.X = change(adata.X)
        return adata

    return convert


def _view(adata, folder):
    """A view of a larger table that holds the cells in reverse order and genes that are not asked for."""
    extra = ad.AnnData(np.ones((adata.n_obs, 2), dtype=np.float32), obs=adata.obs, var=pd.DataFrame(index=["x", "y"]))
    larger = ad.concat([extra, adata], axis="var", merge="first")[::-1].copy()
    return larger[adata.obs_names, adata.var_names]


def _backed(adata, folder):
    adata.write_h5ad(folder / "cells.h5ad")
    return ad.read_h5ad(folder / "cells.h5ad", backed="r")


def _zarr(adata, folder):
    """Columns in memory, matrix on disk."""
    import zarr

    group = zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=2)
    ad.io.write_elem(group, "X", adata.X)
    return ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=adata.obs, var=adata.var)


def _dask(adata, folder):
    import dask.array as da

    adata.X = da.from_array(adata.X.toarray(), chunks=(5, N_GENES)).map_blocks(sp.csr_matrix)
    return adata


_FORMS = {
    "dense": _with_matrix(lambda matrix: matrix.toarray()),
    "csr": _with_matrix(sp.csr_matrix),
    "csc": _with_matrix(sp.csc_matrix),
    "float64": _with_matrix(lambda matrix: matrix.astype(np.float64)),
    "int32": _with_matrix(lambda matrix: matrix.astype(np.int32)),
    "view": _view,
    "backed": _backed,
    "zarr": _zarr,
    "dask": _dask,
}
