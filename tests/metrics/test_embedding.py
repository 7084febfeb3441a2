from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import silhouette_score

from scgpt_tools.metrics.embedding import score_clusters

CENTRES = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]])


@pytest.fixture
def labels():
    return np.repeat(["B", "T", "NK"], [30, 20, 10])


@pytest.fixture
def separated(rng, labels):
    return CENTRES[np.unique(labels, return_inverse=True)[1]] + rng.normal(size=(60, 3))


def test_separated_labels_score_best(separated, labels):
    scores = score_clusters(separated, labels)
    assert scores.nmi == pytest.approx(1)
    assert scores.ari == pytest.approx(1)
    assert scores.asw == pytest.approx((silhouette_score(separated, labels) + 1) / 2)
    assert scores.asw > 0.85


def test_shuffled_labels_score_as_chance(separated, labels, rng):
    scores = score_clusters(separated, rng.permutation(labels))
    assert abs(scores.ari) < 0.1
    assert scores.nmi < 0.2
    assert scores.asw < 0.5


def test_more_noise_scores_less(separated, labels, rng):
    noisy = [score_clusters(separated + rng.normal(scale=scale, size=separated.shape), labels) for scale in (0, 4, 16)]
    for best, middle, worst in zip(*noisy, strict=True):
        assert best > middle > worst


def test_only_geometry_counts(separated, labels):
    """Not rotation, scale or order of the cells; not what the labels are called."""
    scores = score_clusters(separated, labels)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    order = np.random.default_rng(2).permutation(60)
    renamed = pd.Categorical(labels).rename_categories({"B": "x", "T": "y", "NK": "z"})
    assert score_clusters(5 * separated[order] @ rotation, renamed[order]) == pytest.approx(scores)


def test_the_seed_decides(separated, labels, rng):
    noisy = separated + rng.normal(scale=6, size=separated.shape)
    assert score_clusters(noisy, labels, rng=3) == score_clusters(noisy, labels, rng=3)
    assert score_clusters(noisy, labels, rng=3).asw == score_clusters(noisy, labels, rng=4).asw
    assert score_clusters(noisy, labels, n_clusters=30).nmi != score_clusters(noisy, labels).nmi


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (np.where(x > 8, np.nan, x), y), "finite"),
        (lambda x, y: (x[:, 0], y), r"shape \(60,\)"),
        (lambda x, y: (x, y[:-1]), "one label for each of the 60 cells, found 59"),
        (lambda x, y: (x, pd.Series(y).where(y != "B")), "30 are missing"),
        (lambda x, y: (x, pd.Categorical(y).remove_categories("NK")), "10 are missing"),
        (lambda x, y: (x, np.full(60, "B")), "found 1"),
        (lambda x, y: (x, np.arange(60)), "found 60"),
    ],
)
def test_bad_input_is_refused(change, message, separated, labels):
    with pytest.raises(ValueError, match=message):
        score_clusters(*change(separated, labels))
