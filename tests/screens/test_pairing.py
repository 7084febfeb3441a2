"""Control cells for perturbed cells."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.screens.conditions import control_mask
from scgpt_tools.screens.pairing import pair_controls, pair_controls_gears
from screen_tables import screen


@pytest.fixture
def cells():
    adata = screen()
    return adata.obs["condition"].astype(str).to_numpy(), adata.obs_names.to_numpy(), adata.obs["batch"].to_numpy()


@pytest.mark.parametrize("n", [1, 3])
def test_pairs_share_the_context(cells, n):
    conditions, names, batches = cells
    control = control_mask(conditions)
    pairs = pair_controls(control, names, contexts=batches, n=n)
    assert pairs.shape == (len(names), n)
    assert control[pairs].all()
    assert (batches[pairs] == batches[:, None]).all()
    np.testing.assert_array_equal(pairs[control], np.repeat(np.flatnonzero(control)[:, None], n, axis=1))


def test_the_controls_of_a_cell_differ(cells):
    conditions, names, _ = cells
    control = control_mask(conditions)
    pairs = pair_controls(control, names, n=10)
    assert all(len(set(row)) == 10 for row in pairs[~control])


def test_pairs_do_not_depend_on_the_order_of_cells(cells):
    conditions, names, batches = cells
    control = control_mask(conditions)
    order = np.random.default_rng(1).permutation(len(names))
    pairs = pair_controls(control, names, contexts=batches)[:, 0]
    moved = pair_controls(control[order], names[order], contexts=batches[order])[:, 0]
    np.testing.assert_array_equal(names[pairs][order], names[order][moved])


def test_pairs_do_not_depend_on_other_perturbed_cells(cells):
    conditions, names, _ = cells
    kept = control_mask(conditions) | (conditions == "G1+ctrl")
    pairs = pair_controls(control_mask(conditions), names)[:, 0]
    fewer = pair_controls(control_mask(conditions[kept]), names[kept])[:, 0]
    np.testing.assert_array_equal(names[pairs][kept], names[kept][fewer])


def test_the_seed_decides_and_draws_are_even(cells):
    conditions, names, _ = cells
    control = control_mask(conditions)
    draws = np.concatenate([pair_controls(control, names, seed=seed)[~control, 0] for seed in range(40)])
    counts = np.bincount(draws, minlength=len(names))[control]
    assert counts.sum() == draws.size
    # Poisson around the mean, but for chance.
    assert abs(counts - counts.mean()).max() < 6 * np.sqrt(counts.mean())
    assert (pair_controls(control, names, seed=0) != pair_controls(control, names, seed=1)).any()


def test_gears_draws_one_number_a_cell(cells):
    """The recipe of the original, cell by cell, from the global stream."""
    conditions, _, _ = cells
    controls = np.flatnonzero(conditions == "ctrl")
    expected = np.arange(len(conditions))
    state = np.random.get_state()
    np.random.seed(4)
    for condition in dict.fromkeys(conditions):
        for cell in np.flatnonzero(conditions == condition):
            if condition != "ctrl":
                expected[cell] = controls[np.random.randint(0, len(controls), 1)[0]]
    np.random.set_state(state)
    np.testing.assert_array_equal(pair_controls_gears(conditions, seed=4)[:, 0], expected)


def test_contexts_without_controls_are_named(cells):
    conditions, names, batches = cells
    with pytest.raises(ValueError, match=r"none in 1 \('b'\)"):
        pair_controls(control_mask(conditions) & (batches == "a"), names, contexts=batches)


def test_no_controls_and_repeated_names_are_errors():
    with pytest.raises(ValueError, match="control cells to pair"):
        pair_controls(np.array([False, False]), ["a", "b"])
    with pytest.raises(ValueError, match="control cells to pair"):
        pair_controls_gears(["A+ctrl"])
    with pytest.raises(ValueError, match="unique names"):
        pair_controls(np.array([True, False]), ["a", "a"])
