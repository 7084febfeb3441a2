"""Reverse perturbation."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scgpt_tools as sct
from screens import screen


@pytest.fixture
def cells():
    return screen(30)


@pytest.fixture
def candidates(cells):
    """What a perfect model would predict, from one half of the cells."""
    half = cells[cells.obs["batch"] == "a"]
    conditions = half.obs["condition"].astype(str)
    names = sorted(set(conditions) - {"ctrl"})
    means = {
        name: np.asarray(half.X[(conditions == name).to_numpy()].mean(axis=0)).ravel() for name in (*names, "ctrl")
    }
    table = ad.AnnData(np.stack([means[name] for name in names]))
    table.obs_names, table.var_names = [name.removesuffix("+ctrl") for name in names], cells.var_names
    table.layers["effect"] = table.X - means["ctrl"]
    return table


@pytest.mark.parametrize("by", ["mean", "cells"])
@pytest.mark.parametrize("metric", ["cosine", "pearson", "l1", "l2"])
def test_right_effects_are_found(cells, candidates, metric, by):
    other = cells[cells.obs["batch"] == "b"].copy()
    ranking = sct.tl.rank_perturbations(other, candidates, metric=metric, by=by)
    assert list(ranking["rank"][:13]) == list(range(1, 14))
    accuracy = sct.metrics.top_k_accuracy(ranking, k=(1, 3, 13))
    assert accuracy.loc[1, "exact"] > 0.7
    assert accuracy.loc[13, ["exact", "relevant"]].tolist() == [1, 1]
    assert (accuracy["relevant"] >= accuracy["exact"]).all()
    assert (accuracy["n"] == 13).all()
    if by == "cells":
        assert ranking.groupby("state")["votes"].sum().tolist() == [30] * 13


def test_chance_is_that_of_a_random_order(cells, candidates):
    ranking = sct.tl.rank_perturbations(cells, candidates)
    accuracy = sct.metrics.top_k_accuracy(ranking, k=(1, 13))
    assert accuracy["exact_by_chance"].tolist() == pytest.approx([1 / 13, 1])


def test_states_may_be_anything(cells, candidates):
    cells.obs["state"] = np.where(cells.obs["condition"] == "G0+ctrl", "sick", "well")
    ranking = sct.tl.rank_perturbations(cells, candidates, key="state", source="well", targets="sick")
    assert ranking["perturbation"].iloc[0] == "G0"
    assert ranking["exact"].isna().all()
    assert np.isnan(sct.metrics.top_k_accuracy(ranking)["exact"]).all()


def test_perturbed_genes_can_be_left_out(cells, candidates):
    ranking = sct.tl.rank_perturbations(cells, candidates, targets="G0+ctrl", exclude_perturbed=True)
    changed = candidates.copy()
    changed.layers["effect"][:, :8] = 99.0
    again = sct.tl.rank_perturbations(cells, changed, targets="G0+ctrl", exclude_perturbed=True)
    np.testing.assert_array_equal(ranking["score"], again["score"])
    assert not np.array_equal(ranking["score"], sct.tl.rank_perturbations(cells, changed, targets="G0+ctrl")["score"])


def test_genes_may_be_in_another_order(cells, candidates):
    ranking = sct.tl.rank_perturbations(cells, candidates)
    turned = sct.tl.rank_perturbations(cells, candidates[:, ::-1].copy())
    np.testing.assert_allclose(ranking["score"], turned["score"], rtol=1e-5)


def test_bad_input(cells, candidates):
    with pytest.raises(ValueError, match=r"Did you mean 'G0\+ctrl'"):
        sct.tl.rank_perturbations(cells, candidates, targets="G0ctrl")
    with pytest.raises(ValueError, match="found 1 missing, the first being 'G3'"):
        sct.tl.rank_perturbations(cells[:, cells.var_names != "G3"].copy(), candidates)
    with pytest.raises(KeyError, match="'effect'"):
        del candidates.layers["effect"]
        sct.tl.rank_perturbations(cells, candidates)
