"""Baselines of perturbation prediction."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.baselines import (
    BASELINES,
    interpolated_duplicate,
    linear,
    no_change,
    perturbed_mean,
    predict_baselines,
)
from scgpt_tools.metrics.combining import additive
from scgpt_tools.metrics.effects import TrainingEffects

GENES = tuple(f"G{i}" for i in range(25))
TARGETS = [("G0",), ("G1", "G2"), ("G1", "G9"), ("G8", "G9"), ("G0", "G1", "G2")]


@pytest.fixture
def train(rng):
    perturbed = (*((gene,) for gene in GENES[:6]), ("G0", "G1"))
    return TrainingEffects(
        GENES,
        rng.random(25),
        perturbed,
        rng.normal(size=(7, 25)),
        n_cells=np.array([5, 5, 5, 5, 5, 5, 100]),
        errors=np.full((7, 25), 0.3),
    )


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_predicts_every_target(name, train):
    prediction = BASELINES[name](train, TARGETS)
    assert prediction.effects.shape == (5, 25)
    assert prediction.informed.shape == (5,)
    assert np.isfinite(prediction.effects).all()
    empty = BASELINES[name](train, [])
    assert empty.effects.shape == (0, 25)


def test_no_change_and_mean(train):
    assert not no_change(train, TARGETS).effects.any()
    np.testing.assert_allclose(perturbed_mean(train, TARGETS).effects, np.tile(train.effects.mean(axis=0), (5, 1)))
    by_cell = perturbed_mean(train, TARGETS, by_cell=True).effects[0]
    assert np.abs(by_cell - train.effects[6]).max() < np.abs(train.effects.mean(axis=0) - train.effects[6]).max()


def test_linear_finds_a_bilinear_truth(rng):
    """Effects made from embeddings are predicted for genes that were never perturbed."""
    embedding = rng.normal(size=(25, 3))
    truth = embedding @ rng.normal(size=(3, 3)) @ embedding.T
    train = TrainingEffects(GENES, rng.random(25), tuple((gene,) for gene in GENES[:20]), truth[:, :20].T)
    found = linear(train, [("G22",), ("G20", "G24")], gene_embedding=embedding, ridge=1e-8)
    assert found.informed.all()
    # The published form centres effects but not embeddings, so the match is close and not exact.
    assert np.corrcoef(found.effects[0], truth[:, 22])[0, 1] > 0.9


def test_linear_by_its_equation(train, rng):
    g, p = rng.normal(size=(25, 4)), {gene: rng.normal(size=2) for gene in GENES}
    found = linear(train, [("G7",), ("G7", "G8")], gene_embedding=g, perturbation_embedding=p, ridge=0.3)
    y = np.column_stack([train.effects[:6].T, np.zeros(25)])
    b = y.mean(axis=1, keepdims=True)
    inputs = np.column_stack([*(p[gene] for gene in GENES[:6]), np.zeros(2)])
    w = (
        np.linalg.inv(g.T @ g + 0.3 * np.eye(4)) @ g.T @ (y - b) @ inputs.T
        @ np.linalg.inv(inputs @ inputs.T + 0.3 * np.eye(2))
    )  # fmt: skip
    np.testing.assert_allclose(found.effects[0], b[:, 0] + g @ w @ p["G7"])
    np.testing.assert_allclose(found.effects[1], b[:, 0] + g @ w @ (p["G7"] + p["G8"]))


def test_linear_predicts_genes_with_an_embedding_only(train):
    found = linear(train, [("G7",), ("unmeasured",)])
    assert found.informed.tolist() == [True, False]
    np.testing.assert_allclose(found.effects[1], train.effects.mean(axis=0))
    other = TrainingEffects(("a", "b"), np.zeros(2), (("x",),), np.ones((1, 2)))
    with pytest.raises(ValueError, match="with an embedding"):
        linear(other, [("x",)])


def test_heavy_ridge_predicts_the_centre(train):
    found = linear(train, [("G7",)], ridge=1e12)
    np.testing.assert_allclose(found.effects[0], train.effects[:6].sum(axis=0) / 7, atol=1e-6)


def test_profiles_start_from_the_controls_of_the_target(train):
    control = np.arange(50.0).reshape(2, 25)
    profiles, informed = predict_baselines(train, TARGETS[:2], control)
    assert set(profiles) == set(informed) == set(BASELINES)
    np.testing.assert_allclose(profiles["no_change"], control)
    np.testing.assert_allclose(profiles["additive"] - control, additive(train, TARGETS[:2]).effects)
    unmeasured = TrainingEffects(("a",), np.zeros(1), (("x",),), np.ones((1, 1)))
    assert not {"linear", "shrunken_mean"} & set(predict_baselines(unmeasured, [("y",)])[0])


def test_interpolated_duplicate():
    half, mean = np.array([[1.0, 1.0, 1.0]]), np.zeros(3)
    np.testing.assert_allclose(interpolated_duplicate(half, mean, np.array([[0.0, 0.25, 1.0]])), [[1, 0.75, 0]])
