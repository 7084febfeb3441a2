"""Cell embeddings: what is refused, without a trace, and what a large table costs."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools.data.rows import RowSource
from scgpt_tools.inference import runner
from scgpt_tools.models import CellModel
from scgpt_tools.models.config import (
    ContextConfig,
    scgpt_embedder,
)
from scgpt_tools.tokens.features import FeatureTable

KEY = "X_scGPT"


def embed(adata, model, **options) -> np.ndarray:
    """Embed and return the result; the input is a table whose own keys nobody compares."""
    sct.tl.embed(adata, model, show_progress=False, **options)
    return adata.obsm[options.get("key_added", KEY)]


# Refusals -------------------------------------------------------------------------------------------------------------


def bad_value(value: float):
    def change(adata):
        adata.X = adata.X.astype(np.float32)
        adata.X[7, 4] = value

    return change


def set_layer(adata):
    adata.layers["counts"] = adata.X.copy()


def rename_genes(adata):
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]


def drop_matrix(adata):
    adata.X = None


REFUSALS = {
    "unknown layer": (None, {"layer": "count"}, KeyError, "'count'"),
    "nearly the layer": (set_layer, {"layer": "count"}, KeyError, "counts"),
    "unknown gene column": (None, {"genes": "symbols"}, KeyError, "symbol"),
    "unknown column of symbols": (None, {"symbols": "no such"}, KeyError, "no such"),
    "modality of an AnnData": (None, {"modality": "rna"}, ValueError, "MuData only"),
    "no known gene": (rename_genes, {}, ValueError, "Ensembl"),
    "negative": (bad_value(-1), {}, ValueError, "found -1.0 in cell 'cell7', gene 'GENE4'"),
    "NaN": (bad_value(np.nan), {}, ValueError, "found nan in cell 'cell7', gene 'GENE4'"),
    "infinite": (bad_value(np.inf), {}, ValueError, "found inf in cell 'cell7', gene 'GENE4'"),
    "no matrix": (drop_matrix, {}, ValueError, "Expected a matrix in `X`"),
    "layer and tokens": (set_layer, {"layer": "counts", "tokens": "counts"}, ValueError, "without `layer`"),
    "genes and tokens": (set_layer, {"genes": "symbol", "tokens": "counts"}, ValueError, "without `genes`"),
    "tokens that are not there": (None, {"tokens": "X_binned"}, KeyError, "X_binned"),
    "unknown pooling": (None, {"pooling": "max"}, ValueError, "'cls', 'mean', 'weighted', found 'max'"),
    "pooling for parity only": (None, {"pooling": "mean_with_padding"}, ValueError, "'cls', 'mean', 'weighted'"),
    "no batch": (None, {"batch_size": 0}, ValueError, "`batch_size` to be at least 1, found 0"),
    "half a batch": (None, {"batch_size": 2.5}, TypeError, "`batch_size` to be a whole number"),
    "no length": (None, {"length": 0}, ValueError, "`length` to be at least 1"),
    "no room for a gene": (None, {"length": 1}, ValueError, "`length` to be at least 2"),
    "unknown precision": (None, {"precision": "fp8"}, ValueError, "`precision`"),
    "fp16 on a CPU": (None, {"precision": "fp16"}, ValueError, "needs a GPU"),
    "unknown attention": (None, {"attention": "fash"}, ValueError, "`attention`"),
    "negative seed": (None, {"rng": -1}, ValueError, "`rng` to be at least 0"),
    "a generator": (None, {"rng": "0"}, TypeError, "`rng` to be a whole number"),
    "unknown rule for duplicates": (None, {"duplicates": "last"}, ValueError, "'first'"),
    "no such folder": (None, {"model": "no/such/folder"}, (FileNotFoundError, OSError, ValueError), "folder|no/such"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_without_a_trace(adata, model, unchanged, name):
    change, options, error, message = REFUSALS[name]
    adata.obsm[KEY], adata.uns[KEY] = np.ones((12, 2)), {"kept": 1}
    if change is not None:
        change(adata)
    before = unchanged(adata)
    with sct.settings.override(offline=True), pytest.raises(error, match=message):
        sct.tl.embed(adata, **{"model": model, "show_progress": False} | options)
    assert unchanged(adata) == before


@pytest.mark.parametrize("lost", ["config.json", "vocab.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(adata, model, unchanged, tmp_path, lost):
    before = unchanged(adata)
    (model.save(tmp_path) / lost).unlink()
    with pytest.raises(FileNotFoundError, match="found "):
        sct.tl.embed(adata, tmp_path, show_progress=False)
    assert unchanged(adata) == before


def test_what_is_no_table_is_refused(model):
    with pytest.raises(TypeError, match="AnnData or a MuData, found ndarray"):
        sct.tl.embed(np.ones((2, 2)), model)


@pytest.mark.parametrize(("make_view", "copy"), [(False, True), (True, False), (True, True)])
def test_what_anndata_cannot_write_is_refused_before_the_work(adata, as_form, model, monkeypatch, make_view, copy):
    backed = as_form(adata, "backed")
    table = backed[:5] if make_view else backed
    monkeypatch.setattr(model, "embed_cells", lambda *_, **__: pytest.fail("computed something"))
    with pytest.raises(ValueError, match="to_memory"):
        sct.tl.embed(table, model, copy=copy, show_progress=False)
    assert KEY not in table.obsm


def test_the_cell_token_of_a_model_that_has_none_is_refused(adata, make_model):
    """The first token would be the first gene of the table, which says little of the cell."""
    model = make_model(cls=False)
    with pytest.raises(ValueError, match="'mean' or 'weighted' for a model without a cell token"):
        embed(adata, model)
    assert embed(adata, model, pooling="mean").shape == (12, 16)


def test_a_cell_without_tokens_at_all_is_zero(adata, make_model):
    X = adata.X.toarray()
    X[2] = 0
    adata.X = sp.csr_matrix(X)
    with pytest.warns(UserWarning, match="found 1 of 12 without any"):
        found = embed(adata, make_model(cls=False), pooling="mean")
    assert not found[2].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(found, 2, axis=0), axis=1), 1, atol=1e-6)


@pytest.fixture
def by_domain(make_model) -> CellModel:
    """A model with statistics for two batches that differ much."""
    model = make_model(config={"embedder": scgpt_embedder(norm="domain"), "domains": 2, "batch_names": ("a", "b")})
    with torch.no_grad():
        for number, domain in enumerate(model.embedder.norm.domains):
            domain.running_mean.fill_(2.0 * number)
    return model


def test_each_cell_is_normalised_with_its_own_batch(adata, by_domain):
    expected = embed(adata.copy(), by_domain, batch_key="batch", batch_size=1)
    np.testing.assert_allclose(embed(adata, by_domain, batch_key="batch", batch_size=7), expected, atol=1e-6)
    assert adata.uns[KEY]["params"]["batch_key"] == "batch"
    adata.obs["batch"] = adata.obs["batch"].map({"a": "b", "b": "a"})
    assert np.abs(embed(adata, by_domain, batch_key="batch") - expected).max(axis=1).min() > 1e-3


def test_batches_that_a_model_does_not_know_are_refused(adata, by_domain, model, unchanged):
    adata.obs["other"] = "c"
    before = unchanged(adata)
    with pytest.raises(ValueError, match="`batch_key`, the column of `obs` .*: a, b"):
        embed(adata, by_domain)
    with pytest.raises((ValueError, KeyError), match="c"):
        embed(adata, by_domain, batch_key="other")
    with pytest.raises(KeyError, match="batch"):
        embed(adata, by_domain, batch_key="batches")
    with pytest.raises(ValueError, match="no `batch_key` for a model that treats all batches alike"):
        embed(adata, model, batch_key="batch")
    assert unchanged(adata) == before


def test_labels_that_only_heads_read_are_not_needed(adata, make_model):
    model = make_model(config={"context": ContextConfig(batches=2)})
    assert np.isfinite(embed(adata, model)).all()


def test_values_in_the_wrong_unit_are_worth_a_warning(adata, make_model):
    model = make_model(values="log1p", bins=None, expects="log1p")
    with pytest.warns(UserWarning, match="counts"):
        embed(adata, model)


# Size -----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Only .* match one of:UserWarning", "ignore:Expected cells with known:UserWarning")
def test_memory_does_not_grow_with_the_table(vocabulary, make_model, tmp_path, monkeypatch):
    """A file of 19 MB more costs its embeddings and some names, not its matrix."""
    import tracemalloc

    monkeypatch.setattr(runner, "BLOCK_ROWS", 1000)
    model, peaks, sizes = make_model(), [], []
    genes = [*[f"GENE{i}" for i in range(30)], *[f"other{i}" for i in range(970)]]
    for rows in (1000, 3000, 15_000):
        X = sp.random(rows, 1000, 0.2, format="csr", dtype=np.float32, random_state=0)
        sizes.append(X.data.nbytes + X.indices.nbytes)
        path = tmp_path / f"{rows}.h5ad"
        ad.AnnData(X, var=pd.DataFrame(index=genes)).write_h5ad(path)
        del X
        adata = ad.read_h5ad(path, backed="r")
        tracemalloc.start()
        sct.tl.embed(adata, model, batch_size=256, length=8, show_progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        adata.file.close()
    assert sizes[2] - sizes[1] > 19e6
    assert peaks[2] - peaks[1] < 0.3 * (sizes[2] - sizes[1]), peaks


def test_cells_are_read_in_order_and_computed_by_length(adata, model):
    features = FeatureTable.from_var(adata.var, model.vocabulary)
    plan = runner.RowPlan(tokenizer=model.tokenizer, features=features, batch_size=5, seed=0, precision="fp32")
    rows = [rows for rows, _ in runner.computed_rows(model, RowSource(adata), plan, model.embed_cells)]
    assert [len(part) for part in rows] == [5, 5, 2]
    order = np.concatenate(rows)
    assert sorted(order) == list(range(12))
    lengths = model.tokenizer.lengths(RowSource(adata).take(np.arange(12)), plan.features)[order]
    assert (np.diff(lengths) <= 0).all()


@pytest.mark.parametrize("rng", [None, np.random.default_rng(3)])
def test_what_was_drawn_with_is_recorded(adata, model, rng):
    sct.tl.embed(adata, model, rng=rng, length=6, show_progress=False)
    used = int(adata.uns[KEY]["params"]["rng"])
    again = sct.tl.embed(adata, model, rng=used, length=6, show_progress=False, copy=True)
    np.testing.assert_array_equal(again.obsm[KEY], adata.obsm[KEY])
    other = sct.tl.embed(adata, model, rng=rng, length=6, show_progress=False, copy=True)
    assert int(other.uns[KEY]["params"]["rng"]) != used
