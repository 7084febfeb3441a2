"""Gene graphs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools.screens.graphs import coexpression_graph, ontology_graph


@pytest.fixture
def cells(rng):
    matrix = rng.poisson(1.0, (60, 12)).astype(np.float64)
    matrix[:, 5] = matrix[:, 4] + 0.1 * rng.random(60)
    matrix[:, 7] = 2.0
    return matrix


def edges(graph) -> dict:
    return {(int(s), int(t)): w for s, t, w in zip(graph.source, graph.target, graph.weight, strict=True)}


def test_weights_are_absolute_correlations(cells):
    found = edges(coexpression_graph(cells, k=None, threshold=0.0))
    varying = np.delete(np.arange(12), 7)
    expected = np.abs(np.corrcoef(cells[:, varying], rowvar=False))
    for i, source in enumerate(varying):
        for j, target in enumerate(varying):
            assert found[source, target] == pytest.approx(expected[i, j])
    assert not any(7 in pair for pair in found)


def test_sparse_and_dense_agree(cells):
    dense, sparse = (edges(coexpression_graph(side, k=3, threshold=0.1)) for side in (cells, sp.csr_matrix(cells)))
    assert dense.keys() == sparse.keys()
    np.testing.assert_allclose(list(dense.values()), list(sparse.values()))


def test_every_target_keeps_its_strongest_sources(cells):
    every, few = (edges(coexpression_graph(cells, k=k, threshold=0.0)) for k in (None, 2))
    for target in np.delete(np.arange(12), 7):
        weights = sorted((w for (_, t), w in every.items() if t == target), reverse=True)
        np.testing.assert_allclose(sorted((w for (_, t), w in few.items() if t == target), reverse=True), weights[:3])


def test_shared_terms():
    found = edges(ontology_graph([{"a", "b"}, ["b", "c", "c"], {"x"}, set()], k=None, threshold=0.0))
    assert found == pytest.approx({(0, 0): 1, (1, 1): 1, (2, 2): 1, (0, 1): 1 / 3, (1, 0): 1 / 3})
