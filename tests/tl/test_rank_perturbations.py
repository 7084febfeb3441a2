"""Reverse perturbation."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scgpt_tools as sct
from screen_tables import screen


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
    ranking = sct.tl.rank_perturbations(cells, candidates, condition_key="state", source="well", targets="sick")
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_effects_that_are_not_finite_are_refused(cells, candidates, value):
    candidates.layers["effect"][3, 2] = value
    with pytest.raises(
        ValueError, match=rf"finite effects.*1 of 13 \(first: '{candidates.obs_names[3]}'\)".replace("+", r"\+")
    ):
        sct.tl.rank_perturbations(cells, candidates)


@pytest.mark.parametrize("by", ["mean", "cells"])
def test_candidates_that_change_nothing_are_last_and_said_to_be(cells, candidates, by):
    candidates.layers["effect"][4] = 0
    with pytest.warns(UserWarning, match="Expected a cosine of every candidate, found none of 2"):
        ranking = sct.tl.rank_perturbations(cells, candidates, targets=["G0+ctrl", "G1+ctrl"], by=by)
    assert set(ranking.groupby("state")["perturbation"].last()) == {candidates.obs_names[4]}


def test_cells_without_a_change_vote_for_nobody(cells, candidates):
    cells.X = np.full(cells.shape, 0.5, dtype=np.float32)
    cells.X[cells.obs["condition"] == "G4+ctrl", 0] = 0.75
    with pytest.warns(UserWarning, match="nothing changes"):
        ranking = sct.tl.rank_perturbations(cells, candidates, targets="G3+ctrl", by="cells", metric="pearson")
    assert ranking["votes"].sum() == 0


def test_states_are_one_however_they_are_spelled(cells, candidates):
    plain = sct.tl.rank_perturbations(cells, candidates, targets="G0+G1")
    labels = np.array(cells.obs["condition"], dtype=object)
    labels[np.flatnonzero(labels == "G0+G1")[::2]] = "G1+G0"
    cells.obs["condition"] = labels
    with pytest.warns(UserWarning, match="are taken for"):
        ranking = sct.tl.rank_perturbations(cells, candidates, targets="G1+G0")
    assert ranking.equals(plain)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_order_does_not_depend_on_the_precision_of_the_matrix(cells, candidates, metric):
    # As good as another candidate but for rounding.
    candidates.layers["effect"][1] = candidates.layers["effect"][0] / 2
    plain = sct.tl.rank_perturbations(cells, candidates, metric=metric)
    cells.X = cells.X.astype(np.float64)
    assert sct.tl.rank_perturbations(cells, candidates, metric=metric).equals(plain)
