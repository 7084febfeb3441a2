"""Gene embeddings."""

from __future__ import annotations

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import scgpt_tools as sct
from mudatas import without_pulling
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.features import FeatureTable

KEY = "X_scGPT_genes"


def embed_genes(adata, model, **options) -> np.ndarray:
    assert sct.tl.embed_genes(adata, model, **options) is None
    return adata.varm[options.get("key_added", KEY)]


def by_hand(names, model) -> np.ndarray:
    """Row of the table after its layer norm; NaN for names that the vocabulary lacks."""
    genes, rows = model.embedder.genes, np.full((len(names), model.dim), np.nan, dtype=np.float32)
    for place, name in enumerate(names):
        if name in model.vocabulary:
            row = genes.table.weight[model.vocabulary[name]]
            rows[place] = F.layer_norm(row, (model.dim,), genes.norm.weight, genes.norm.bias).detach()
    return rows


def test_the_key_is_that_of_the_family(adata, make_model):
    sct.tl.embed_genes(adata, make_model(config={"family": "toy"}))
    assert list(adata.varm) == ["X_toy_genes"]


def test_vectors_are_those_that_enter_the_transformer(adata, model):
    torch.nn.init.normal_(model.embedder.genes.norm.weight)
    found = embed_genes(adata, model)
    assert found.dtype == np.float32
    assert found.shape == (30, 16)
    np.testing.assert_allclose(found, by_hand(adata.var_names, model), atol=1e-6)
    assert np.isnan(found).all(axis=1).sum() == 10


def test_only_the_documented_keys_are_written(adata, model, unchanged):
    before = unchanged(adata)
    embed_genes(adata, model, key_added="genes")
    assert adata.uns["genes"]["model"] == {"name": "tiny", "checksum": model.checksum}
    assert adata.uns["genes"]["genes"]["n_matched"] == 20
    assert list(adata.varm) == list(adata.uns) == ["genes"]
    del adata.varm["genes"], adata.uns["genes"]
    assert unchanged(adata) == before


def test_copy(adata, model, unchanged):
    before = unchanged(adata)
    copied = sct.tl.embed_genes(adata, model, copy=True)
    assert unchanged(adata) == before
    np.testing.assert_array_equal(copied.varm[KEY], embed_genes(adata, model))


def test_columns_of_the_same_gene_have_the_same_vector(adata, model, gene_names):
    adata.var["name"] = ["GENE1" if name == "GENE3" else name for name in gene_names]
    found = embed_genes(adata, model, genes="name")
    np.testing.assert_array_equal(found[3], found[1])
    with pytest.warns(UserWarning, match="or the first, is read: GENE1 from column 1"):
        first = embed_genes(adata, model, genes="name", duplicates="first")
    assert np.isnan(first[3]).all()


def test_names_are_matched_as_for_cells(adata, model, gene_names):
    expected = embed_genes(adata.copy(), model)
    np.testing.assert_array_equal(embed_genes(adata, model, genes="symbol", ignore_case=True), expected)
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    np.testing.assert_array_equal(
        embed_genes(adata, model, symbols=dict(zip(adata.var_names, gene_names, strict=True))), expected
    )


def test_cells_are_not_read(adata, model):
    expected = embed_genes(adata.copy(), model)
    empty = ad.AnnData(var=adata.var)
    np.testing.assert_array_equal(embed_genes(empty, model), expected)


def test_every_form_of_table(twin, adata, model):
    expected = embed_genes(adata, model)
    if twin.is_view:
        with pytest.warns(ad.ImplicitModificationWarning):
            found = embed_genes(twin, model)
    else:
        found = embed_genes(twin, model)
    np.testing.assert_array_equal(found, expected)


def test_one_modality_of_many(adata, model):
    expected = embed_genes(adata.copy(), model)
    protein = ad.AnnData(np.ones((12, 1), dtype=np.float32), obs=adata.obs[[]], var=pd.DataFrame(index=["CD3"]))
    with without_pulling():
        mdata = md.MuData({"rna": adata, "protein": protein})
    sct.tl.embed_genes(mdata, model, modality="rna")
    np.testing.assert_array_equal(mdata["rna"].varm[KEY], expected)
    assert KEY not in mdata["protein"].varm


def test_a_folder_is_a_model(adata, model, tmp_path):
    expected = embed_genes(adata.copy(), model)
    np.testing.assert_array_equal(embed_genes(adata, model.save(tmp_path)), expected)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_result_survives_a_file(adata, model, tmp_path, suffix):
    embed_genes(adata, model)
    path = tmp_path / f"cells.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    again = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(again.varm[KEY], adata.varm[KEY])
    assert again.uns[KEY]["model"] == adata.uns[KEY]["model"]


def test_the_model_is_left_as_it_was(adata, model):
    model.train()
    before = model.checksum
    embed_genes(adata, model)
    assert model.training
    assert model.checksum == before
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"genes": "symbols"}, KeyError, "symbol"),
        ({"modality": "rna"}, ValueError, "MuData only"),
        ({"duplicates": "last"}, ValueError, "'first'"),
        ({"model": "no/such/folder"}, (FileNotFoundError, OSError, ValueError), "no/such"),
    ],
)
def test_refused_without_a_trace(adata, model, unchanged, options, error, message):
    before = unchanged(adata)
    with sct.settings.override(offline=True), pytest.raises(error, match=message):
        sct.tl.embed_genes(adata, **{"model": model} | options)
    assert unchanged(adata) == before


def test_no_known_gene_is_refused(adata, model, unchanged):
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    before = unchanged(adata)
    with pytest.raises(ValueError, match="Ensembl"):
        sct.tl.embed_genes(adata, model)
    assert unchanged(adata) == before


@pytest.mark.parametrize(("make_view", "copy"), [(False, True), (True, False)])
def test_what_anndata_cannot_write_is_refused(adata, as_form, model, make_view, copy):
    backed = as_form(adata, "backed")
    table = backed[:5] if make_view else backed
    with pytest.raises(ValueError, match="to_memory"):
        sct.tl.embed_genes(table, model, copy=copy)
    assert KEY not in table.varm


def test_each_stream_of_a_model_with_texts(adata, model):
    texts = {gene: np.arange(4.0) + place for place, gene in enumerate(adata.var_names[:6])}
    with_texts = sct.models.to_scgenept(model, "scgenept_go_c", texts)
    for stream in ("genes", "go"):
        sct.tl.embed_genes(adata, with_texts, stream=stream)
        assert adata.varm[f"X_scGenePT_{stream}"].shape == (adata.n_vars, model.dim)
    assert not np.allclose(adata.varm["X_scGenePT_go"], adata.varm["X_scGenePT_genes"], equal_nan=True)
    with pytest.raises(ValueError, match="Found no embedding of genes of this model: 'text'"):
        sct.tl.embed_genes(adata, with_texts, stream="text")


CONTEXTUAL = "X_scGPT_genes_contextual"


def tokens_by_hand(adata, model) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the tokens of each gene over the cells one by one, and how many there were."""
    sums, counts = np.zeros((adata.n_vars, model.dim)), np.zeros(adata.n_vars)
    source = RowSource(adata)
    features = FeatureTable.from_var(adata.var, model.vocabulary)
    for row in range(adata.n_obs):
        batch = model.tokenizer(source.take([row]), features, source.keys[[row]])
        with torch.no_grad():
            tokens = model(batch, (), attention="eager").tokens[0]
        for token, name in zip(tokens, batch.genes[0].tolist(), strict=True):
            gene = model.vocabulary.tokens[name]
            if gene in adata.var_names:
                place = adata.var_names.get_loc(gene)
                sums[place] += token.numpy()
                counts[place] += 1
    return sums, counts


def test_contextual_vectors_are_means_of_tokens(adata, model):
    sums, counts = tokens_by_hand(adata, model)
    sct.tl.embed_genes(adata, model, contextual=True, min_cells=1, show_progress=False)
    seen = counts > 0
    np.testing.assert_allclose(adata.varm[CONTEXTUAL][seen], sums[seen] / counts[seen, None], atol=1e-5)
    assert np.isnan(adata.varm[CONTEXTUAL][~seen]).all()
    assert list(adata.varm[f"{CONTEXTUAL}_n_cells"]["all cells"]) == list(counts)
    assert adata.uns[CONTEXTUAL]["params"]["contextual"] is True


def test_groups_have_contextual_vectors_of_their_own_in_any_batch_size(adata, model):
    sct.tl.embed_genes(
        adata, model, contextual=True, groupby="cell_type", min_cells=2, batch_size=5, show_progress=False
    )
    assert set(adata.varm) == {f"{CONTEXTUAL}_{end}" for end in ("B", "T", "NK", "n_cells")}
    for group in ("B", "T", "NK"):
        own = adata[adata.obs["cell_type"] == group].copy()
        sums, counts = tokens_by_hand(own, model)
        found = adata.varm[f"{CONTEXTUAL}_{group}"]
        enough = counts >= 2
        assert 5 < enough.sum() < 20
        np.testing.assert_allclose(found[enough], sums[enough] / counts[enough, None], atol=1e-5)
        assert np.isnan(found[~enough]).all()
    sct.tl.gene_network(adata, use_rep=f"{CONTEXTUAL}_B", threshold=0.0, show_progress=False)
    assert adata.varp["gene_network"].nnz > 0


def test_a_slash_in_the_name_of_a_group_is_a_dash_in_its_key(adata, model):
    adata.obs["kind"] = np.where(adata.obs["cell_type"] == "B", "B/plasma", "other")
    with pytest.warns(UserWarning, match="writing 'B/plasma' as 'B-plasma'"):
        sct.tl.embed_genes(adata, model, contextual=True, groupby="kind", min_cells=1, show_progress=False)
    assert f"{CONTEXTUAL}_B-plasma" in adata.varm
    adata.obs.loc["cell1", "kind"] = "B-plasma"
    with pytest.raises(ValueError, match="'B-plasma' twice"):
        sct.tl.embed_genes(adata, model, contextual=True, groupby="kind", show_progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"contextual": False, "groupby": "cell_type"}, ValueError, "`groupby` with contextual=True only"),
        ({"groupby": "type"}, KeyError, "Did you mean 'cell_type'"),
        ({"min_cells": 13}, ValueError, r"at least min_cells=13 cells .* the most frequent has"),
        ({"min_cells": 0}, ValueError, "`min_cells` to be at least 1"),
        ({"layer": "raw"}, KeyError, "'raw'"),
    ],
)
def test_contextual_vectors_that_cannot_be_are_refused(adata, model, unchanged, options, error, message):
    before = unchanged(adata)
    with pytest.raises(error, match=message):
        sct.tl.embed_genes(adata, model, **{"contextual": True, "show_progress": False} | options)
    assert unchanged(adata) == before
