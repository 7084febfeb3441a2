"""Cell embeddings: what is written, that only the cell counts, and what is refused."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools.inference import runner
from scgpt_tools.models import CellModel
from scgpt_tools.tokens.batch import TokenBatch

KEY = "X_scGPT"


def embed(adata, model, **options) -> np.ndarray:
    """Embed and return the result; the input is a table whose own keys nobody compares."""
    sct.tl.embed(adata, model, show_progress=False, **options)
    return adata.obsm[options.get("key_added", KEY)]


def by_hand(adata: ad.AnnData, model: CellModel, pooling: str = "cls") -> np.ndarray:
    """The same embedding, one cell at a time, with NumPy's own quantiles and the whole network."""
    ids, cells = model.vocabulary.ids(adata.var_names), []
    for row in sp.csr_matrix(adata.X).toarray():
        columns = np.flatnonzero((ids >= 0) & (row > 0))
        bins = np.zeros(0)
        if columns.size:
            edges = np.quantile(row[columns], np.linspace(0, 1, 50))
            bins = np.digitize(row[columns], edges)
        genes = torch.tensor([[model.vocabulary.cls_id, *ids[columns]]])
        values = torch.tensor([[-2.0, *bins]])
        with torch.no_grad():
            batch = TokenBatch(genes=genes, values=values, mask=torch.ones_like(genes, dtype=torch.bool))
            tokens = model(batch, ()).tokens[0]
        weighted = (tokens * values[0][:, None]).sum(0)
        cells.append({"cls": tokens[0], "mean": tokens.mean(0), "weighted": weighted}[pooling])
    return torch.nn.functional.normalize(torch.stack(cells), dim=1).numpy()


# What is written ------------------------------------------------------------------------------------------------------


def test_the_key_is_that_of_the_family(adata, make_model):
    sct.tl.embed(adata, make_model(config={"family": "toy"}), show_progress=False)
    assert list(adata.obsm) == ["X_toy"]
    assert adata.uns["X_toy"]["model"]["family"] == "toy"


def test_embedding_is_that_of_each_cell_by_itself(adata, model):
    found = embed(adata, model)
    assert found.dtype == np.float32
    assert found.shape == (12, 16)
    np.testing.assert_allclose(found, by_hand(adata, model), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted"])
def test_pooling(adata, model, pooling):
    np.testing.assert_allclose(embed(adata, model, pooling=pooling), by_hand(adata, model, pooling), atol=1e-6)


def test_without_unit_length(adata, model):
    raw = embed(adata, model, normalize=False)
    assert np.linalg.norm(raw, axis=1).min() > 2
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), embed(adata, model), atol=1e-6)


def test_only_the_documented_keys_are_written(adata, model, unchanged):
    before = unchanged(adata)
    assert sct.tl.embed(adata, model, key_added="cells", show_progress=False) is None
    assert list(adata.obsm) == list(adata.uns) == ["cells"]
    del adata.obsm["cells"], adata.uns["cells"]
    assert unchanged(adata) == before


def test_provenance(adata, model):
    embed(adata, model, rng=7, pooling="mean", length=9)
    told = adata.uns[KEY]
    assert told["params"] == {
        "layer": "X", "tokens": "", "genes": "var_names", "batch_key": "", "pooling": "mean", "normalize": True, "rng": 7,
        "precision": "fp32", "attention": "auto",
    }  # fmt: skip
    assert told["model"] == {"name": "tiny", "checksum": model.checksum, "family": "scgpt", "dim": 16} | {
        "architecture": told["model"]["architecture"]
    }
    assert told["tokenizer"]["length"] == 9
    assert told["tokenizer"]["bins"] == 51
    assert told["genes"]["n_matched"] == 20


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("rng", [0, 2**80])
def test_the_result_survives_a_file(adata, make_model, tmp_path, suffix, rng):
    model = make_model(length=None)
    embed(adata, model, rng=rng)
    path = tmp_path / f"cells.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    again = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(again.obsm[KEY], adata.obsm[KEY])
    assert json.dumps(again.uns[KEY], sort_keys=True, default=_plain) == json.dumps(
        adata.uns[KEY], sort_keys=True, default=_plain
    )


def _plain(value):
    return value.item() if isinstance(value, np.generic) else list(value)


def test_copy(adata, model, unchanged):
    before = unchanged(adata)
    copied = sct.tl.embed(adata, model, copy=True, show_progress=False)
    assert unchanged(adata) == before
    np.testing.assert_array_equal(copied.obsm[KEY], embed(adata, model))


def test_an_earlier_result_is_replaced(adata, model):
    first = embed(adata, model).copy()
    adata.obsm[KEY] = np.zeros((12, 3))
    np.testing.assert_array_equal(embed(adata, model), first)


# Only the cell counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"length": 6}, {"pooling": "mean"}], ids=str)
def test_any_batch_and_block_size(adata, make_model, monkeypatch, options):
    model = make_model(ties="random").eval()
    expected = embed(adata, model, **options).copy()
    for batch_size, block in ((1, 4096), (5, 4096), (100, 4096), (3, 4), (64, 1)):
        monkeypatch.setattr(runner, "BLOCK_ROWS", block)
        found = embed(adata, model, batch_size=batch_size, **options)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=f"{batch_size}, {block}")


def test_order_of_cells_and_genes(adata, make_model):
    model = make_model(ties="random").eval()
    expected = pd.DataFrame(embed(adata.copy(), model, length=6), index=adata.obs_names)
    rng = np.random.default_rng(0)
    moved = adata[rng.permutation(12), rng.permutation(30)].copy()
    found = pd.DataFrame(embed(moved, model, length=6), index=moved.obs_names)
    np.testing.assert_allclose(found.loc[adata.obs_names], expected, atol=1e-6)


def test_every_form_of_table(twin, adata, model, recwarn):
    expected = embed(adata, model, length=6)
    is_view = twin.is_view
    recwarn.clear()
    if is_view:
        with pytest.warns(ad.ImplicitModificationWarning):
            found = embed(twin, model, length=6)
    else:
        found = embed(twin, model, length=6)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_view_gets_the_result_and_its_parent_does_not(adata, model, unchanged):
    before = unchanged(adata)
    view = adata[::2]
    with pytest.warns(ad.ImplicitModificationWarning):
        found = embed(view, model)
    np.testing.assert_allclose(found, by_hand(adata, model)[::2], atol=1e-6)
    assert unchanged(adata) == before


def test_a_layer_in_place_of_x(adata, model):
    expected = embed(adata.copy(), model)
    other = adata.copy()
    other.layers["counts"] = adata.X.copy()
    other.X = sp.csr_matrix(np.ones(adata.shape, dtype=np.float32))
    np.testing.assert_array_equal(embed(other, model, layer="counts"), expected)
    assert other.uns[KEY]["params"]["layer"] == "counts"


def test_bins_do_not_depend_on_the_unit(adata, model):
    """Normalising and taking logarithms keep the ranks within a cell."""
    logged = adata.copy()
    logged.X = sp.csr_matrix(np.log1p(adata.X.toarray() / adata.X.sum(axis=1) * 1e4))
    np.testing.assert_allclose(embed(logged, model), embed(adata, model), atol=1e-6)


def test_a_cell_without_known_genes_is_its_cell_token(adata, model):
    X = adata.X.toarray()
    X[2] = 0
    X[4, 1::3] = X[4, 2::3] = 0  # the vocabulary lacks every third gene
    adata.X = sp.csr_matrix(X)
    with pytest.warns(UserWarning, match=r"found 2 of 12 without any \(first: 'cell2'\)"):
        found = embed(adata, model)
    assert np.isfinite(found).all()
    assert adata.uns[KEY]["empty"].tolist() == ["cell2", "cell4"]
    np.testing.assert_allclose(found[2], found[4], atol=1e-6)
    np.testing.assert_allclose(found, by_hand(adata, model), atol=1e-6)


def test_no_cells(adata, model):
    found = embed(adata[:0].copy(), model)
    assert found.shape == (0, 16)
    assert found.dtype == np.float32


def test_one_cell(adata, model):
    np.testing.assert_allclose(embed(adata[3:4].copy(), model), by_hand(adata, model)[3:4], atol=1e-6)


# Long cells -----------------------------------------------------------------------------------------------------------


def test_long_cells_are_drawn_by_seed(adata, model):
    first, again, other = (embed(adata.copy(), model, length=6, rng=rng) for rng in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    long = np.asarray((adata[:, model.vocabulary.ids(adata.var_names) >= 0].X > 0).sum(axis=1)).ravel() > 5
    assert 0 < long.sum() < 12
    differs = np.abs(first - other).max(axis=1) > 1e-4
    np.testing.assert_array_equal(differs, long)


def test_a_length_that_keeps_all_is_no_draw(adata, model):
    np.testing.assert_allclose(embed(adata.copy(), model, length=21, rng=5), embed(adata, model), atol=1e-6)


@pytest.mark.parametrize("form", ["column", "array", "list"])
def test_a_mask_of_genes_stands_for_a_subset(adata, model, form):
    mask = np.arange(adata.n_vars) % 2 == 0
    expected = sct.tl.embed(adata[:, mask].copy(), model, show_progress=False, copy=True)
    adata.var["mask"] = pd.array(mask, dtype="boolean")
    given = {"column": "mask", "array": mask, "list": mask.tolist()}[form]
    sct.tl.embed(adata, model, mask_var=given, show_progress=False)
    np.testing.assert_array_equal(adata.obsm["X_scGPT"], expected.obsm["X_scGPT"])
    record = adata.uns["X_scGPT"]
    assert record["params"]["mask_var"] == ("mask" if form == "column" else f"{mask.sum()} genes of an array")
    assert record["genes"]["n_features"] == mask.sum()


@pytest.mark.parametrize(
    ("mask_var", "error", "message"),
    [
        ("absent", KeyError, "column of `var` named 'absent'"),
        ("numbers", ValueError, "such a column of `var`, found int64"),
        ([True], ValueError, "of shape \\(1,\\)"),
        ("nothing", ValueError, "choose some genes"),
    ],
)
def test_masks_that_choose_no_genes_are_refused(adata, model, mask_var, error, message, unchanged):
    adata.var["numbers"], adata.var["nothing"] = 1, False
    before = unchanged(adata)
    for call in (sct.tl.embed, sct.pp.tokenize):
        with pytest.raises(error, match=message):
            call(adata, model, mask_var=mask_var, show_progress=False)
    assert unchanged(adata) == before


def test_pooling_is_the_models_own_unless_another_is_asked_for(adata, make_model):
    for own, pooling in {"cls": "cls", "weighted": "weighted", "mean_with_padding": "mean"}.items():
        model = make_model(config={"pooling": own}).eval()
        np.testing.assert_array_equal(embed(adata, model), embed(adata, model, pooling=pooling))
