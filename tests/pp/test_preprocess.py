"""``sct.pp.preprocess`` is scanpy's steps in scGPT's order."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal

import scgpt_tools as sct
from scgpt_tools.tokens.values import bin_row


@pytest.fixture(params=["csr", "dense", "view"])
def table(request, adata, as_form):
    return as_form(adata, request.param)


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def test_all_steps(table):
    before = table.copy()
    result = sct.pp.preprocess(table, bins=11)
    assert_equal(table.copy(), before)
    np.testing.assert_array_equal(dense(result.X), dense(before.X))
    counts = dense(before.X)
    normed = counts * (1e4 / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(dense(result.layers["X_normed"]), normed, rtol=1e-5)
    np.testing.assert_allclose(dense(result.layers["X_log1p"]), np.log1p(normed), rtol=1e-5)
    expected = [bin_row(row, 11) for row in dense(result.layers["X_log1p"])]
    np.testing.assert_array_equal(result.layers["X_binned"].toarray(), expected)
    assert result.layers["X_binned"].dtype == np.uint8


def test_a_whole_number_is_a_target_too(adata):
    for target in (500, 500.0):
        result = sct.pp.preprocess(adata, target_sum=target, log1p=False, bins=None)
        np.testing.assert_allclose(result.layers["X_normed"].sum(axis=1), 500, rtol=1e-5)
        assert set(result.layers) - {None} == {"X_normed"}


def test_layers_have_memory_of_their_own(table):
    result = sct.pp.preprocess(table)
    parts = [result.X, *(result.layers[name] for name in result.layers if name is not None)]
    arrays = [part.data if sp.issparse(part) else part for part in parts]
    for place, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[:place])
        assert not np.shares_memory(array, dense(table.X))


def test_steps_can_be_left_out(adata):
    assert not set(sct.pp.preprocess(adata, target_sum=None, log1p=False, bins=None).layers) - {None}
    only_bins = sct.pp.preprocess(adata, target_sum=None, log1p=False)
    np.testing.assert_array_equal(
        only_bins.layers["X_binned"].toarray(), sct.pp.preprocess(adata).layers["X_binned"].toarray()
    )


def test_filters_look_at_the_layer(adata):
    counts = adata.X.toarray()
    counts[:, 3] = 0
    counts[5] = 0
    adata.layers["counts"] = sp.csr_matrix(counts)
    result = sct.pp.preprocess(adata, layer="counts", min_gene_counts=1, min_cell_counts=6)
    kept = np.setdiff1d(np.arange(12), [5, 11])
    assert result.obs_names.tolist() == [f"cell{i}" for i in kept]
    assert "GENE3" not in result.var_names
    np.testing.assert_array_equal(result.X.toarray(), adata[result.obs_names, result.var_names].X.toarray())


def test_variable_genes_are_those_of_scanpy(adata):
    result = sct.pp.preprocess(adata, n_top_genes=7, hvg_flavor="seurat", bins=None)
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    sc.pp.highly_variable_genes(logged, n_top_genes=7, flavor="seurat")
    assert result.var_names.tolist() == logged.var_names[logged.var["highly_variable"]].tolist()


def test_random_ties_follow_the_seed_and_the_names(adata, rng):
    first = sct.pp.preprocess(adata, ties="random", rng=1)
    other = sct.pp.preprocess(adata, ties="random", rng=2)
    order = rng.permutation(adata.n_obs)
    shuffled = sct.pp.preprocess(adata[order], ties="random", rng=1)
    assert (first.layers["X_binned"] != other.layers["X_binned"]).nnz
    assert not (first.layers["X_binned"][order] != shuffled.layers["X_binned"]).nnz


def test_logarithms_of_logarithms_are_warned_about(adata):
    logged = sct.pp.preprocess(adata, bins=None)
    with pytest.warns(UserWarning, match=r"Expected values without a logarithm, found fractions .* log1p=False"):
        sct.pp.preprocess(logged, layer="X_log1p", target_sum=None)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_bad_values(adata, value):
    adata.X[2, 4] = value
    before = adata.copy()
    with pytest.raises(ValueError, match=f"found {value} in cell 'cell2', gene 'GENE4'"):
        sct.pp.preprocess(adata)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert not set(adata.layers) - {None}


def test_other_refusals(adata, as_form):
    with pytest.raises(KeyError, match="Found no key in `layers`: 'counts'"):
        sct.pp.preprocess(adata, layer="counts")
    with pytest.raises(ValueError, match="Expected a table in memory, found a backed one"):
        sct.pp.preprocess(as_form(adata, "backed"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"target_sum": 0}, ValueError),
        ({"target_sum": "1e4"}, TypeError),
        ({"n_top_genes": 0}, ValueError),
        ({"n_top_genes": -1}, ValueError),
        ({"min_gene_counts": -1}, ValueError),
        ({"log1p": "False"}, TypeError),
        ({"bins": 1}, ValueError),
        ({"ties": "right"}, ValueError),
        ({"hvg_flavor": "loess"}, ValueError),
        ({"rng": -1}, ValueError),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(adata, options, error):
    with pytest.raises(error, match=f"Expected `{next(iter(options))}`"):
        sct.pp.preprocess(adata, **options)


def test_variable_genes_are_chosen_by_default_and_as_many_as_asked_for(adata):
    assert sct.pp.preprocess(adata, n_top_genes=7).n_vars == 7
    with pytest.warns(UserWarning, match="more than 99 genes to choose from, found 30"):
        assert sct.pp.preprocess(adata, n_top_genes=99).n_vars == 30
    with pytest.warns(UserWarning, match="log-normalised values for hvg_flavor='seurat'"):
        sct.pp.preprocess(adata, n_top_genes=7, log1p=False, target_sum=None)


def test_what_the_flavour_of_scgpt_needs_is_named(adata, monkeypatch):
    monkeypatch.setitem(sys.modules, "skmisc", None)
    with pytest.raises(ImportError, match="extra 'hvg' of scgpt-tools"):
        sct.pp.preprocess(adata, n_top_genes=7, hvg_flavor="seurat_v3")


def test_filters_that_leave_nothing_are_refused(adata):
    with pytest.raises(ValueError, match="Expected genes with so many counts, found none"):
        sct.pp.preprocess(adata, min_gene_counts=10**6)


def in_two_parts(X):
    twice = sp.coo_matrix(X)
    row, col = (np.concatenate([part, part]) for part in (twice.row, twice.col))
    ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=X.shape[0]))])
    order = np.argsort(row, kind="stable")
    data = np.concatenate([twice.data, twice.data])[order] / 2
    return sp.csr_matrix((data, col[order], ends), shape=X.shape)


@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize(
    "form",
    [sp.csr_array, sp.csc_array, in_two_parts, lambda X: X.toarray().astype("f2"), lambda X: X.toarray().astype(">f4")],
    ids=["csr array", "csc array", "two parts", "half precision", "foreign byte order"],
)
def test_unusual_forms_of_the_matrix_do_not_matter(adata, layer, form):
    adata.X = adata.layers["counts"] = np.rint(adata.X).astype(np.float32)
    options = {"layer": layer, "min_gene_counts": 1, "n_top_genes": 8, "bins": 5}
    plain = sct.pp.preprocess(adata, **options)
    kept = form(adata.X)
    if layer is None:
        adata.X = kept
    else:
        adata.layers[layer] = kept
    made = sct.pp.preprocess(adata, **options)
    assert (adata.X if layer is None else adata.layers[layer]) is kept
    assert made.var_names.equals(plain.var_names)
    for key in ("X_normed", "X_log1p", "X_binned"):
        np.testing.assert_allclose(dense(made.layers[key]), dense(plain.layers[key]), rtol=1e-6)
