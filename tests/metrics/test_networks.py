from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics import score_edges


def reference(n=30, rng=0):
    edges = np.random.default_rng(rng).random((n, n)) < 0.1
    np.fill_diagonal(edges, 0)
    return edges | edges.T


def test_the_truth_scores_one_and_its_opposite_zero():
    edges = reference()
    best, worst = score_edges(edges * 1.0, edges), score_edges(-1.0 * edges, edges)
    assert (best.auroc, best.auprc, best.early_precision) == (1.0, 1.0, 1.0)
    assert worst.auroc == 0.0
    assert best.n_pairs == 30 * 29 / 2
    assert best.density == edges.sum() / 2 / best.n_pairs


def test_random_scores_are_at_chance():
    edges = reference(120)
    found = score_edges(np.random.default_rng(1).random(edges.shape), edges)
    assert found.auroc == pytest.approx(0.5, abs=0.05)
    assert found.auprc == pytest.approx(found.density, abs=0.02)


def test_scores_of_hubs_alone_are_not_ahead_of_their_baseline():
    rng = np.random.default_rng(0)
    hub = rng.random(100) ** 4
    edges = rng.random((100, 100)) < 0.6 * np.maximum(hub[:, None], hub)
    edges = np.triu(edges, 1) | np.triu(edges, 1).T
    found = score_edges(hub[:, None] + hub, edges)
    assert found.auroc > 0.65
    assert found.auroc_hubs == pytest.approx(found.auroc, abs=0.06)


def test_genes_of_equal_degree_are_exchanged_whatever_their_order_in_the_table():
    module = np.repeat(np.arange(20), 5)
    edges = (module[:, None] == module) & ~np.eye(100, dtype=bool)
    found = score_edges(edges * 1.0, edges)
    assert found.auroc == found.early_precision == 1.0
    assert found.auroc_hubs == pytest.approx(0.5, abs=0.05)
    assert found.early_precision_hubs == pytest.approx(found.density, abs=0.05)


def test_ties_at_the_threshold_count_in_part():
    edges = reference()
    assert score_edges(np.zeros(edges.shape), edges).early_precision == pytest.approx(
        score_edges(edges * 1.0, edges).density
    )


def test_direction_counts_only_where_asked_for():
    truth = np.zeros((3, 3), dtype=bool)
    truth[0, 1] = True
    scores = np.zeros((3, 3))
    scores[1, 0] = 1.0
    assert score_edges(scores, truth).auroc == 1.0
    assert score_edges(scores, truth, directed=True).auroc == pytest.approx(0.4)


def test_pairs_without_a_score_are_left_out():
    edges = reference()
    scores = edges * 1.0
    scores[0] = scores[:, 0] = np.nan
    assert score_edges(scores, edges).n_pairs == 29 * 28 / 2


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), dtype=bool), "two square tables"),
        (np.zeros((3, 3)), np.zeros((2, 2), dtype=bool), "two square tables"),
        (np.zeros((3, 3)), np.zeros((3, 3)), "True at edges"),
        (np.zeros((3, 3)), np.zeros((3, 3), dtype=bool), "found 0 edges among 3 pairs"),
        (np.full((3, 3), np.inf), np.eye(3, k=1, dtype=bool), "to be finite"),
    ],
)
def test_tables_that_cannot_be_judged_are_refused(scores, truth, message):
    with pytest.raises(ValueError, match=message):
        score_edges(scores, truth)
