"""A classifier on genes from a table."""

from __future__ import annotations

import numpy as np
import pytest

import scgpt_tools as sct


def test_cells_without_a_class_and_genes_without_a_name_are_left_out(cells):
    cells.obs.loc[cells.obs_names[:20], "kind"] = np.nan
    cells.var["symbol"] = ["" if place < 2 else f"S{place // 2}" for place in range(cells.n_vars)]
    found = sct.train.fit_gene_classifier(cells, label_key="kind", genes="symbol")
    assert found.classes.tolist() == ["even", "odd"]
    assert len(set(found.genes)) == len(found.genes) == cells.n_vars // 2 - 1
    assert set(found.genes) <= {f"S{place}" for place in range(1, cells.n_vars)}


def test_of_many_cells_some_are_drawn_by_seed(cells):
    fit = lambda rng: sct.train.fit_gene_classifier(cells, label_key="kind", n_cells=20, rng=rng)
    first, again, other = fit(0), fit(0), fit(1)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert first.checksum == again.checksum != other.checksum


def test_genes_can_be_fewer(cells):
    assert len(sct.train.fit_gene_classifier(cells, label_key="kind", n_genes=3).genes) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"label_key": "absent"}, KeyError, "absent"),
        ({"label_key": "same"}, ValueError, r"two classes of 'same' or more, found only \['x'\]"),
        ({"label_key": "kind", "n_cells": 1}, ValueError, "n_cells"),
        ({"label_key": "kind", "strength": 0.0}, ValueError, "strength"),
        ({"label_key": "kind", "layer": "absent"}, KeyError, "absent"),
    ],
)
def test_refusals(cells, arguments, error, message):
    cells.obs["same"] = "x"
    with pytest.raises(error, match=message):
        sct.train.fit_gene_classifier(cells, **arguments)
