"""``sct.pp.tokenize`` keeps what the tokenizer of a model makes, and touches nothing if it cannot."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal
from mudata import MuData

import scgpt_tools as sct
from mudatas import without_pulling
from scgpt_tools.data.rows import row_keys
from scgpt_tools.models import CellModel
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:Only 20 of 30 features:UserWarning")


@pytest.fixture(autouse=True)
def quiet():
    with sct.settings.override(show_progress=False):
        yield


@pytest.fixture
def model(vocabulary):
    """What of a model is needed."""
    tokenizer = Tokenizer(TokenizerConfig(bins=11, ties="random", length=5), vocabulary)
    return SimpleNamespace(vocabulary=vocabulary, tokenizer=tokenizer, name="tiny")


@pytest.mark.parametrize("form", ["dense", "csr", "csc", "float64", "int32", "view", "backed", "zarr", "dask"])
@pytest.mark.parametrize("ties", ["left", "random"])
def test_every_form_of_a_table_gets_the_bins_of_the_tokenizer(adata, as_form, vocabulary, form, ties):
    twin = as_form(adata, form)
    if form == "view":
        with pytest.warns(ad.ImplicitModificationWarning):
            sct.pp.tokenize(twin, vocabulary, ties=ties, rng=3)
    else:
        sct.pp.tokenize(twin, vocabulary, ties=ties, rng=3)
    features = FeatureTable.from_var(adata.var, vocabulary)
    tokenizer = Tokenizer(TokenizerConfig(ties=ties), vocabulary)
    expected = tokenizer.bin_rows(adata.X, features, row_keys(adata.obs_names), rng=3)
    layer = twin.layers["X_binned"]
    assert isinstance(layer, sp.csr_matrix)
    assert layer.dtype == np.uint8
    np.testing.assert_array_equal(layer.toarray(), expected.toarray())
    assert set(twin.layers) - {None} == {"X_binned"}


def test_what_is_written(adata, vocabulary):
    assert sct.pp.tokenize(adata, vocabulary) is None
    ids = adata.var["X_binned_token_id"]
    assert ids.dtype == np.int32
    assert ids.tolist() == [vocabulary[name] if name in vocabulary else -1 for name in adata.var_names]
    known = adata.X.toarray()[:, ids >= 0]
    assert adata.obs["X_binned_n_tokens"].tolist() == (known > 0).sum(axis=1).tolist()
    assert adata.layers["X_binned"][:, ids.to_numpy() < 0].nnz == 0
    stored = adata.uns["X_binned"]
    assert stored["params"] == {"bins": 51, "ties": "left", "rng": 0, "layer": None, "genes": None}
    assert stored["model"] == {"name": "", "vocabulary": vocabulary.checksum}
    assert (stored["genes"]["n_matched"], stored["genes"]["n_features"]) == (20, 30)


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning", "ignore::zarr.errors.ZarrUserWarning")
def test_settings_survive_files(adata, vocabulary, tmp_path):
    sct.pp.tokenize(adata, vocabulary, genes=None, rng=np.random.default_rng(1), ties="random")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with ad.settings.override(zarr_write_format=3):
        adata.write_zarr(tmp_path / "cells.zarr")
    for table in (ad.read_h5ad(tmp_path / "cells.h5ad"), ad.read_zarr(tmp_path / "cells.zarr")):
        assert table.uns["X_binned"] == adata.uns["X_binned"]
        assert table.layers["X_binned"].dtype == np.uint8
        assert table.var["X_binned_token_id"].dtype == np.int32


def test_the_model_decides_unless_told_otherwise(adata, model):
    sct.pp.tokenize(adata, model)
    sct.pp.tokenize(adata, model, bins=300, ties="left", key_added="more")
    assert adata.uns["X_binned"]["params"] | {"bins": 11, "ties": "random"} == adata.uns["X_binned"]["params"]
    assert adata.uns["X_binned"]["model"]["name"] == "tiny"
    assert adata.layers["X_binned"].max() == 10
    assert (adata.layers["more"].max(), adata.layers["more"].dtype) == (299, np.int16)
    assert {"X_binned_token_id", "more_token_id"} <= set(adata.var)


def test_a_model_that_does_not_bin_gets_the_bins_of_scgpt(adata, vocabulary):
    tokenizer = Tokenizer(TokenizerConfig(values="log1p", bins=None), vocabulary)
    sct.pp.tokenize(adata, SimpleNamespace(vocabulary=vocabulary, tokenizer=tokenizer))
    assert adata.uns["X_binned"]["params"]["bins"] == 51


def test_a_file_is_a_vocabulary(adata, vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocab.json")
    copy = sct.pp.tokenize(adata, tmp_path / "vocab.json", copy=True)
    sct.pp.tokenize(adata, str(tmp_path / "vocab.json"))
    assert_equal(copy, adata)


def test_a_folder_is_a_model(adata, vocabulary, tmp_path):
    config = scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8)
    model = CellModel(replace(config, tokenizer=replace(config.tokenizer, bins=7)), vocabulary)
    model.save(tmp_path / "tiny")
    sct.pp.tokenize(adata, tmp_path / "tiny")
    assert adata.layers["X_binned"].max() == 6
    assert adata.uns["X_binned"]["model"]["vocabulary"] == vocabulary.checksum
    from_folder = adata.layers["X_binned"].copy()
    sct.pp.tokenize(adata, model)
    assert not (adata.layers["X_binned"] != from_folder).nnz


def test_a_copy_leaves_the_table_alone(adata, vocabulary):
    before = adata.copy()
    copy = sct.pp.tokenize(adata, vocabulary, copy=True)
    assert_equal(adata, before)
    assert "X_binned" in copy.layers


def test_names_from_a_column_and_other_tables(adata, vocabulary):
    sct.pp.tokenize(adata, vocabulary, genes="symbol", ignore_case=True, key_added="by_case")
    sct.pp.tokenize(adata, vocabulary, key_added="by_index")
    np.testing.assert_array_equal(adata.layers["by_case"].toarray(), adata.layers["by_index"].toarray())
    assert adata.uns["by_case"]["params"]["genes"] == "symbol"
    adata.var_names = [f"old{i}" for i in range(adata.n_vars)]
    aliases = {f"old{i}": f"GENE{i}" for i in range(adata.n_vars)}
    sct.pp.tokenize(adata, vocabulary, aliases=aliases, key_added="by_alias")
    np.testing.assert_array_equal(adata.layers["by_alias"].toarray(), adata.layers["by_index"].toarray())


def test_a_modality(adata, vocabulary):
    protein = ad.AnnData(np.ones((12, 1), dtype=np.float32), obs=adata.obs[[]], var=pd.DataFrame(index=["P1"]))
    with without_pulling():
        mdata = MuData({"rna": adata, "prot": protein})
    sct.pp.tokenize(mdata, vocabulary, modality="rna")
    assert "X_binned" in mdata["rna"].layers
    assert "X_binned" not in mdata["prot"].layers
    sct.pp.tokenize(mdata, vocabulary, key_added="both")
    assert "both" in mdata["rna"].layers
    assert "both" in mdata["prot"].layers


def test_draws_do_not_depend_on_the_table_around(adata, vocabulary, rng):
    order, columns = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)
    shuffled = adata[order, columns].copy()
    sct.pp.tokenize(adata, vocabulary, ties="random")
    sct.pp.tokenize(shuffled, vocabulary, ties="random")
    np.testing.assert_array_equal(
        shuffled.layers["X_binned"].toarray(), adata.layers["X_binned"].toarray()[order][:, columns]
    )


def test_no_cells(adata, vocabulary):
    empty = adata[:0].copy()
    sct.pp.tokenize(empty, vocabulary)
    assert empty.layers["X_binned"].shape == (0, 30)


def test_what_was_done_is_logged(adata, vocabulary, caplog):
    with caplog.at_level(logging.INFO, logger="scgpt_tools"):
        sct.pp.tokenize(adata, vocabulary)
    assert "Binned 12 cells into layer 'X_binned': 20 of 30 features" in caplog.text


# --- refusals -----------------------------------------------------------------------------------------------------


def with_value(value):
    def change(adata):
        X = adata.X.toarray()
        X[7, 13] = value
        adata.X = sp.csr_matrix(X)

    return change


def with_layer(adata):
    adata.layers["counts"] = adata.X.copy()


def without_matrix(adata):
    adata.X = None


def with_other_names(adata):
    adata.var_names = [f"ENSG{i:011}" for i in range(adata.n_vars)]


NAMED = "in cell 'cell7', gene 'GENE13'"
REFUSALS = {
    "negative": (with_value(-1), {}, ValueError, f"not negative in `X`, found -1.0 {NAMED}"),
    "missing": (with_value(np.nan), {}, ValueError, f"found nan {NAMED}"),
    "infinite": (with_value(np.inf), {}, ValueError, f"found inf {NAMED}"),
    "negative infinite": (with_value(-np.inf), {}, ValueError, f"found -inf {NAMED}"),
    "no such layer": (with_layer, {"layer": "count"}, KeyError, "Did you mean 'counts'"),
    "no such column": (with_layer, {"genes": "symbols"}, KeyError, "symbol"),
    "no X": (without_matrix, {}, ValueError, "Expected a matrix in `X`, found none"),
    "no gene known": (with_other_names, {}, ValueError, "Ensembl"),
    "too few bins": (with_layer, {"bins": 1}, ValueError, "Expected `bins` to be at least 2"),
    "no such rule": (with_layer, {"ties": "both"}, ValueError, "Expected `ties` to be one of"),
    "no seed": (with_layer, {"rng": "seed"}, TypeError, "Expected `rng` to be a whole number"),
    "modality": (with_layer, {"modality": "rna"}, ValueError, "Expected `modality` with MuData only"),
    "no model": (with_layer, {"model": 3}, TypeError, "Expected `model` to be a model, a vocabulary, a name or a path"),
    "no such file": (with_layer, {"model": "nowhere/vocab.json"}, FileNotFoundError, "vocab.json"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_leave_the_table_as_it_was(adata, vocabulary, name):
    change, arguments, error, message = REFUSALS[name]
    change(adata)
    before = adata.copy()
    keys = {place: list(getattr(adata, place).keys()) for place in ("layers", "uns", "obs", "var")}
    with pytest.raises(error, match=message):
        sct.pp.tokenize(adata, **{"model": vocabulary, **arguments})
    assert {place: list(getattr(adata, place).keys()) for place in keys} == keys
    if adata.X is not None:  # compared apart, since `assert_equal` takes NaN to differ from itself
        np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    adata.X = before.X = None
    assert_equal(adata, before, exact=True)


def test_a_backed_table_cannot_be_copied(adata, as_form, vocabulary):
    with pytest.raises(ValueError, match="Expected a table in memory for copy=True, found a backed one"):
        sct.pp.tokenize(as_form(adata, "backed"), vocabulary, copy=True)


def test_scaled_values_are_warned_about_before_they_are_refused(adata, vocabulary):
    adata.X = adata.X.toarray() - 1
    with pytest.raises(ValueError, match="not negative"):
        sct.pp.tokenize(adata, vocabulary)


def test_a_unit_that_the_model_does_not_expect(adata, vocabulary):
    tokenizer = Tokenizer(TokenizerConfig(expects="log1p"), vocabulary)
    with pytest.warns(UserWarning, match=r"Expected log-normalised values, found whole numbers") as caught:
        sct.pp.tokenize(adata, SimpleNamespace(vocabulary=vocabulary, tokenizer=tokenizer))
    assert caught[0].filename == __file__


def test_special_tokens_are_no_genes(adata):
    adata.var_names = ["<pad>", *adata.var_names[1:]]
    sct.pp.tokenize(adata, Vocabulary([*adata.var_names, "<cls>"]))
    assert (adata.var["X_binned_token_id"] < 0).tolist() == [True] + [False] * 29


def test_a_mask_of_genes_stands_for_a_subset(adata, vocabulary):
    mask = np.arange(adata.n_vars) % 3 > 0
    expected = sct.pp.tokenize(adata[:, mask].copy(), vocabulary, copy=True)
    sct.pp.tokenize(adata, vocabulary, mask_var=mask)
    np.testing.assert_array_equal(adata[:, mask].layers["X_binned"].toarray(), expected.layers["X_binned"].toarray())
    assert not adata[:, ~mask].layers["X_binned"].toarray().any()
    assert (adata.var["X_binned_token_id"].to_numpy()[~mask] == -1).all()
