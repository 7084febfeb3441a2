"""Draws belong to a seed, a cell and a token, and to nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.tokens import kernels
from scgpt_tools.tokens.orders import draws, sample, tie_uniforms


def test_compiled_draws_are_the_plain_ones(rng):
    for _ in range(200):
        seed, key = rng.integers(2**63, size=2, dtype=np.uint64)
        tokens = rng.integers(60_000, size=20)
        state = np.uint64(kernels.cell_state(seed, key, kernels.SAMPLE))
        compiled = [kernels.draw(state, token) for token in tokens]
        assert draws(int(seed), int(key), tokens, int(kernels.SAMPLE)).tolist() == compiled


def test_purposes_have_draws_of_their_own():
    tokens = np.arange(1000)
    ties, samples = draws(1, 2, tokens, int(kernels.TIES)), draws(1, 2, tokens, int(kernels.SAMPLE))
    assert not np.intersect1d(ties, samples).size


@pytest.mark.parametrize("changed", ["seed", "key", "token"])
def test_draws_look_random_along_every_axis(changed):
    """Mean, spread and correlation of neighbours, as of uniform numbers."""
    n = 20_000
    axes = {"seed": np.zeros(n, int), "key": np.zeros(n, int), "token": np.zeros(n, int)}
    axes[changed] = np.arange(n)
    columns = zip(axes["seed"], axes["key"], axes["token"], strict=True)
    uniforms = np.array([tie_uniforms(seed, key, [token])[0] for seed, key, token in columns])
    assert 0 <= uniforms.min()
    assert uniforms.max() < 1
    assert abs(uniforms.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    assert abs(np.corrcoef(uniforms[1:], uniforms[:-1])[0, 1]) < 5 / np.sqrt(n)
    counts = np.histogram(uniforms, bins=20, range=(0, 1))[0]
    assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 60  # chi-squared with 19 degrees of freedom


def test_every_token_is_as_likely_to_stay():
    n, room, repeats = 30, 10, 6000
    often = np.zeros(n)
    for key in range(repeats):
        often[sample(0, key, np.arange(n), room)] += 1
    np.testing.assert_allclose(often / repeats, room / n, atol=5 * np.sqrt(room / n * (1 - room / n) / repeats))


def test_compiled_choice_is_the_plain_one(rng):
    for _ in range(300):
        n = int(rng.integers(1, 3000))
        hashes = rng.integers(2**64, size=n, dtype=np.uint64, endpoint=False)
        if rng.random() < 0.3:  # equal hashes, where a token stands twice
            hashes = rng.choice(hashes, n)
        k = int(rng.integers(0, n + 1))
        kept = np.empty(n, dtype=np.bool_)
        kernels.choose_smallest(hashes, k, kept)
        expected = np.zeros(n, dtype=bool)
        expected[np.argsort(hashes, kind="stable")[:k]] = True
        np.testing.assert_array_equal(kept, expected)
