from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from mudatas import without_pulling


def test_the_report_is_what_the_tasks_would_see(adata, vocabulary):
    report = sct.pp.match_genes(adata, vocabulary)
    expected = sct.tokens.FeatureTable.from_var(adata.var, vocabulary).coverage
    pd.testing.assert_frame_equal(report.to_frame(), expected.to_frame())
    assert report.n_matched == 20


def test_options_reach_the_matching(adata, vocabulary):
    options = {"genes": "symbol", "ignore_case": True}
    assert sct.pp.match_genes(adata, vocabulary, **options).counts["case"] == 20
    with pytest.warns(UserWarning, match="at least 90 %"):
        sct.pp.match_genes(adata, vocabulary, min_coverage=0.9)
    assert sct.pp.match_genes(adata, vocabulary, aliases={"GENE0": "OTHER1"}).counts["alias"] == 1
    table = pd.Series({"GENE0": "OTHER2"})
    assert sct.pp.match_genes(adata, vocabulary, symbols=table).counts["ensembl"] == 1
    twice = adata[:, ["GENE1", "GENE1"]]
    with pytest.raises(ValueError, match="one column per gene"):
        sct.pp.match_genes(twice, vocabulary, duplicates="error")


def test_every_form_of_a_table_gives_the_same_report(twin, vocabulary):
    assert sct.pp.match_genes(twin, vocabulary).counts["exact"] == 20


def test_a_vocabulary_may_be_a_file_or_belong_to_a_model(adata, vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocab.json")

    class Model:
        def __init__(self) -> None:
            self.vocabulary = vocabulary

    for source in (tmp_path / "vocab.json", str(tmp_path), Model()):
        assert sct.pp.match_genes(adata, source).n_matched == 20


def test_cells_are_left_alone(adata, vocabulary):
    before = adata.copy()
    sct.pp.match_genes(adata, vocabulary, genes="symbol", ignore_case=True)
    with pytest.raises(ValueError, match="found none"):
        sct.pp.match_genes(adata, sct.Vocabulary(["nothing"]))
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert adata.uns == before.uns == {}
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


def test_one_modality_is_looked_at(adata, vocabulary):
    proteins = ad.AnnData(np.ones((adata.n_obs, 1)), obs=adata.obs[[]], var=pd.DataFrame(index=["CD3"]))
    with without_pulling():
        cells = mudata.MuData({"rna": adata, "prot": proteins})
    assert sct.pp.match_genes(cells, vocabulary, modality="rna").n_matched == 20
    with pytest.raises(ValueError, match=r"one of \['rna', 'prot'\]"):
        sct.pp.match_genes(cells, vocabulary)
