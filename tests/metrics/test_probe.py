"""Linear probes: what they find, and what they are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics import linear_probe, probe_split

RNG = np.random.default_rng(0)
LABELS = np.repeat(["a", "b", "c"], [30, 20, 10])
CENTRES = {"a": 0.0, "b": 3.0, "c": 6.0}
EMBEDDING = RNG.normal(size=(60, 4)) + np.array([CENTRES[label] for label in LABELS])[:, None]


def test_labels_that_are_there_are_found():
    scores = linear_probe(EMBEDDING, LABELS, rng=1)
    assert scores.accuracy > 0.9
    assert scores.majority == 0.5
    assert (scores.n_train, scores.n_test) == (48, 12)
    noise = linear_probe(RNG.normal(size=(60, 4)), LABELS, rng=1)
    assert noise.accuracy < 0.75


def test_scaled_dimensions_count_however_little_they_vary():
    """Of an embedding with a large norm, which hardly varies, the regression sees nothing until it is scaled."""
    hidden = 100 + EMBEDDING * 1e-4
    assert linear_probe(hidden, LABELS, rng=1).accuracy > 0.9
    assert linear_probe(hidden, LABELS, rng=1, standardise=False).accuracy <= 0.5


def test_every_label_is_on_both_sides():
    train, test = probe_split(LABELS, test_size=0.2, rng=3)
    assert not set(train) & set(test)
    assert set(LABELS[train]) == set(LABELS[test]) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 60, "at least two labels"),
        (["b", *["a"] * 59], "b have one cell"),
        (["a"] * 5, "a label of each cell"),
    ],
)
def test_labels_that_cannot_be(labels, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(EMBEDDING, labels)


def test_cells_without_a_label_are_refused():
    with pytest.raises(ValueError, match="found none for 1"):
        probe_split(np.array([None, *["a"] * 5, *["b"] * 5], dtype=object))


def test_numbers_have_to_be_finite():
    with pytest.raises(ValueError, match="to be finite"):
        linear_probe(np.where(EMBEDDING > 5, np.nan, EMBEDDING), LABELS)
