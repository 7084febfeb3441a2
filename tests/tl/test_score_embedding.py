from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scgpt_tools as sct
from scgpt_tools.metrics.integration import GROUPS
from scgpt_tools.tl._scib import quiet

N = 150


def test_messages_look_as_before_after_scores(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with quiet():
        logging.info("as scib-metrics does")
    assert root.handlers == []


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Three types in two batches; one embedding without batches, one of batches only."""
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(0, 3, N), rng.integers(0, 2, N)
    rates = 1 + 6 * (np.arange(60) % 3 == kind[:, None]) + 6 * (np.arange(60) // 30 == batch[:, None])
    obs = pd.DataFrame({"kind": pd.Categorical(kind.astype(str)), "batch": pd.Categorical(batch.astype(str))})
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs.set_index(obs.index.astype(str)))
    adata.obsm["X_good"] = (9 * np.eye(3)[kind] + rng.normal(size=(N, 3))).astype(np.float32)
    adata.obsm["X_bad"] = (9 * np.eye(3)[batch] + rng.normal(size=(N, 3))).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def table(cells) -> pd.DataFrame:
    return sct.tl.score_embedding(
        cells, label_key="kind", batch_key="batch", embeddings=["X_good", "X_bad"], show_progress=False
    )


@pytest.mark.slow
def test_baselines_stand_beside_the_embeddings(table):
    assert list(table.index) == ["X_good", "X_bad", "X_pca", "hvg"]
    assert table.index.name == "embedding"


@pytest.mark.slow
def test_what_keeps_types_and_mixes_batches_is_best(table):
    assert table["Total"].idxmax() == "X_good"
    assert table["Total"].idxmin() == "X_bad"
    assert table.loc["X_good", "KMeans ARI"] == pytest.approx(1)
    assert table.loc["X_good", "Bio conservation"] > 0.9
    assert table.loc["X_bad", "iLISI"] < 0.1 < table.loc["X_good", "iLISI"]


@pytest.mark.slow
def test_columns_are_grouped_and_what_was_left_out_is_seen(table):
    assert list(table.columns[-3:]) == ["Bio conservation", "Batch correction", "Total"]
    assert [name for name in table if name not in GROUPS] == []
    assert table["KBET"].isna().all()
    assert table.drop(columns="KBET").notna().all(axis=None)


@pytest.mark.slow
def test_means_are_means_of_what_was_computed(table):
    for group in ("Bio conservation", "Batch correction"):
        members = [name for name in table if GROUPS[name] == group]
        np.testing.assert_allclose(table[members].mean(axis=1), table[group], rtol=1e-6)
    np.testing.assert_allclose(0.6 * table["Bio conservation"] + 0.4 * table["Batch correction"], table["Total"])


@pytest.mark.slow
def test_without_batches_only_types_are_scored(cells, table):
    scores = sct.tl.score_embedding(
        cells, label_key="kind", embeddings=["X_good"], baselines=["X_pca"], show_progress=False
    )
    assert list(scores.index) == ["X_good", "X_pca"]
    assert list(scores.columns[-1:]) == ["Bio conservation"]
    assert not {"Batch correction", "Total", "KBET", "iLISI", "Isolated labels"} & set(scores)
    assert scores.loc["X_good", "cLISI"] == pytest.approx(table.loc["X_good", "cLISI"])


@pytest.mark.slow
def test_counts_are_normalised_and_the_table_is_left_alone(cells, table):
    """Baselines of counts are those of their log-normalised values, computed on a copy."""
    assert set(cells.obsm) == {"X_good", "X_bad"}
    assert not set(cells.uns)
    assert cells.X.max() == np.rint(cells.X.max())
    logged = cells.copy()
    totals = np.asarray(logged.X.sum(axis=1))
    logged.X = sp.csr_matrix(np.log1p(logged.X.toarray() / totals * 1e4))
    again = sct.tl.score_embedding(
        logged, label_key="kind", batch_key="batch", embeddings=[], baselines=["hvg"], show_progress=False
    )
    np.testing.assert_allclose(again.loc["hvg", "Silhouette label"], table.loc["hvg", "Silhouette label"], atol=1e-4)


def test_what_cannot_be_scored_is_refused(cells):
    with pytest.raises(KeyError, match="'X_scGPT'"):
        sct.tl.score_embedding(cells, label_key="kind")
    with pytest.raises(KeyError, match="Did you mean 'kind'"):
        sct.tl.score_embedding(cells, label_key="kinds", embeddings=["X_good"])
    with pytest.raises(ValueError, match="more than 90 cells to score neighbourhoods of, found 50"):
        sct.tl.score_embedding(cells[:50], label_key="kind", embeddings=["X_good"])
    with pytest.raises(ValueError, match="`baselines` to be one of"):
        sct.tl.score_embedding(cells, label_key="kind", embeddings=["X_good"], baselines=["harmony"])
    one = cells.copy()
    one.obs["batch"] = "a"
    with pytest.raises(ValueError, match=r"two classes in obs\['batch'\]"):
        sct.tl.score_embedding(one, label_key="kind", batch_key="batch", embeddings=["X_good"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embeddings": "X_good"}, TypeError, "`embeddings` to be a list"),
        ({"embeddings": [], "baselines": []}, ValueError, "`embeddings` or `baselines` to score"),
        ({"baselines": "hvg"}, TypeError, "`baselines` to be a list"),
        ({"n_top_genes": 0}, ValueError, "`n_top_genes`"),
        ({"kbet": "yes"}, TypeError, "`kbet`"),
        ({"batch_key": "sorted"}, ValueError, r"in one of obs\['sorted'\] only"),
        ({"embeddings": ["X_lost"]}, ValueError, r"obsm\['X_lost'\] to be finite"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_our_words(cells, options, error, message):
    cells = cells.copy()
    cells.obs["sorted"] = "sort of " + cells.obs["kind"].astype(str)
    cells.obsm["X_lost"] = np.where(np.arange(N)[:, None] == 7, np.nan, cells.obsm["X_good"])
    with pytest.raises(error, match=message):
        sct.tl.score_embedding(cells, **{"label_key": "kind", "embeddings": ["X_good"]} | options)
