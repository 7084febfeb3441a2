"""Logistic regression on genes: what it learns, what it makes of other tables, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from scgpt_tools.models.gene_classifier import GeneClassifier, log_normalised, variable_columns

GENES = [f"G{number}" for number in range(8)]


@pytest.fixture
def expression() -> tuple[sp.csr_matrix, np.ndarray]:
    """Logarithms of three classes, each with a gene of its own; the last gene is constant."""
    rng = np.random.default_rng(0)
    codes = np.arange(60) % 3
    X = rng.gamma(1.0, size=(60, 8))
    X[np.arange(60), codes] += 3
    X[:, -1] = 1.5
    return sp.csr_matrix(X), codes


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_scikit_learns(expression, n_classes):
    X, codes = expression
    X, codes = X[codes < n_classes], codes[codes < n_classes]
    found = GeneClassifier.fit(X, codes, genes=GENES, classes=["a", "b", "c"][:n_classes])
    assert found.genes.tolist() == GENES[:-1]
    values = X[:, :-1].toarray()
    expected = LogisticRegression(max_iter=200).fit(values, codes)
    probabilities = found.probabilities(X[:, :-1], found.vocabulary.ids(GENES[:-1]))
    np.testing.assert_allclose(probabilities, expected.predict_proba(values), atol=1e-3)
    assert (probabilities.argmax(axis=1) == codes).mean() > 0.95


def test_genes_come_in_any_order_and_absent_ones_are_average(expression):
    X, codes = expression
    found = GeneClassifier.fit(X, codes, genes=GENES, classes=["a", "b", "c"])
    order = [4, 1, 0]
    few = found.probabilities(X[:, order], found.vocabulary.ids([GENES[place] for place in order]))
    filled = X.toarray()[:, :-1]
    filled[:, [2, 3, 5, 6]] = found.centre[[2, 3, 5, 6]]
    whole = found.probabilities(sp.csr_matrix(filled), found.vocabulary.ids(GENES[:-1]))
    np.testing.assert_allclose(few, whole, atol=1e-5)


def test_a_class_without_cells_is_never_named(expression):
    X, codes = expression
    found = GeneClassifier.fit(X, codes, genes=GENES, classes=["a", "b", "c", "absent"])
    assert found.probabilities(X[:, :-1], found.vocabulary.ids(GENES[:-1]))[:, 3].max() == 0


def test_counts_are_normalised_and_logarithms_are_not(expression):
    X, _ = expression
    np.testing.assert_array_equal(log_normalised(X).toarray(), X.toarray())
    counts = sp.csr_matrix(np.array([[1.0, 9.0], [50.0, 50.0], [0.0, 0.0]]))
    expected = np.log1p([[1000, 9000], [5000, 5000], [0, 0]])
    np.testing.assert_allclose(log_normalised(counts).toarray(), expected)


def test_constant_genes_tell_nothing(expression):
    X, _ = expression
    assert variable_columns(X, 100).tolist() == list(range(7))
    assert variable_columns(sp.csr_matrix(np.ones((3, 2))), 100).tolist() == [0, 1]


def test_a_file_gives_it_back(expression, tmp_path):
    X, codes = expression
    found = GeneClassifier.fit(X, codes, genes=GENES, classes=["a", "b", "c"])
    again = GeneClassifier.load(found.save(tmp_path / "genes.npz"))
    for name in ("genes", "classes", "centre", "weights", "intercept"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    with pytest.raises(ValueError, match="ends with '.npz'"):
        found.save(tmp_path / "genes")
    with pytest.raises(FileNotFoundError):
        GeneClassifier.load(tmp_path / "absent.npz")
    (tmp_path / "other.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="to hold a gene classifier"):
        GeneClassifier.load(tmp_path / "other.npz")
