"""Control cells for perturbed cells by optimal transport."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from scgpt_tools.screens import transport
from scgpt_tools.screens.conditions import control_mask
from scgpt_tools.screens.pairing import pair_controls
from scgpt_tools.screens.transport import components, pair_by_transport
from screen_tables import screen


@pytest.fixture
def cells():
    """Control or not, names, conditions, positions and batches of the cells of a screen."""
    adata = screen()
    conditions = adata.obs["condition"].astype(str).to_numpy()
    names, batches = adata.obs_names.to_numpy(), adata.obs["batch"].to_numpy()
    return control_mask(conditions), names, conditions, adata.X.toarray(), batches


def shares(pairs, controls) -> np.ndarray:
    """How often each control is taken."""
    return np.bincount(pairs.ravel(), minlength=controls.size)[controls]


def apart(vectors, pairs, rows) -> float:
    return float(((vectors[rows][:, None] - vectors[pairs[rows]]) ** 2).sum(axis=-1).mean())


@pytest.mark.parametrize("n", [1, 3])
def test_pairs_share_the_context_and_are_nearer_than_random_ones(cells, n):
    control, names, conditions, vectors, batches = cells
    pairs = pair_by_transport(control, names, conditions, vectors, contexts=batches, n=n)
    assert pairs.shape == (len(names), n)
    assert control[pairs].all()
    assert (batches[pairs] == batches[:, None]).all()
    np.testing.assert_array_equal(pairs[control], np.repeat(np.flatnonzero(control)[:, None], n, axis=1))
    drawn = pair_controls(control, names, contexts=batches, n=n)
    assert apart(vectors, pairs, ~control) < 0.9 * apart(vectors, drawn, ~control)


def test_cells_that_all_move_alike_find_the_controls_they_were():
    random = np.random.default_rng(0)
    before, order = random.normal(size=(60, 5)), random.permutation(60)
    vectors = np.concatenate([before, before[order] + [40.0, -7, 0, 0, 0.5]])
    control = np.arange(120) < 60
    pairs = pair_by_transport(control, np.arange(120), np.where(control, "ctrl", "A+ctrl"), vectors)
    np.testing.assert_array_equal(pairs[60:, 0], order)


def test_no_other_assignment_is_nearer():
    vectors = np.random.default_rng(1).normal(size=(12, 3))
    control = np.arange(12) < 6
    pairs = pair_by_transport(control, np.arange(12), np.where(control, "ctrl", "A+ctrl"), vectors)
    distances = cdist(vectors[6:], vectors[:6], "sqeuclidean")
    best = min(distances[np.arange(6), list(order)].sum() for order in permutations(range(6)))
    assert distances[np.arange(6), pairs[6:, 0]].sum() == pytest.approx(best)


@pytest.mark.parametrize("block", [1024, 10])
@pytest.mark.parametrize(("controls", "n"), [(40, 1), (40, 4), (5, 1), (5, 3), (5, 9), (1, 2)])
def test_controls_have_equal_shares(monkeypatch, controls, n, block):
    """Also where they are fewer than cells, and where one of them is near to all cells."""
    monkeypatch.setattr(transport, "_BLOCK", block)
    vectors = np.random.default_rng(2).normal(size=(controls + 17, 2))
    vectors[1:controls] += 9
    control = np.arange(controls + 17) < controls
    pairs = pair_by_transport(control, np.arange(control.size), np.where(control, "ctrl", "A+ctrl"), vectors, n=n)
    taken = shares(pairs[controls:], np.flatnonzero(control))
    assert taken.sum() == 17 * n
    assert taken.max() - taken.min() <= 1
    if 17 * n <= controls:
        assert all(len(set(row)) == n for row in pairs[controls:])


def test_of_more_controls_a_fair_sample_is_taken():
    """The mean of the controls does not follow that of the cells."""
    random = np.random.default_rng(3)
    vectors = np.concatenate([random.normal(size=(900, 2)), random.normal(size=(60, 2)) + [3, 0]])
    control = np.arange(960) < 900
    conditions = np.where(control, "ctrl", "A+ctrl")
    means = [
        vectors[pair_by_transport(control, np.arange(960), conditions, vectors, seed=seed)[900:, 0]].mean(axis=0)
        for seed in range(30)
    ]
    assert abs(np.mean(means, axis=0)).max() < 4 / np.sqrt(30 * 60)
    assert len(np.unique(means, axis=0)) == 30


def test_the_first_control_of_a_cell_is_any_of_its_controls(cells):
    control, names, conditions, vectors, _ = cells
    pairs = pair_by_transport(control, names, conditions, vectors, n=4)
    places = [apart(vectors, pairs[:, [place]], ~control) for place in range(4)]
    assert max(places) < 1.1 * min(places)


def test_pairs_depend_neither_on_the_order_of_cells_nor_on_other_conditions(cells):
    control, names, conditions, vectors, batches = cells
    pairs = pair_by_transport(control, names, conditions, vectors, contexts=batches)[:, 0]
    order = np.random.default_rng(1).permutation(len(names))
    moved = pair_by_transport(control[order], names[order], conditions[order], vectors[order], contexts=batches[order])[
        :, 0
    ]
    np.testing.assert_array_equal(names[pairs][order], names[order][moved])
    kept = control | (conditions == "G1+ctrl")
    fewer = pair_by_transport(control[kept], names[kept], conditions[kept], vectors[kept], contexts=batches[kept])[:, 0]
    np.testing.assert_array_equal(names[pairs][kept], names[kept][fewer])


def test_what_is_refused_of_random_pairs_is_refused(cells):
    control, names, conditions, vectors, batches = cells
    with pytest.raises(ValueError, match=r"none in 1 \('b'\)"):
        pair_by_transport(control & (batches == "a"), names, conditions, vectors, contexts=batches)
    with pytest.raises(ValueError, match="control cells to pair"):
        pair_by_transport(control & False, names, conditions, vectors)
    with pytest.raises(ValueError, match="`n` to be at most 1024"):
        pair_by_transport(control, names, conditions, vectors, n=1025)
    with pytest.raises(ValueError, match="unique names"):
        pair_by_transport(control, np.full(len(names), "a"), conditions, vectors)


def test_how_near_the_pairs_are_is_logged(cells, caplog):
    control, names, conditions, vectors, _ = cells
    caplog.set_level("INFO", logger="scgpt_tools")
    pair_by_transport(control, names, conditions, vectors)
    pair_by_transport(control, names, conditions, np.zeros((len(names), 1)))
    first, second = (record.args[0] for record in caplog.records)
    assert 0 < first < 1
    assert second == 1


def test_components_keep_the_distances_of_few_genes_and_most_of_those_of_many():
    random = np.random.default_rng(4)
    few = sp.random(30, 20, 0.5, random_state=random, format="csr")
    np.testing.assert_array_equal(components(few), few.toarray())
    many = sp.csr_matrix(random.random((80, 3)) @ random.random((3, 400)) + 0.01 * random.random((80, 400)))
    found = components(many, seed=2**40)
    assert found.shape == (80, 50)
    np.testing.assert_allclose(cdist(found, found), cdist(many.toarray(), many.toarray()), rtol=0.1)
    assert components(many[:20]).shape == (20, 19)
    for genes in (20, 400):
        with pytest.raises(ValueError, match="found all alike"):
            components(sp.csr_matrix(np.ones((6, genes))))
