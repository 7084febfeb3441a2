"""Kernel ridge regression of effects on perturbed genes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from scgpt_tools.metrics.combining import additive, scaled_additive
from scgpt_tools.metrics.effects import TrainingEffects
from scgpt_tools.metrics.kernel_ridge import ENOUGH, KernelModel, KernelSettings, kernel

GENES = tuple(f"G{i}" for i in range(30))
PAIRS = list(combinations(GENES[:8], 2))


def screen(rng, *, share=0.7, pairs=PAIRS[:14], noise=0.1, programs=3):
    """Effects of 8 genes through a few programs, and of pairs as a share of their sum."""
    effects = rng.normal(size=(8, programs)) @ rng.normal(size=(programs, 30))
    single = dict(zip(GENES[:8], effects, strict=True))
    true = {genes: (share if len(genes) > 1 else 1) * sum(single[gene] for gene in genes) for genes in PAIRS}
    perturbed = (*((gene,) for gene in single), *pairs)
    seen = np.stack([single[genes[0]] if len(genes) == 1 else true[genes] for genes in perturbed])
    train = TrainingEffects(GENES, np.zeros(30), perturbed, seen + rng.normal(size=seen.shape) * noise)
    return train, true


def error(prediction, true, targets):
    return np.mean((prediction.effects - np.stack([true[genes] for genes in targets])) ** 2)


def test_pairs_are_learnt_from_singles_and_other_pairs(rng):
    train, true = screen(rng, noise=0.5)
    found = kernel(train, PAIRS[14:])
    assert found.informed.all()
    assert error(found, true, PAIRS[14:]) < error(scaled_additive(train, PAIRS[14:]), true, PAIRS[14:])
    assert error(found, true, PAIRS[14:]) < 0.5 * error(additive(train, PAIRS[14:]), true, PAIRS[14:])


def test_without_ridge_and_likeness_it_is_the_scaled_sum(rng):
    train, _ = screen(rng, pairs=())
    exact = KernelModel(train, KernelSettings(scale=0.6, similarity=0.0, ridge=1e-9))
    targets = [("G0",), ("G1", "G2"), ("G0", "G1", "G2")]
    np.testing.assert_allclose(
        exact.predict(targets).effects, scaled_additive(train, targets).effects, rtol=1e-5, atol=1e-6
    )


def test_heavy_ridge_leaves_the_mean_of_singles(rng):
    train, _ = screen(rng, pairs=())
    flat = KernelModel(train, KernelSettings(ridge=1e9, scale=0.5)).predict([("G1",), ("G0", "G1"), ("new",)])
    np.testing.assert_allclose(flat.effects, np.tile(train.effects.mean(axis=0), (3, 1)), atol=1e-6)


def test_unseen_genes_count_with_the_mean(rng):
    train, _ = screen(rng)
    found = kernel(train, [("new",), ("G0", "new"), ("G0", "G1")])
    assert found.informed.tolist() == [False, False, True]
    np.testing.assert_allclose(found.effects[0], train.effects[:8].mean(axis=0))


def test_leaving_out_is_predicting_from_the_others(rng):
    """The closed form has the errors of as many models that never saw the condition."""
    train, _ = screen(rng, noise=0.5)
    cells = np.arange(len(train.perturbed)) + 5
    train = TrainingEffects(GENES, train.control, train.perturbed, train.effects, cells)
    model = KernelModel(train, KernelSettings(pairs=0.1))
    rows = list(range(8, 12))
    expected, settings = model._left_out(rows)
    shared = model._between(train.perturbed)
    errors = []
    for row in rows:
        others = np.delete(np.arange(len(cells)), row)
        noise = settings.ridge * np.median(cells) / cells[others]
        weights = np.linalg.solve(
            shared[0][np.ix_(others, others)] + np.diag(noise), (train.effects - shared[1])[others]
        )
        errors.append(shared[1][row] + shared[0][row, others] @ weights - train.effects[row])
    np.testing.assert_allclose(expected, np.mean(np.square(errors)))


def test_pairs_of_genes_by_their_definition(rng):
    train, _ = screen(rng)
    plain, paired = (KernelModel(train, KernelSettings(pairs=v))._between(train.perturbed)[0] for v in (0.0, 0.5))
    alike = KernelModel(train)._between([(gene,) for gene in GENES[:8]])[0]
    place = {gene: number for number, gene in enumerate(GENES)}
    expected = np.zeros_like(plain)
    for row, first in enumerate(train.perturbed):
        for column, second in enumerate(train.perturbed):
            if len(first) == len(second) == 2:
                (a, b), (c, d) = ([place[gene] for gene in own] for own in (first, second))
                expected[row, column] = alike[a, c] * alike[b, d] + alike[a, d] * alike[b, c]
    np.testing.assert_allclose(paired - plain, 0.5 * expected, atol=1e-12)
    assert np.linalg.eigvalsh(paired).min() > -1e-9


def test_conditions_of_few_cells_count_less(rng):
    train, _ = screen(rng, pairs=())
    off = train.effects.copy()
    off[0] += 10
    targets = [("G0",)]

    def moved(cells):
        n_cells = np.array([cells, *[100] * 7])
        first, second = (
            TrainingEffects(GENES, np.zeros(30), train.perturbed, e, n_cells) for e in (train.effects, off)
        )
        return np.abs(kernel(second, targets).effects - kernel(first, targets).effects).mean()

    assert moved(2) < 0.5 * moved(100)


def test_what_speaks_against_it(rng):
    train, _ = screen(rng)
    assert KernelModel.fit(train).doubt() is None
    few, _ = screen(rng, pairs=PAIRS[: ENOUGH - 1])
    model = KernelModel.fit(few)
    assert not model.left_out
    assert "fewer than 8" in model.doubt()
    noise = rng.normal(size=train.effects.shape)
    unrelated = KernelModel.fit(TrainingEffects(GENES, train.control, train.perturbed, noise))
    assert unrelated.left_out["kernel"] >= unrelated.left_out["no_change"]
    assert "no better" in unrelated.doubt()


def test_a_condition_in_two_contexts_is_left_out_of_both(rng):
    """Else it is predicted from itself, and pairs that tell nothing of each other seem to."""
    single, paired = rng.normal(size=(8, 30)), rng.normal(size=(14, 30))
    effects = np.concatenate([single, paired])
    perturbed = (*((gene,) for gene in GENES[:8]), *PAIRS[:14])
    twice = np.concatenate([effects, effects]) + rng.normal(size=(44, 30)) * 0.1
    swapped = tuple(genes[::-1] for genes in perturbed)
    model = KernelModel.fit(TrainingEffects(GENES, np.zeros(30), perturbed + swapped, twice, np.full(44, 20)))
    once = KernelModel.fit(
        TrainingEffects(GENES, np.zeros(30), perturbed, (twice[:22] + twice[22:]) / 2, np.full(22, 40))
    )
    assert model.settings == once.settings
    assert model.left_out == pytest.approx(once.left_out)
    assert "no better" in model.doubt()
    few = (*perturbed[:8], *PAIRS[: ENOUGH - 1])
    both = TrainingEffects(GENES, np.zeros(30), few + few, rng.normal(size=(2 * len(few), 30)))
    assert "fewer than 8" in KernelModel.fit(both).doubt()


@pytest.mark.parametrize("perturbed", [[("G0", "G1")], [("G0",)], [("G0", "G1", "G2"), ("G3", "G4")]])
def test_few_conditions_of_any_size_do(rng, perturbed):
    train = TrainingEffects(GENES, np.zeros(30), tuple(perturbed), rng.normal(size=(len(perturbed), 30)))
    found = kernel(train, [("G0",), ("G0", "G1"), ("G7", "G8", "G9")])
    assert np.isfinite(found.effects).all()


def test_vectors_tell_of_unseen_genes(rng):
    """Genes with similar vectors have similar effects, and so do those that were never perturbed."""
    vectors = rng.normal(size=(40, 4))
    effects = vectors @ rng.normal(size=(4, 30)) + rng.normal(size=(40, 30)) * 0.1
    names = [f"P{number}" for number in range(40)]
    train = TrainingEffects(GENES, np.zeros(30), tuple((name,) for name in names[:30]), effects[:30])
    told = dict(zip(names, vectors, strict=True))
    targets = [(name,) for name in names[30:]]
    found, alone = kernel(train, targets, perturbation_embedding=told), kernel(train, targets)
    assert found.informed.all()
    assert not alone.informed.any()
    assert np.mean((found.effects - effects[30:]) ** 2) < 0.4 * np.mean((alone.effects - effects[30:]) ** 2)
    # Of genes that were seen, and of those without a vector, nothing changes.
    others = [("P1",), ("P1", "P2"), ("nobody",)]
    again = kernel(train, others, perturbation_embedding=told)
    np.testing.assert_array_equal(again.effects, kernel(train, others).effects)
    assert again.informed.tolist() == [True, True, False]
