"""Agreement of differentially expressed genes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from scgpt_tools.metrics.differential import (
    DifferentialExpression,
    _average_precision,
    _roc_auc,
    count_correlation,
    de_agreement,
    differential_expression,
)


@pytest.fixture
def cells(rng):
    matrix = rng.poisson(1.0, (90, 20)).astype(float)
    matrix[30:60, :6] += rng.poisson(3, (30, 6))
    matrix[60:, 3:9] = 0
    matrix[:, 19] = 0
    return np.log1p(matrix), np.repeat(["ctrl", "A", "B"], 30)


def test_tests_and_fold_changes(cells):
    matrix, labels = cells
    found = differential_expression(sp.csr_matrix(matrix), labels)
    assert found.conditions == ("A", "B")
    assert (found.pvals_adj[0, :6] < 0.01).all()
    assert (found.pvals_adj[1, 3:9] < 0.01).all()
    assert found.pvals_adj[0, 19] == 1
    assert np.isneginf(found.log2_fold_change[1, 3:9]).all()
    assert found.log2_fold_change[0, 19] == 0
    p = mannwhitneyu(matrix[30:60, :19], matrix[:30, :19], axis=0, method="asymptotic").pvalue
    assert found.pvals_adj[0].min() == pytest.approx(p.min() * 20)


def test_truth_agrees_with_itself(cells):
    found = differential_expression(*cells)
    scores = de_agreement(found, found)
    for name, values in scores.items():
        if not name.startswith("de_nsig"):
            np.testing.assert_allclose(values[0], 1, err_msg=name)
    # Every true change of B is minus infinity, which has no rank.
    assert np.isnan(scores["de_spearman_lfc_sig"][1])
    assert len(set(scores["de_nsig_counts_real"])) == 2
    assert count_correlation(found, found) == pytest.approx(1)


def test_ties_take_the_mean_over_all_orders():
    p = np.array([[0.01, 0.01, 0.01, 0.01]])
    true = DifferentialExpression(("A",), np.array([[9.0, 8, 1, 1]]), p)
    tied = DifferentialExpression(("A",), np.full((1, 4), np.inf), p)
    few = de_agreement(tied, true)
    assert few["overlap_at_N"][0] == 1
    half = DifferentialExpression(("A",), np.array([[9.0, 8, 1, 1]]), np.array([[0.01, 0.01, 0.9, 0.9]]))
    assert de_agreement(tied, half)["overlap_at_N"][0] == pytest.approx(0.5)


def test_curves_are_those_of_scikit_learn(rng):
    positive, score = rng.random(60) < 0.3, np.round(rng.random(60), 1)
    assert _average_precision(positive, score) == pytest.approx(average_precision_score(positive, score))
    assert _roc_auc(positive, score) == pytest.approx(roc_auc_score(positive, score))
    assert np.isnan(_roc_auc(np.ones(3, dtype=bool), np.arange(3.0)))


def test_nothing_found_scores_nothing(cells):
    true = differential_expression(*cells)
    silent = DifferentialExpression(true.conditions, np.zeros_like(true.log2_fold_change), np.ones_like(true.pvals_adj))
    scores = de_agreement(silent, true)
    assert scores["precision_at_N"].tolist() == scores["de_sig_genes_recall"].tolist() == [0, 0]
    backwards = de_agreement(true, silent)
    assert np.isnan(backwards["de_direction_match"]).all()
    assert count_correlation(true, silent) == 1


def test_arguments_are_checked(cells):
    matrix, labels = cells
    with pytest.raises(ValueError, match="label 'control'"):
        differential_expression(matrix, labels, control="control")
    found = differential_expression(matrix, labels)
    other = DifferentialExpression(("A", "C"), found.log2_fold_change, found.pvals_adj)
    with pytest.raises(ValueError, match="same conditions"):
        de_agreement(found, other)
