"""GEARS' scores beyond the recorded cases: what they mean, and the faults that their page names."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.perturbation import direction_match, mask_of, mse
from scgpt_tools.metrics.perturbation_gears import (
    HeldOutCells,
    deeper_analysis,
    evaluation_means,
    evaluation_metrics,
    list_analysis,
    subgroup_means,
    variable_genes,
)
from scgpt_tools.metrics.perturbation_scgpt import scgpt_means, scgpt_metrics

N_GENES = 30


@pytest.fixture
def cells(rng):
    true = rng.poisson(2.0, (60, N_GENES)).astype(float)
    labels = np.repeat(["B+ctrl", "A+ctrl", "A+B"], 20)
    return HeldOutCells.from_cells(true + rng.normal(0, 0.5, true.shape), true, labels)


@pytest.fixture
def order(rng):
    return np.stack([rng.permutation(N_GENES) for _ in range(3)])


def test_cells_are_grouped_by_condition(cells):
    assert cells.conditions == ("A+B", "A+ctrl", "B+ctrl")
    np.testing.assert_array_equal(cells.rows[2], np.arange(20))
    np.testing.assert_allclose(cells.true[2], cells.cells[:20].mean(axis=0))


def test_a_perfect_prediction(cells, order):
    perfect = HeldOutCells(cells.conditions, cells.true, cells.true, cells.cells, cells.rows)
    control = np.full(N_GENES, 1.5)
    scores = deeper_analysis(perfect, control, order, variable_genes(cells.true))
    for name, values in scores.items():
        ideal = 0 if name.startswith(("mse", "mean_sigma", "std_sigma", "fold_change")) else 1
        if name in ("frac_correct_direction_50", "frac_correct_direction_100", "frac_correct_direction_200"):
            # Divided by the nominal number of genes, of which there are only 30.
            np.testing.assert_allclose(values, N_GENES / int(name.split("_")[-1]))
        elif not name.startswith("frac_in_range_"):
            np.testing.assert_allclose(values[~np.isnan(values)], ideal, atol=1e-12, err_msg=name)


def test_the_named_fault_and_its_correction(cells, order):
    """Only where the ranking happens to be in the order of the genes do columns and controls belong together."""
    control = np.linspace(1.5, 2.5, N_GENES)
    name, variable = "frac_correct_direction_20_nonzero", np.arange(5)

    def both(ranking):
        where = mask_of(ranking[:, :20], N_GENES)
        right = direction_match(cells.predicted, cells.true, reference=control, where=where)
        return deeper_analysis(cells, control, ranking, variable)[name], right

    np.testing.assert_allclose(*both(np.sort(order, axis=1)))
    faulty, right = both(order)
    assert (faulty != right).any()


def test_controls_count_in_the_overall_scores_only(cells, order):
    top = order[:, :20].copy()
    top[0] = -1
    scores = evaluation_metrics(cells.predicted, cells.true, top)
    assert (scores["mse_de"][0], scores["pearson_de"][0]) == (0, 0)
    means = evaluation_means(scores, np.array([True, False, False]))
    assert means["mse"] == pytest.approx(mse(cells.predicted, cells.true).mean())
    assert means["mse_de"] == pytest.approx(scores["mse_de"][1:].mean())


def test_directions_of_a_list_add_up(cells, order):
    scores = list_analysis(cells, np.full(N_GENES, 2.0), list(order[:, :12]), "non_zero")
    total = sum(scores[f"frac_{kind}_direction_top20_non_zero"] for kind in ("correct", "opposite", "0/1"))
    np.testing.assert_allclose(total, 1)


def test_lists_of_different_length(cells, order):
    lists = [order[0, :5], order[1, :20], order[2, :0]]
    scores = list_analysis(cells, np.full(N_GENES, 2.0), lists, "non_dropout")
    for row, own in enumerate(lists[:2]):
        alone = mse(cells.predicted[row : row + 1, own], cells.true[row : row + 1, own])
        np.testing.assert_allclose(scores["mse_top20_de_non_dropout"][row], alone[0])
    assert np.isnan(scores["frac_in_range_non_dropout"][2])


def test_subgroups():
    means = subgroup_means({"mse": np.array([1.0, 2.0, 6.0])}, ("a", "b", "c"), {"x": ("a", "c"), "y": ()})
    assert means["x_mse"] == 3.5
    assert np.isnan(means["y_mse"])


def test_scgpt_skips_conditions_without_expression(cells, order):
    true = cells.true.copy()
    true[1] = 0
    scores = scgpt_metrics(cells.predicted, true, np.full(N_GENES, 1.0), order[:, :20])
    assert np.isnan(scores["pearson"]).tolist() == [False, True, False]
    assert scgpt_means(scores, true)["pearson"] == pytest.approx(np.mean(scores["pearson"][[0, 2]]))


def test_scgpt_non_zero_genes_restrict_all_gene_scores(cells, order):
    true = cells.true.copy()
    true[:, :10] = 0
    top, control = order[:, :20], np.linspace(0, 1, N_GENES)
    every, some = (scgpt_metrics(cells.predicted, true, control, top, non_zero_genes=flag) for flag in (False, True))
    for name in ("pearson_de", "pearson_de_delta"):
        np.testing.assert_allclose(every[name], some[name])
    kept = slice(10, None)
    alone = scgpt_metrics(cells.predicted[:, kept], true[:, kept], control[kept], np.tile(np.arange(20), (3, 1)))
    np.testing.assert_allclose(some["pearson_delta"], alone["pearson_delta"])
