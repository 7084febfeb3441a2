"""Changes and genes read off embeddings, where the embedding holds them and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools.metrics import decode_changes, gene_vectors, mean_changes, most_changed

RNG = np.random.default_rng(0)
NAMES = [f"P{number}" for number in range(10)]
LABELS = np.repeat(["control", *NAMES], 12)
STATE = {name: RNG.normal(size=3) for name in NAMES} | {"control": np.zeros(3)}
CELLS = np.stack([STATE[label] for label in LABELS]) + RNG.normal(scale=0.05, size=(132, 3))
X = np.maximum(CELLS @ RNG.normal(size=(3, 20)) + 8, 0)


def test_changes_are_read_off_an_embedding_that_holds_them():
    found = decode_changes(X, CELLS, LABELS, n_top_genes=5)
    assert found.pearson > 0.95
    assert found.mse < found.mean_mse
    assert found.above_mean == 1
    assert len(found.test) == 2
    assert not set(found.test) & set(found.train)
    sparse = decode_changes(sp.csr_matrix(X), CELLS, LABELS, n_top_genes=5)
    np.testing.assert_allclose(sparse[:7], found[:7])
    assert sparse[7:] == found[7:]


def test_noise_is_no_better_than_the_mean_change():
    found = decode_changes(X, RNG.normal(size=(132, 3)), LABELS, n_top_genes=20)
    assert found.mse > 0.5 * found.mean_mse


def test_the_changes_themselves():
    names, changes = mean_changes(X, LABELS, "control")
    assert names == NAMES
    np.testing.assert_allclose(changes[3], X[LABELS == "P3"].mean(0) - X[LABELS == "control"].mean(0))
    top = most_changed(changes, 4)
    assert np.abs(changes[0])[top[0]].min() >= np.sort(np.abs(changes[0]))[-4]


def test_vectors_of_genes():
    expression = np.array([[1, 0, 2], [1, 0, 0], [3, 1, 0]])
    cells = np.array([[1.0, 0], [0, 1], [2, 2]])
    genes, vectors = gene_vectors(expression, cells, min_cells=1)
    assert genes.tolist() == [0, 1, 2]
    np.testing.assert_allclose(vectors, [[1, 1], [2, 2], [1, 0]])
    assert gene_vectors(sp.csr_matrix(expression), cells, min_cells=2)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"control": "ctrl"}, "controls 'ctrl'"),
        ({"labels": LABELS[:5]}, "a label of each cell"),
        ({"embedding": CELLS[:5]}, "embedding of 132 cells"),
        ({"labels": np.where(LABELS == "control", "control", "P1")}, "at least two perturbations"),
    ],
)
def test_tables_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_changes(**{"X": X, "embedding": CELLS, "labels": LABELS} | arguments)


def test_vectors_need_as_many_cells():
    with pytest.raises(ValueError, match="embedding of 132 cells"):
        gene_vectors(X, CELLS[:3])
