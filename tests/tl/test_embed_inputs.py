"""Cell embeddings: names of genes, modalities, kept bins, and the model that embeds."""

from __future__ import annotations

import random

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from mudatas import without_pulling
from scgpt_tools import testing

KEY = "X_scGPT"


def embed(adata, model, **options) -> np.ndarray:
    """Embed and return the result; the input is a table whose own keys nobody compares."""
    sct.tl.embed(adata, model, show_progress=False, **options)
    return adata.obsm[options.get("key_added", KEY)]


# Names of genes -------------------------------------------------------------------------------------------------------


def test_a_column_of_names(adata, model):
    expected = embed(adata.copy(), model)
    adata.var["feature_name"] = adata.var_names.to_numpy()
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    np.testing.assert_array_equal(embed(adata, model, genes="feature_name"), expected)
    assert adata.uns[KEY]["params"]["genes"] == "feature_name"


def test_ensembl_ids_aliases_and_case(adata, model, gene_names):
    expected = embed(adata.copy(), model)
    ids = adata.copy()
    ids.var_names = [f"ENSG{i:011d}.{i}" for i in range(30)]
    symbols = {f"ENSG{i:011d}": name for i, name in enumerate(gene_names)}
    np.testing.assert_array_equal(embed(ids, model, symbols=symbols), expected)
    outdated = adata.copy()
    outdated.var_names = [f"OLD{i}" for i in range(30)]
    aliases = {f"OLD{i}": name for i, name in enumerate(gene_names)}
    np.testing.assert_array_equal(embed(outdated, model, aliases=aliases), expected)
    np.testing.assert_array_equal(embed(adata, model, genes="symbol", ignore_case=True), expected)


def test_columns_of_the_same_gene(adata, model):
    expected = embed(adata.copy(), model)
    again = adata[:, ["GENE1"]].copy()
    again.var_names = ["GENE1 again"]
    twice = ad.concat([adata, again], axis="var", merge="first")
    twice.var["name"] = [name.split()[0] for name in twice.var_names]
    with pytest.warns(UserWarning, match="1 column matches a gene that another column has"):
        np.testing.assert_allclose(embed(twice, model, genes="name"), expected, atol=1e-6)
    assert np.abs(embed(twice, model, genes="name", duplicates="all") - expected).max() > 1e-4
    with pytest.raises(ValueError, match="Expected one column per gene"):
        embed(twice, model, genes="name", duplicates="error")


def test_one_modality_of_many(adata, model):
    expected = embed(adata.copy(), model)
    protein = ad.AnnData(np.ones((12, 2), dtype=np.float32), obs=adata.obs, var=pd.DataFrame(index=["CD3", "CD19"]))
    with without_pulling():
        mdata = md.MuData({"rna": adata.copy(), "protein": protein})
    assert sct.tl.embed(mdata, model, modality="rna", show_progress=False) is None
    np.testing.assert_array_equal(mdata["rna"].obsm[KEY], expected)
    assert KEY in mdata["rna"].uns
    assert not mdata.obsm.keys() & {KEY}
    assert not mdata["protein"].obsm
    with without_pulling():
        copied = sct.tl.embed(mdata, model, modality="rna", key_added="again", copy=True, show_progress=False)
    assert "again" in copied["rna"].obsm
    assert "again" not in mdata["rna"].obsm
    for modality in (None, "atac"):
        with pytest.raises((ValueError, KeyError), match="rna"):
            sct.tl.embed(mdata, model, modality=modality, show_progress=False)


# Bins that were kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", ["left", "random"])
@pytest.mark.parametrize("length", [None, 6])
def test_kept_bins_are_the_bins(adata, make_model, ties, length):
    model = make_model(ties=ties).eval()
    expected = embed(adata.copy(), model, rng=3, length=length)
    sct.pp.tokenize(adata, model, rng=3, show_progress=False)
    adata.X = None
    np.testing.assert_allclose(embed(adata, model, tokens="X_binned", rng=3, length=length), expected, atol=1e-6)
    assert adata.uns[KEY]["params"]["tokens"] == "X_binned"


def test_kept_bins_survive_a_file(adata, model, tmp_path):
    expected = embed(adata.copy(), model)
    sct.pp.tokenize(adata, model, show_progress=False)
    adata.write_h5ad(tmp_path / "binned.h5ad")
    np.testing.assert_allclose(
        embed(ad.read_h5ad(tmp_path / "binned.h5ad"), model, tokens="X_binned"), expected, atol=1e-6
    )


def test_kept_bins_keep_their_matching_of_genes(adata, model):
    """Names that change later, or were matched by a table, do not matter any more."""
    expected = embed(adata.copy(), model)
    sct.pp.tokenize(adata, model, show_progress=False)
    adata.var_names = [f"ENSG{i:011d}" for i in range(30)]
    np.testing.assert_allclose(embed(adata, model, tokens="X_binned"), expected, atol=1e-6)


@pytest.mark.parametrize("change", [{"bins": 11}, {"ties": "random"}])
def test_bins_made_for_another_tokenizer_are_refused(adata, model, make_model, change):
    sct.pp.tokenize(adata, make_model(**change), show_progress=False)
    with pytest.raises(ValueError, match=next(iter(change))):
        embed(adata, model, tokens="X_binned")


def test_bins_made_for_another_vocabulary_are_refused(adata, model):
    sct.pp.tokenize(adata, model.vocabulary.extended(["MORE"]), show_progress=False)
    with pytest.raises(ValueError, match="vocabulary"):
        embed(adata, model, tokens="X_binned")


def test_a_layer_that_holds_no_bins_is_refused(adata, model):
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(KeyError, match=r"pp\.tokenize"):
        embed(adata, model, tokens="counts")


# The model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "varlen", "eager"])
def test_attention(adata, model, attention):
    np.testing.assert_allclose(embed(adata, model, attention=attention), embed(adata.copy(), model), atol=1e-6)


def test_bf16(adata, model):
    full, half = embed(adata.copy(), model), embed(adata, model, precision="bf16")
    assert half.dtype == np.float32
    assert (full * half).sum(axis=1).min() > 0.999
    assert np.abs(full - half).max() > 1e-6
    assert adata.uns[KEY]["params"]["precision"] == "bf16"
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)


def test_a_folder_is_a_model(adata, model, tmp_path):
    expected = embed(adata.copy(), model)
    np.testing.assert_array_equal(embed(adata, model.save(tmp_path / "ours"), device="cpu"), expected)
    assert adata.uns[KEY]["model"]["name"] == "ours"
    assert adata.uns[KEY]["model"]["checksum"] == model.checksum
    np.testing.assert_array_equal(embed(adata, str(model.export(tmp_path / "theirs")), device="cpu"), expected)


def test_dropout_is_off_whatever_the_mode(adata, model):
    expected = embed(adata.copy(), model)
    np.testing.assert_array_equal(embed(adata, model.train()), expected)


def test_the_model_is_left_as_it_was(adata, model):
    model.train()
    model.encoder.eval().requires_grad_(False)
    before = model.checksum, [p.requires_grad for p in model.parameters()], [part.training for part in model.modules()]
    embed(adata, model)
    adata.X.data[50] = np.nan
    with pytest.raises(ValueError, match="finite"):
        embed(adata, model)
    after = model.checksum, [p.requires_grad for p in model.parameters()], [part.training for part in model.modules()]
    assert after == before


def test_the_model_can_be_trained_afterwards(adata, model):
    """No tensor of it has become one of inference mode, and no mode is left on, not even after an error."""
    embed(adata, model, precision="bf16")
    adata.X.data[-1] = np.inf
    with pytest.raises(ValueError, match="finite") as caught:
        embed(adata, model, batch_size=1)
    assert caught.tb is not None
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    batch = testing.tiny_batch(model)
    model.train()(batch)["expression"].sum().backward()
    assert model.embedder.genes.table.weight.grad.any()


def test_an_interruption_leaves_no_mode_on(adata, model, monkeypatch):
    """The loop is left in its middle while the traceback is alive, as in a notebook."""
    bar = sct.settings.progress((), show=False)
    monkeypatch.setattr(type(bar), "update", lambda self, n: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        embed(adata, model, precision="bf16", batch_size=2)
    assert caught.tb is not None
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_no_global_state_is_touched(adata, make_model):
    model = make_model(ties="random")
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    threads = torch.get_num_threads()
    embed(adata, model, length=6, rng=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == threads


def test_progress_counts_cells(adata, model, capsys):
    sct.tl.embed(adata, model, batch_size=5, show_progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "cell" in shown
    with sct.settings.override(show_progress=False):
        sct.tl.embed(adata, model)
    assert capsys.readouterr().err == ""
