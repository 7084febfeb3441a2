"""What every metric says of predictors whose worth is known: perfect, permuted, constant, and of no skill.

The conditions share nothing and are many, so that what a metric has on average is close to what it should have.
"""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.baselines import BASELINES
from scgpt_tools.metrics.distribution import energy_distance, mmd
from scgpt_tools.metrics.effects import TrainingEffects
from scgpt_tools.metrics.panel import METRICS, Truth

N, GENES = 60, 200
ERRORS = ("mse", "mae", "l2_expressed", "mse_de", "mse_weighted")
CORRELATIONS = ("pearson_control", "pearson_control_de", "cosine_control", "pearson_perturbed_mean")
RANKS = ("discrimination_l1", "discrimination_cosine", "discrimination_celleval", "centroid_accuracy")
OTHERS = ("r2_weighted", "direction_de", "interaction")
KINDS = ("permuted", "noise")


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(0)
    control = rng.random(GENES) + 3
    true = control + rng.normal(0, 0.5, (N, GENES))
    targets = np.zeros((N, GENES), dtype=bool)
    targets[np.arange(N), np.arange(N)] = True
    return Truth(
        conditions=tuple(f"c{number}" for number in range(N)),
        true=true,
        control=control,
        perturbed_mean=control + 0.05 * rng.normal(size=GENES),
        scores=true - control,
        weights=np.abs(true - control),
        targets=targets,
        additive=control + rng.normal(0, 0.5, (N, GENES)),
    )


def score(name, predicted, truth):
    """Mean over conditions."""
    return float(np.mean(METRICS[name].compute(np.asarray(predicted), truth)))


def of_kind(kind, name, truth):
    """Mean over several predictions of no skill, which vary as the truth does."""
    rng = np.random.default_rng(1)
    found = []
    for shift in range(1, 7):
        shuffled = np.roll(truth.true, shift, axis=0)
        noise = truth.control + rng.normal(0, 0.5, truth.true.shape)
        found.append(score(name, shuffled if kind == "permuted" else noise, truth))
    return np.mean(found)


def test_no_metric_is_forgotten():
    assert {*ERRORS, *CORRELATIONS, *RANKS, *OTHERS} == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_the_truth_is_perfect(name, truth):
    assert score(name, truth.true, truth) == pytest.approx(METRICS[name].perfect, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_nearer_to_the_truth_the_better(name, share, truth):
    """From no skill to the truth, no metric turns back."""
    noise = truth.control + np.random.default_rng(2).normal(0, 0.5, truth.true.shape)
    near, far = (score(name, truth.true + own * (noise - truth.true), truth) for own in (share - 0.25, share))
    sign = 1 if METRICS[name].higher_is_better else -1
    assert sign * (near - far) >= -1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ERRORS)
def test_errors_without_skill_exceed_those_of_no_change(name, kind, truth):
    still = np.broadcast_to(truth.control, truth.true.shape)
    assert of_kind(kind, name, truth) > 1.1 * score(name, still, truth)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlations_without_skill_are_at_zero(name, kind, truth):
    assert of_kind(kind, name, truth) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*RANKS, "direction_de"])
def test_ranks_and_directions_without_skill_are_at_one_half(name, kind, truth):
    assert of_kind(kind, name, truth) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_explained_variance_without_skill_is_below_zero(kind, truth):
    assert of_kind(kind, "r2_weighted", truth) < -0.4


@pytest.mark.parametrize("kind", KINDS)
def test_interaction_without_skill_has_what_subtracting_the_same_sum_gives(kind, truth):
    """Half of the variance of both sides is that of the sum here."""
    assert of_kind(kind, "interaction", truth) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", [name for name in RANKS if name != "discrimination_celleval"])
def test_one_profile_for_all_is_at_one_half(name, truth):
    same = np.broadcast_to(truth.control + np.random.default_rng(3).normal(0, 0.5, GENES), truth.true.shape)
    assert score(name, same, truth) == pytest.approx(0.5, abs=1e-9)


def test_the_perturbed_mean_explains_nothing_beyond_itself(truth):
    same = np.broadcast_to(truth.perturbed_mean, truth.true.shape)
    # Beyond it there is nothing, and the mean over genes, which variance is taken from, is not even known.
    assert -0.05 < score("r2_weighted", same, truth) <= 0
    assert np.isnan(METRICS["pearson_perturbed_mean"].compute(same, truth)).all()


def test_no_change_has_no_direction_and_no_correlation(truth):
    still = np.broadcast_to(truth.control, truth.true.shape)
    assert score("direction_de", still, truth) == 0
    assert np.isnan(METRICS["pearson_control"].compute(still, truth)).all()


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_distances_of_cells(distance, rng):
    cells, others = rng.normal(size=(2, 300, 5))
    assert distance(cells, rng.permutation(cells)) == pytest.approx(distance(cells, cells))
    same, narrow, moved = distance(cells, others), distance(cells, 0.2 * others), distance(cells, others + 1)
    # Cells that vary too little are far away even with the right mean.
    assert abs(same) < 0.25 * min(narrow, moved)
    assert distance(cells, np.tile(cells.mean(axis=0), (300, 1))) > narrow


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "no_change"])
def test_baselines_make_nothing_of_effects_that_have_nothing_to_do_with_the_genes(name, rng):
    """Training conditions whose labels are drawn say no more than their mean."""
    genes = tuple(f"G{number}" for number in range(40))
    perturbed = [(gene,) for gene in genes[:20]] + [(genes[i], genes[i + 1]) for i in range(12)]
    shared = rng.normal(size=40)
    effects = shared + rng.normal(size=(32, 40))
    train = TrainingEffects(genes, np.zeros(40), tuple(perturbed), effects, errors=np.ones((32, 40)))
    targets = [(genes[i], genes[i + 5]) for i in range(12)]
    true = shared + rng.normal(size=(200, 40))
    error = np.mean((true[:, None] - BASELINES[name](train, targets).effects[None]) ** 2)
    # What remains is the variance of the effects, and what single training conditions are off by.
    assert 1 <= error < (7 if name == "additive" else 2.5)
