"""Tables, models and arguments from which no honest result can come: refused without a trace, or said."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools.models.config import (
    ClassifierConfig,
    Named,
)

ADVICE = "load the model anew"


pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def classifier(make_model):
    return make_model(config={"heads": Named(cell_type=ClassifierConfig(classes=3, names=("B", "NK", "T")))}).eval()


def damaged(model):
    """Finite weights whose results overflow."""
    with torch.no_grad():
        model.encoder.blocks[0].feed_forward.expand.weight.fill_(3e38)
    return model


# Results that are no numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"pooling": "weighted"}, {"precision": "bf16"}])
def test_an_embedding_that_is_no_number_is_refused(adata, model, unchanged, options):
    before = unchanged(adata)
    with pytest.raises(ValueError, match=r"NaN or infinite numbers for \d+ of \d+ cells .*first: 'cell\d+'"):
        sct.tl.embed(adata, damaged(model), **options)
    assert unchanged(adata) == before


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_classes_that_are_no_numbers_are_refused(adata, classifier, unchanged, threshold):
    before = unchanged(adata)
    with pytest.raises(ValueError, match=ADVICE):
        sct.tl.annotate(adata, [classifier, damaged(classifier)], threshold=threshold)
    assert unchanged(adata) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_that_hides_what_is_no_number_is_not_believed(adata, model, unchanged, value):
    """Torch's attention on a CPU gives numbers for queries that are none."""
    before = unchanged(adata)
    with torch.no_grad():
        model.encoder.blocks[0].attention.query.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"to be finite, found .* encoder\.blocks\.0\.attention\.query\.weight"):
        sct.tl.embed(adata, model)
    assert unchanged(adata) == before


def test_vectors_of_genes_that_are_no_numbers_are_refused(adata, model, unchanged):
    before = unchanged(adata)
    with torch.no_grad():
        model.embedder.genes.table.weight[5] = float("inf")
    with pytest.raises(ValueError, match=r"to be finite, found .* embedder\.genes\.table\.weight"):
        sct.tl.embed_genes(adata, model)
    assert unchanged(adata) == before


def test_the_first_minibatch_is_enough(adata, model, monkeypatch):
    calls = []
    real = model.embed_cells
    monkeypatch.setattr(model, "embed_cells", lambda *a, **k: calls.append(1) or real(*a, **k) * float("nan"))
    with pytest.raises(ValueError, match="finite"):
        sct.tl.embed(adata, model, batch_size=1)
    assert len(calls) < 12


# Cells that say nothing -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_empty(adata):
    """Two cells express no gene at all, one only genes that the vocabulary lacks."""
    X = adata.X.toarray()
    X[:2] = 0
    X[4, 1::3] = X[4, 2::3] = 0
    adata.X = sp.csr_matrix(X)
    return adata


def test_cells_without_known_genes_get_no_class(with_empty, classifier):
    with pytest.warns(UserWarning, match=r"found 3 of 12 without any .*get no class but 'none'"):
        sct.tl.annotate(with_empty, classifier, unassigned="none")
    found = with_empty.obs["scgpt_cell_type"].astype(str)
    assert (found == "none").tolist() == [True, True, False, False, True, *[False] * 7]
    assert with_empty.obs["scgpt_cell_type_confidence"][["cell0", "cell1", "cell4"]].tolist() == [0, 0, 0]


def test_cells_without_known_genes_are_counted_in_files_too(with_empty, as_form, model):
    with pytest.warns(UserWarning, match="found 3 of 12 without any"):
        sct.tl.embed(as_form(with_empty, "backed"), model)


def test_cells_without_known_genes_get_no_type_from_neighbours(with_empty, model):
    with pytest.warns(UserWarning, match="found 3 of 12"):
        sct.tl.embed(with_empty, model)
    with pytest.warns(UserWarning) as said:
        sct.tl.map_reference(with_empty, with_empty, label_key="cell_type", k=1)
    assert len(said) == 2
    assert all("found 3 of 12" in str(warning.message) for warning in said)
    assert with_empty.uns["mapped_cell_type"]["params"]["n_reference"] == 9
    found = with_empty.obs["mapped_cell_type"].astype(str)
    assert (found == "unassigned").sum() == 3
    assert found["cell2"] == "NK"


def test_cells_without_known_genes_are_said_by_tokenize_and_by_kept_bins(with_empty, model):
    with pytest.warns(UserWarning, match="found 3 of 12 without any"):
        sct.pp.tokenize(with_empty, model)
    with pytest.warns(UserWarning, match="found 3 of 12 without any"):
        sct.tl.embed(with_empty, model, tokens="X_binned")


# Sparse matrices that are damaged -------------------------------------------------------------------------------------


def column(number):
    def change(X):
        assert X.has_canonical_format  # what SciPy remembers of it is no longer true afterwards
        X.indices[3] = number

    return change


def pointer(place, number):
    def change(X):
        X.indptr[place] = number

    return change


def swapped(X):
    X.indptr[3], X.indptr[4] = X.indptr[4].copy(), X.indptr[3].copy()


DAMAGES = {
    "negative": (column(-1), "numbers from 0 to .*found -1"),
    "too large": (column(10**6), "numbers from 0 to .*found 1000000"),
    "negative pointer": (pointer(2, -5), "`indptr`"),
    "pointer behind the end": (pointer(-1, 10**6), "`indptr`"),
    "pointers that go back": (swapped, "`indptr`"),
    "another first pointer": (pointer(0, 2), "`indptr`"),
}


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("view", [False, True])
def test_damaged_sparse_matrices_are_refused(adata, as_form, model, form, name, view):
    change, message = DAMAGES[name]
    table = as_form(adata, form)
    change(table.X)
    with pytest.raises(ValueError, match=message):
        sct.tl.embed(table[:, ::-1] if view else table, model)
    assert "X_scGPT" not in table.obsm


def test_lists_of_different_lengths_are_refused(adata, model):
    adata.X.data = adata.X.data[:-4]
    with pytest.raises(ValueError, match="`indptr`"):
        sct.tl.embed(adata, model)


def test_damage_in_a_file_is_refused(adata, model, tmp_path):
    import h5py

    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "a") as file:
        file["X/indices"][7] = 999
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match="found 999 in row"):
        sct.tl.embed(backed, model)
    backed.file.close()


def test_small_integers_that_stand_twice_do_not_wrap(adata, model):
    X = adata.X.astype(np.uint8).tocoo()
    X.data[:] = 200
    once = sp.csr_matrix((X.data.astype(np.float32) * 2, (X.row, X.col)), shape=X.shape)
    indptr = 2 * once.indptr
    twice = sp.csr_matrix((np.full(2 * X.nnz, 200, np.uint8), np.repeat(once.indices, 2), indptr), shape=X.shape)
    found = next(sct.data.rows.RowSource(ad.AnnData(twice)).blocks()).X
    np.testing.assert_array_equal(found.toarray(), once.toarray())


def test_read_only_memory_is_enough(adata, model):
    expected = adata.copy()
    sct.tl.embed(expected, model)
    for array in (adata.X.data, adata.X.indices, adata.X.indptr):
        array.flags.writeable = False
    sct.tl.embed(adata, model)
    np.testing.assert_array_equal(adata.obsm["X_scGPT"], expected.obsm["X_scGPT"])


def test_a_mask_is_not_dropped(adata, model):
    X = np.ma.array(adata.X.toarray(), mask=False)
    adata.layers["masked"] = X
    if not isinstance(adata.layers["masked"], np.ma.MaskedArray):
        pytest.skip("this anndata keeps no masks")
    sct.tl.embed(adata, model, layer="masked")
    adata.layers["masked"][2, 3] = np.ma.masked
    with pytest.raises(ValueError, match="without a mask, found one of 1 values"):
        sct.tl.embed(adata, model, layer="masked")


# Values are looked at before work begins ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dense", "csr", "csc", "float64", "view"])
def test_a_bad_value_at_the_end_is_found_before_the_work(adata, as_form, model, monkeypatch, form):
    large = ad.concat([adata] * 400, index_unique="-")
    large.X = large.X.toarray()
    large.X[-7, 4] = np.nan
    large.X = sp.csr_matrix(large.X)
    monkeypatch.setattr(model, "embed_cells", lambda *_, **__: pytest.fail("computed something"))
    with pytest.raises(ValueError, match="found nan in cell"):
        sct.tl.embed(as_form(large, form), model)


def test_scaled_values_beside_raw_ones(adata, model):
    adata.raw = adata.copy()
    adata.X = adata.X.toarray() - 1
    with pytest.raises(ValueError, match=r"adata\.raw\.to_adata\(\)"):
        sct.tl.embed(adata, model)


@pytest.mark.parametrize("bad", [51, 1.5])
def test_kept_bins_have_to_be_bins(adata, model, bad):
    sct.pp.tokenize(adata, model)
    adata.layers["X_binned"] = adata.layers["X_binned"].astype(np.float32)
    adata.layers["X_binned"].data[5] = bad
    with pytest.raises(ValueError, match=f"Expected bins, whole numbers from 0 to 50, .*found {bad}"):
        sct.tl.embed(adata, model, tokens="X_binned")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[::-1], "to be those of its genes"),
        (lambda ids: np.where(np.arange(30) < 15, np.nan, ids), "Expected token ids from -1 to 24"),
        (lambda ids: ids + 1000, "Expected token ids from -1 to 24"),
        (lambda ids: np.where(ids >= 0, ids.max(), -1), "every token once"),
    ],
    ids=["reversed", "half lost", "of another vocabulary", "all alike"],
)
def test_kept_token_ids_have_to_be_those_of_the_genes(adata, model, change, message):
    sct.pp.tokenize(adata, model)
    adata.var["X_binned_token_id"] = change(adata.var["X_binned_token_id"].to_numpy())
    with pytest.raises(ValueError, match=message):
        sct.tl.embed(adata, model, tokens="X_binned")


# Several columns of a gene --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dense", "csr", "csc", "backed", "dask"])
def test_of_several_columns_the_one_with_most_counts_is_read(adata, as_form, model, form):
    expected = adata.copy()
    sct.tl.embed(expected, model)
    scaffold = ad.AnnData(np.zeros((12, 1), np.float32), obs=adata.obs, var=pd.DataFrame(index=["GENE1-copy"]))
    both = ad.concat([scaffold, adata], axis="var", merge="first")
    both.var["name"] = [name.removesuffix("-copy") for name in both.var_names]
    table = as_form(both, form)
    with pytest.warns(UserWarning, match=r"with the most counts is read: GENE1 from column 2 \('GENE1'\)"):
        sct.tl.embed(table, model, genes="name")
    np.testing.assert_allclose(table.obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    with pytest.warns(UserWarning, match="GENE1 from column 0"):
        sct.pp.match_genes(table, model, genes="name", duplicates="first")


# Names of results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", " ", ".", "..", "a/b", None, 5, ["x"]])
@pytest.mark.parametrize("task", ["embed", "embed_genes", "annotate", "map_reference", "tokenize"])
def test_a_name_that_no_file_can_keep_is_refused(adata, classifier, unchanged, key, task):
    if key is None and task.startswith("embed"):
        pytest.skip("the key of the model's family")
    before = unchanged(adata)
    function = getattr(sct.pp if task == "tokenize" else sct.tl, task)
    with pytest.raises((ValueError, TypeError), match="Expected `key_added`"):
        function(adata, classifier, key_added=key)
    assert unchanged(adata) == before


def test_what_something_else_has_written_is_not_replaced(adata, classifier):
    adata.obsm["X_pca"] = np.ones((12, 2))
    adata.uns["neighbors"] = {"params": {}}
    for task, key in (("embed", "X_pca"), ("embed", "neighbors"), ("annotate", "cell_type")):
        with pytest.raises(ValueError, match=f"found .*{key}.* something else has written"):
            getattr(sct.tl, task)(adata, classifier, key_added=key)
    for _ in range(2):  # an earlier result of the same function may be
        sct.tl.embed(adata, classifier, key_added="mine")
    with pytest.raises(ValueError, match="something else"):
        sct.tl.annotate(adata, classifier, key_added="mine")


# Arguments ------------------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "normalize": ("False", TypeError),
    "copy": (1, TypeError),
    "ignore_case": ("no", TypeError),
    "show_progress": ("yes", TypeError),
    "layer": (["X"], TypeError),
    "tokens": ("", ValueError),
    "genes": (3, TypeError),
    "modalities": ("rna", TypeError),
    "length": (True, TypeError),
    "batch_size": ("64", TypeError),
    "model": (5, TypeError),
    "duplicates": ("last", ValueError),
    "device": ("gpu", ValueError),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_the_wrong_kind_are_refused(adata, model, unchanged, name):
    value, error = ARGUMENTS[name]
    before = unchanged(adata)
    with pytest.raises(error, match=rf"Expected `{name}"):
        sct.tl.embed(adata, **{"model": model} | {name: value})
    assert unchanged(adata) == before
