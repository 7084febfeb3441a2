"""Genes beside random genes that are alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scgpt_tools.metrics import matched_null
from scgpt_tools.metrics.matched_null import draw_matched


@pytest.fixture
def table():
    """Scores that follow the first quantity, of 300 genes."""
    rng = np.random.default_rng(0)
    likeness = np.stack([np.linspace(1, 100, 300), rng.normal(size=300)], axis=1)
    return likeness[:, 0] / 10 + rng.normal(scale=0.3, size=300), likeness


def test_random_genes_have_uniform_p_values_whatever_they_are_alike_in(table):
    scores, likeness = table
    found = matched_null(scores, likeness, np.ones(300, dtype=bool), n_matched=20)
    assert stats.kstest(found.p_value, "uniform").pvalue > 0.05
    assert abs(np.corrcoef(found.z_score, likeness[:, 0])[0, 1]) < 0.2
    assert found.p_value.min() == pytest.approx(1 / 300)
    np.testing.assert_allclose(found.expected, likeness[:, 0] / 10, atol=1.5)


def test_a_gene_above_its_like_stands_out_though_others_score_higher(table):
    scores, likeness = table
    scores[30] += 3
    random = np.ones(300, dtype=bool)
    random[[30, 200]] = False
    found = matched_null(scores, likeness, random, n_matched=20)
    assert scores[30] < np.median(scores)
    assert found.p_value[30] == pytest.approx(1 / 299)
    assert found.z_score[30] > 3
    assert found.p_value[200] > 0.02
    assert scores[200] > scores[30]


def test_genes_drawn_are_the_nearest(table):
    _, likeness = table
    likeness[:, 1] = 0
    free = np.setdiff1d(np.arange(300), [50, 200])
    assert list(draw_matched(likeness, [50, 200], free, 8)) == [48, 49, 51, 52, 198, 199, 201, 202]
    many = draw_matched(likeness, np.arange(0, 300, 2), np.arange(1, 300, 2), 40)
    assert len(many) == len(set(many)) == 40
    assert list(draw_matched(likeness, [50], [1, 2, 3], 40)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_random": np.zeros(300, dtype=bool)}, "ten random genes or more to compare with, found 0"),
        ({"likeness": np.ones((4, 2))}, "`likeness` of shape"),
        ({"scores": np.full(300, np.nan)}, "`scores`"),
        ({"n_matched": 1}, "`n_matched` to be at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(table, change, message):
    scores, likeness = table
    options = {"scores": scores, "likeness": likeness, "is_random": np.ones(300, dtype=bool)} | change
    with pytest.raises(ValueError, match=message):
        matched_null(**options)
