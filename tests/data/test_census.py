"""Cells of a Census: filters, and a small collection of SOMA on disk with its layout."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgpt_tools.data.census import CensusConfig, _warn_of_unmatched, open_census


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"assay": "10x 3' v3"}, '''assay == "10x 3' v3"'''),
        ({"n_genes": 3, "is_primary_data": True}, "n_genes == 3 and is_primary_data == True"),
        ({"tissue": ["blood", '5\' "gut"']}, "tissue in ['blood', '5\\' \"gut\"']"),
        ({"n_genes": np.int64(3), "is_primary_data": np.bool_(True)}, "n_genes == 3 and is_primary_data == True"),
        ({}, None),
    ],
)
def test_filters_are_quoted(filters, expected):
    assert CensusConfig(filters=filters).value_filter() == expected


def test_filters_go_together():
    config = CensusConfig(filters={"tissue": "blood"}, obs_filter="a > 1 or b > 2")
    assert config.value_filter() == "tissue == 'blood' and (a > 1 or b > 2)"


@pytest.mark.parametrize("filters", [{"a b": 1}, {"a": []}, {"a": None}, {"a": {"b": 1}}])
def test_filters_that_cannot_be_are_refused(filters):
    with pytest.raises(ValueError, match="in `filters`"):
        CensusConfig(filters=filters)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tiledbsoma", None)
    with pytest.raises(ImportError, match="extra 'census' of scgpt-tools"), open_census(CensusConfig()):
        pass


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    """A collection with the layout of CELLxGENE's, and the table that it was made of."""
    soma = pytest.importorskip("tiledbsoma", reason="tiledbsoma is large (extra census)")
    io = pytest.importorskip("tiledbsoma.io")
    place = tmp_path_factory.mktemp("census")
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(1.0, size=(60, 12)).astype(np.float32))
    obs = pd.DataFrame(
        {"assay": rng.choice(["10x 3' v3", "10x 5' v1"], 60), "cell_type": rng.choice(["B", "T"], 60)},
        index=[f"cell{number}" for number in range(60)],
    )
    genes = [f"ENSG{number:011d}" for number in range(12)]
    var = pd.DataFrame({"feature_id": genes, "feature_length": np.arange(12)}, index=genes)
    table = ad.AnnData(X, obs=obs, var=var)
    uri = place / "soma"
    with soma.Collection.create(str(uri)) as root:
        root.add_new_collection("census_data")
    experiment = uri / "census_data" / "homo_sapiens"
    io.from_anndata(str(experiment), table, measurement_name="RNA", X_layer_name="raw")
    with soma.open(str(uri / "census_data"), "w") as data:
        data.set("homo_sapiens", soma.open(str(experiment)), use_relative_uri=False)
    return table, str(uri)


def test_cells_that_pass_the_filters(census):
    table, uri = census
    config = CensusConfig(
        uri=uri, filters={"assay": "10x 3' v3"}, var_filter="feature_length > 3", obs_columns=("cell_type",)
    )
    kept = table[table.obs["assay"] == "10x 3' v3", 4:]
    with open_census(config) as rows:
        assert rows.var.index.tolist() == kept.var_names.tolist()
        assert rows.obs["cell_type"].astype(str).tolist() == kept.obs["cell_type"].tolist()
        np.testing.assert_array_equal(rows.take(np.arange(len(rows))).toarray(), kept.X.toarray())
        some = np.array([5, 0, 9, 9])
        np.testing.assert_array_equal(rows.take(some).toarray(), kept.X[some].toarray())
        assert not rows.in_memory
        assert rows.totals([2]) == pytest.approx(kept.X[:, 2].sum())


def test_values_of_filters_that_no_cell_has_are_named(census):
    table, uri = census
    said = r"Expected cells for each value of `filters\['assay'\]`, found none with '10x 3 v3' among the \d+ that pass"
    config = CensusConfig(uri=uri, filters={"assay": ["10x 5' v1", "10x 3 v3"], "cell_type": ["B", "T"]})
    with pytest.warns(UserWarning, match=said), open_census(config) as rows:
        assert len(rows) == (table.obs["assay"] == "10x 5' v1").sum()


def test_values_that_are_not_there_are_found_in_any_column():
    obs = pd.DataFrame({"assay": pd.Categorical(["a", "b"]), "n": [1, 2], "good": [True, False]})
    _warn_of_unmatched({"assay": ["a", "b"], "n": [1, 2], "good": [True, False]}, obs)
    with pytest.warns(UserWarning, match=r"filters\['n'\]`, found none with 3 among the 2"):
        _warn_of_unmatched({"assay": "a", "n": (1, 3)}, obs)


def test_what_is_not_there_is_said(census):
    _, uri = census
    with (
        pytest.raises(ValueError, match="Did you mean 'homo_sapiens'"),
        open_census(CensusConfig(uri=uri, organism="homo_sapien")),
    ):
        pass
    with (
        pytest.raises(ValueError, match="pass the filters"),
        open_census(CensusConfig(uri=uri, filters={"cell_type": "NK"})),
    ):
        pass
    with pytest.raises(ValueError, match="column of obs"), open_census(CensusConfig(uri=uri), columns=("kind",)):
        pass


def test_a_census_is_trained_on(census, tmp_path):
    """Its Ensembl ids match a list of symbols."""
    pytest.importorskip("lightning")
    from scgpt_tools.train.pretrain import pretrain

    _, uri = census
    config = {
        "data": {"census": {"uri": uri, "filters": {"assay": ["10x 3' v3", "10x 5' v1"]}}, "validation": 0.2,
                 "sampling": "balanced", "label_key": "cell_type"},
        "family": {"name": "scmodelforge", "dim": 8, "layers": 1, "heads": 2, "hidden": 8},
        "train": {"epochs": 1, "batch_size": 16, "accelerator": "cpu"},
    }  # fmt: skip
    model = pretrain(config, output=tmp_path / "model")
    assert {"ENSG00000000003", "<mask>"} <= set(model.vocabulary)
