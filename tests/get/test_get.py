"""Data frames of what other functions have written."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scgpt_tools as sct
from generators import generator
from screen_tables import screen


@pytest.fixture(autouse=True)
def quiet():
    with sct.settings.override(show_progress=False):
        yield


@pytest.fixture
def labelled() -> ad.AnnData:
    adata = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]))
    adata.obs["found"] = pd.Categorical(["T", "unassigned"], categories=["B", "NK", "T", "unassigned"])
    adata.obs["found_confidence"] = np.float32([0.7, 0.4])
    adata.obsm["found_probabilities"] = np.float32([[0.2, 0.1, 0.7], [0.3, 0.4, 0.3]])
    adata.uns["found"] = {"classes": np.array(["B", "NK", "T"], dtype=object), "params": {"rng": 3}}
    return adata


def test_classes_of_cells(labelled):
    table = sct.get.annotation(labelled, "found")
    assert table["class"].tolist() == ["T", "unassigned"]
    assert table["second_class"].tolist() == ["B", "B"]
    np.testing.assert_allclose(table[["confidence", "second_probability"]], [[0.7, 0.2], [0.4, 0.3]])
    shares = sct.get.class_probabilities(labelled, "found")
    assert shares.loc["b"].to_dict() == pytest.approx({"B": 0.3, "NK": 0.4, "T": 0.3})


def test_a_single_class_has_no_second(labelled):
    labelled.obsm["found_probabilities"] = np.ones((2, 1), np.float32)
    labelled.uns["found"]["classes"] = np.array(["T"], dtype=object)
    assert sct.get.annotation(labelled, "found")[["second_class", "second_probability"]].isna().all(axis=None)


def test_rankings_are_those_of_scanpy():
    adata = screen(6)
    sct.pp.perturbation_de(adata)
    names = adata.uns["perturbation_de"]["names"].dtype.names
    table = sct.get.perturbation_de(adata, n_genes=5)
    assert table["condition"].tolist() == [name for name in names for _ in range(5)]
    theirs = sc.get.rank_genes_groups_df(adata, names[0], key="perturbation_de")[:5]
    ours = sct.get.perturbation_de(adata, names[0], n_genes=5).rename(columns={"gene": "names"})
    pd.testing.assert_frame_equal(ours[list(theirs)], theirs, check_dtype=False)


def test_conditions_of_a_split():
    adata = screen(3)
    sct.pp.perturbation_split(adata, "single", test_fraction=0.3, val_fraction=0.4)
    table = sct.get.perturbation_split(adata).set_index("condition")
    own = adata.obs[["condition", "split"]].dropna().drop_duplicates().set_index("condition")["split"].astype(str)
    own = own.drop("ctrl")
    assert table["part"][own.index].to_dict() == own.to_dict()
    assert table.loc[table["part"] == "test", "subgroup"].notna().all()
    assert table.loc[table["part"] == "train", "subgroup"].isna().all()


def test_predicted_effects():
    adata = screen(3)
    effects = sct.tl.screen(adata, ["G0", "G1"], generator(adata.var_names), n_controls=4)
    table = sct.get.perturbation_effects(effects)
    assert table.shape == (2 * adata.n_vars, 6)
    np.testing.assert_allclose(table["predicted"] - table["control_mean"], table["effect"], atol=1e-5)
    wide = table.pivot(index="perturbation", columns="gene", values="effect").loc[effects.obs_names, effects.var_names]
    np.testing.assert_array_equal(wide.to_numpy(), effects.layers["effect"])
    top = sct.get.perturbation_effects(effects, effects.obs_names[1], n_genes=3)
    assert top["perturbation"].unique().tolist() == [effects.obs_names[1]]
    assert top["effect"].abs().is_monotonic_decreasing
    assert top["effect"].abs().iloc[0] == np.abs(effects.layers["effect"][1]).max()


def test_edges_and_programs_of_genes(rng):
    adata = ad.AnnData(var=pd.DataFrame(index=[f"G{number}" for number in range(12)]))
    adata.varm["X"] = (np.repeat(np.eye(2, 5), 6, axis=0) + rng.normal(0, 0.05, (12, 5))).astype(np.float32)
    sct.tl.gene_network(adata, use_rep="X")
    table = sct.get.gene_network(adata)
    weights = adata.varp["gene_network"]
    assert 2 * len(table) == weights.nnz
    assert table["weight"].is_monotonic_decreasing
    places = [adata.var_names.get_indexer(table[column]) for column in ("gene", "other")]
    np.testing.assert_array_equal(np.asarray(weights[places[0], places[1]]).ravel(), table["weight"])
    adata.uns["gene_program"] = {"programs": {"0": np.array(["G3"], object), "1": np.array(["G1", "G2"], object)}}
    assert sct.get.gene_programs(adata).to_numpy().tolist() == [["1", "G1"], ["1", "G2"], ["0", "G3"]]


def test_where_results_come_from():
    adata = sct.datasets.pbmc_demo()[:20].copy()
    sct.tl.embed(adata, "scgpt-demo", rng=5)
    adata.uns["other"] = {"colors": ["red"]}
    table = sct.get.provenance(adata)
    assert table.index.tolist() == ["X_scGPT"]
    row = table.loc["X_scGPT"]
    assert row["model"] == "scgpt-demo"
    assert row["rng"] == 5
    assert row["n_matched"] <= row["n_features"] == adata.n_vars
    assert "pooling='cls'" in row["params"]


def test_numbers_that_were_drawn_with_keep_their_digits():
    adata = ad.AnnData(np.zeros((2, 3), np.float32))
    adata.uns = {"drawn": {"params": {"rng": 2**63 - 1}}, "other": {"params": {}}}
    assert sct.get.provenance(adata).loc["drawn", "rng"] == 2**63 - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: sct.get.class_probabilities(a, "nothing"), "classes"),
        (lambda a: sct.get.annotation(a), "key in `uns`"),
        (lambda a: sct.get.perturbation_de(a, key="nothing"), "names"),
        (lambda a: sct.get.perturbation_split(a, "nothing"), "conditions"),
        (lambda a: sct.get.perturbation_effects(a), "key in `var`"),
        (lambda a: sct.get.gene_network(a), "key in `varp`"),
        (lambda a: sct.get.gene_programs(a, "nothing"), "programs"),
    ],
)
def test_results_that_are_not_there(call, message):
    adata = ad.AnnData(np.zeros((2, 3), np.float32), uns={"nothing": {}})
    with pytest.raises(KeyError, match=message):
        call(adata)


def test_conditions_that_are_not_there():
    adata = screen(6)
    sct.pp.perturbation_de(adata)
    with pytest.raises(KeyError, match="condition"):
        sct.get.perturbation_de(adata, "G0+none")
