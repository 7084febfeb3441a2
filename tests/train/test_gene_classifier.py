"""A classifier on genes from a table."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import scgpt_tools as sct
from scgpt_tools.config import Named
from scgpt_tools.models.config import ClassifierConfig
from scgpt_tools.models.gene_classifier import log_normalised


def test_cells_without_a_class_and_genes_without_a_name_are_left_out(cells):
    cells.obs.loc[cells.obs_names[:20], "kind"] = np.nan
    cells.var["symbol"] = ["" if place < 2 else f"S{place // 2}" for place in range(cells.n_vars)]
    with pytest.warns(UserWarning, match="11 "):
        found = sct.train.fit_gene_classifier(cells, label_key="kind", genes="symbol")
    assert found.classes.tolist() == ["even", "odd"]
    assert len(set(found.genes)) == len(found.genes) == cells.n_vars // 2 - 1
    assert set(found.genes) <= {f"S{place}" for place in range(1, cells.n_vars)}


def test_of_many_cells_some_are_drawn_by_seed(cells):
    fit = lambda rng: sct.train.fit_gene_classifier(cells, label_key="kind", n_cells=20, rng=rng)
    first, again, other = fit(0), fit(0), fit(1)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.checksum == again.checksum != other.checksum


def test_blocks_change_nothing(cells, monkeypatch):
    whole = sct.train.fit_gene_classifier(cells, label_key="kind", n_genes=10)
    monkeypatch.setattr("scgpt_tools.train.gene_classifier._ROWS", 7)
    parts = sct.train.fit_gene_classifier(cells, label_key="kind", n_genes=10)
    assert parts.genes.tolist() == whole.genes.tolist()
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-6)
    # And they are those of the dense matrix of all cells.
    X = log_normalised(cells.X)
    chosen = np.sort(np.argsort(-X.toarray().var(axis=0), kind="stable")[:10])
    assert whole.genes.tolist() == cells.var_names[chosen].tolist()
    codes = cells.obs["kind"].cat.codes.to_numpy(np.int64)
    expected = LogisticRegression(max_iter=200).fit(X[:, chosen].toarray(), codes)
    found = whole.probabilities(X[:, chosen], whole.vocabulary.ids(whole.genes))
    np.testing.assert_allclose(found, expected.predict_proba(X[:, chosen].toarray()), atol=1e-3)


@pytest.mark.parametrize(("duplicates", "column"), [("most_counts", 1), ("first", 0)])
def test_of_columns_of_one_name_the_same_is_learnt_from_and_asked(cells, make_model, duplicates, column):
    cells.X = cells.X.multiply(np.where(np.arange(cells.n_vars) == 0, 0.1, 1.0)).tocsr()
    cells.var["symbol"] = ["GENE0", "GENE0", *cells.var_names[2:]]
    options = {"genes": "symbol", "duplicates": duplicates}
    with pytest.warns(UserWarning, match="GENE0"):
        found = sct.train.fit_gene_classifier(cells, label_key="kind", **options)
    X = log_normalised(cells.X)[:, [column, *range(2, cells.n_vars)]]
    ids = found.vocabulary.ids(["GENE0", *cells.var_names[2:]])
    np.testing.assert_allclose(found.centre[ids - 1], X.toarray().mean(axis=0), atol=1e-5)
    heads = Named(cell_type=ClassifierConfig(classes=2, names=("even", "odd")))
    model = make_model().adapt(heads=heads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both, alone = (
            sct.tl.annotate(cells, models, **options, copy=True).obsm["scgpt_cell_type_probabilities"]
            for models in ([model, found], model)
        )
    np.testing.assert_allclose(2 * both - alone, found.probabilities(X, ids), atol=1e-5)


def test_columns_of_one_name_can_be_refused(cells):
    cells.var["symbol"] = ["GENE0", "GENE0", *cells.var_names[2:]]
    with pytest.raises(ValueError, match="GENE0"):
        sct.train.fit_gene_classifier(cells, label_key="kind", genes="symbol", duplicates="error")


def test_genes_can_be_fewer(cells):
    assert len(sct.train.fit_gene_classifier(cells, label_key="kind", n_genes=3).genes) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"label_key": "absent"}, KeyError, "absent"),
        ({"label_key": "same"}, ValueError, r"two classes of 'same' or more, found only \['x'\]"),
        ({"label_key": "kind", "n_cells": 1}, ValueError, "n_cells"),
        ({"label_key": "many", "n_cells": 9}, ValueError, "one for each class or more, 60, found 9"),
        ({"label_key": "kind", "strength": 0.0}, ValueError, "strength"),
        ({"label_key": "kind", "layer": "absent"}, KeyError, "absent"),
    ],
)
def test_refusals(cells, arguments, error, message):
    cells.obs["same"] = "x"
    cells.obs["many"] = cells.obs_names
    with pytest.raises(error, match=message):
        sct.train.fit_gene_classifier(cells, **arguments)
