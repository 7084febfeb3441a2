"""Minibatches of controls and the cells that they are to become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools import pp
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.families.scgpt import scgpt_perturbation
from scgpt_tools.screens.annotations import check_log_values
from scgpt_tools.screens.batches import (
    PerturbationBatches,
    context_of_pairs,
    paired_controls,
    screen_parts,
    without_unmapped,
)
from scgpt_tools.screens.conditions import read_conditions
from scgpt_tools.screens.pairing import pair_controls
from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.perturbations import condition_genes
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen


@pytest.fixture
def cells():
    adata = screen(8)
    pp.pair_controls(adata, n=2)
    return adata


@pytest.fixture
def vocabulary(cells) -> Vocabulary:
    return Vocabulary.from_genes(cells.var_names)


@pytest.fixture
def make_data(vocabulary):
    def make(adata, **settings) -> PerturbationBatches:
        features = FeatureTable.from_var(adata.var, vocabulary)
        reading = replace(scgpt_perturbation(vocabulary, dim=8, heads=2).tokenizer, **settings)
        tokens = ScreenTokens.match(features, list(adata.var_names), Tokenizer(reading, vocabulary))
        conditions = read_conditions(adata, "condition")
        pairs = paired_controls(adata, conditions)
        train, validation = screen_parts(adata, conditions, 0.3, controls=True, seed=0)
        return PerturbationBatches(
            RowSource(adata),
            tokens,
            conditions,
            pairs,
            train=train,
            validation=validation,
            contexts=context_of_pairs(adata, None, None),
        )

    return make


def batches(data, part="train", *, seed=0, workers=0):
    return list(data.loader(part, batch_size=16, rng=seed, workers=workers))


def test_inputs_are_paired_controls_and_targets_the_cells(cells, make_data):
    data = make_data(cells)
    dense, pairs = cells.X.toarray(), cells.obsm["ctrl_indices"]
    conditions = cells.obs["condition"].astype(str).to_numpy()
    seen = []
    for batch in batches(data):
        rows = batch.index.numpy()
        np.testing.assert_array_equal(batch.target.numpy(), dense[rows])
        for cell, values, flags in zip(rows, batch.values.numpy(), batch.perturbed.numpy(), strict=True):
            assert any(np.array_equal(values, dense[control]) for control in pairs[cell])
            assert {cells.var_names[column] for column in np.flatnonzero(flags)} == set(
                condition_genes(conditions[cell])
            )
        seen.extend(rows)
    assert sorted(seen) == data.train.tolist()


@pytest.mark.parametrize("choice", [{}, {"length": 9}, {"genes": "batch-wise", "length": 20}], ids=str)
def test_the_target_does_not_reach_the_inputs(cells, make_data, choice):
    """Whatever the perturbed cells hold, the network is shown the same."""
    changed = cells.copy()
    perturbed = np.flatnonzero(changed.obs["condition"] != "ctrl")
    dense = changed.X.toarray()
    dense[perturbed] = np.random.default_rng(5).permutation(dense[perturbed], axis=1)
    changed.X = dense
    before, after = batches(make_data(cells, **choice)), batches(make_data(changed, **choice))
    for one, other in zip(before, after, strict=True):
        for name in ("genes", "values", "mask", "perturbed", "index"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    targets = [torch.equal(one.target, other.target) for one, other in zip(before, after, strict=True)]
    assert not any(targets)


def test_of_many_controls_the_drawn_ones_are_read(cells, make_data):
    del cells.obsm["ctrl_indices"]
    pp.pair_controls(cells, n=5)
    data = make_data(cells)
    some = data.train[:6]
    needed = data.needed(some, seed=3)
    assert set(some) <= set(needed)
    assert len(needed) <= 12
    [(_, there, X)] = data.read(needed)
    np.testing.assert_array_equal(X.toarray(), cells.X.toarray()[there])
    drawn = data.tokenize(data.read(needed), some, seed=3).values
    assert torch.equal(drawn, data.tokenize(data.read(np.arange(cells.n_obs)), some, seed=3).values)


def test_held_out_conditions_and_controls_are_not_trained_on_or_validated_with(cells, make_data):
    data = make_data(cells)
    conditions = cells.obs["condition"].astype(str).to_numpy()
    assert not set(conditions[data.train]) & set(conditions[data.validation])
    assert "ctrl" in conditions[data.train]
    assert "ctrl" not in conditions[data.validation]
    assert data.validation.size


def test_epochs_draw_other_controls_and_validation_the_same(cells, make_data):
    data = make_data(cells)
    loader = data.loader("train", batch_size=1000, rng=0)
    first, second = (next(iter(loader)) for _ in range(2))
    order = [torch.argsort(batch.index) for batch in (first, second)]
    assert not torch.equal(first.values[order[0]], second.values[order[1]])
    one, other = (batches(data, "validation")[0].values for _ in range(2))
    assert torch.equal(one, other)


def test_workers_give_the_same_minibatches(cells, make_data):
    data = make_data(cells, length=9)
    for one, other in zip(batches(data), batches(data, workers=2), strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.genes, other.genes)


def test_genes_without_a_column_are_refused_before_training(cells, make_data):
    with pytest.raises(ValueError, match="no column for G7"):
        make_data(cells[:, [name for name in cells.var_names if name != "G7"]].copy())


def test_pairs_are_taken_or_drawn(cells):
    conditions = read_conditions(cells, "condition")
    np.testing.assert_array_equal(paired_controls(cells, conditions), cells.obsm["ctrl_indices"])
    drawn = paired_controls(cells, conditions, within="batch", seed=4)
    expected = pair_controls(conditions == "ctrl", cells.obs_names, contexts=cells.obs["batch"], seed=4)
    np.testing.assert_array_equal(drawn, expected)
    assert context_of_pairs(cells, None, None, "random") is None
    np.testing.assert_array_equal(
        paired_controls(cells, conditions, pairing="random"), pair_controls(conditions == "ctrl", cells.obs_names)
    )
    transported = paired_controls(cells, conditions, within="batch", pairing="transport", seed=4)
    again = pp.pair_controls(cells, method="transport", within="batch", rng=4, copy=True).obsm["ctrl_indices"]
    np.testing.assert_array_equal(transported, again)
    assert (transported != drawn).any()
    with pytest.raises(ValueError, match="Expected `pairs` or `pairing`"):
        paired_controls(cells, conditions, pairs="ctrl_indices", pairing="random")
    cells.obsm["mine"] = np.zeros((cells.n_obs, 1), dtype=int) + int(np.flatnonzero(conditions != "ctrl")[0])
    cells.uns["mine"] = cells.uns["ctrl_indices"]
    with pytest.raises(ValueError, match="pairs with controls only"):
        paired_controls(cells, conditions, pairs="mine")
    with pytest.raises(KeyError, match=r"Run pp\.pair_controls first"):
        paired_controls(cells, conditions, pairs="other")


def test_parts_come_from_a_column(cells):
    conditions = read_conditions(cells, "condition")
    pp.cell_split(cells, "batch", test=["b"])
    train, held = screen_parts(cells, conditions, "split", controls=False, seed=0)
    assert set(cells.obs["batch"].iloc[train]) == {"a"}
    assert "ctrl" not in conditions[train]
    assert held.size == 0
    cells.obs["split"] = "test"
    with pytest.raises(ValueError, match="found none in the part 'train'"):
        screen_parts(cells, conditions, "split", controls=True, seed=0)
    with pytest.raises(KeyError, match="Did you mean 'split'"):
        screen_parts(cells, conditions, "splitt", controls=True, seed=0)


def test_cells_of_unmapped_conditions_can_be_left_out(cells, vocabulary):
    few = cells[:, [name for name in cells.var_names if name not in ("G0", "G7")]].copy()
    features = FeatureTable.from_var(few.var, vocabulary)
    reading = Tokenizer(scgpt_perturbation(vocabulary, dim=8, heads=2).tokenizer, vocabulary)
    tokens = ScreenTokens.match(features, list(few.var_names), reading)
    conditions = read_conditions(few, "condition")
    with pytest.warns(UserWarning, match=r"5 conditions \(80 cells\) are left out.*no column for G0, G7"):
        kept = without_unmapped(tokens, conditions, np.arange(few.n_obs))
    assert not any({"G0", "G7"} & set(condition_genes(name)) for name in set(conditions[kept]))


def test_counts_are_refused(cells):
    cells.layers["counts"] = np.rint(np.expm1(cells.X.toarray()))
    with pytest.raises(ValueError, match=r"log-normalised expression in layers\['counts'\], found whole numbers"):
        check_log_values(RowSource(cells, layer="counts"))
    check_log_values(RowSource(cells))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_means_are_of_cells_of_the_same_part_condition_and_context(cells, make_data, part):
    pp.pair_controls(cells, within="batch")
    conditions = cells.obs["condition"].astype(str).to_numpy()
    # Every cell tells its condition, its context and whether it may be averaged by the value of a gene.
    codes = np.unique(conditions + cells.obs["batch"].to_numpy(), return_inverse=True)[1]
    dense = cells.X.toarray()
    dense[:, 0] = 10 * codes + 1
    cells.X = sp.csr_matrix(dense)
    data = make_data(cells, cells_per_mean=5)
    others = np.setdiff1d(np.arange(cells.n_obs), getattr(data, part))
    seen = []
    for batch in batches(data, part):
        rows, target, values = batch.index.numpy(), batch.target.numpy(), batch.values.numpy()
        np.testing.assert_allclose(target[:, 0], dense[rows, 0], rtol=1e-6)
        # The cell is one of those that are averaged, so its values can be taken off.
        rest = 5 * target - dense[rows]
        assert (rest > -1e-4).all()
        controls = np.array([f"ctrl{batch}" for batch in cells.obs["batch"].to_numpy()[rows]])
        known = np.unique(conditions + cells.obs["batch"].to_numpy())
        np.testing.assert_allclose(values[:, 0], 10 * np.searchsorted(known, controls) + 1, rtol=1e-6)
        seen.extend(rows)
    assert sorted(seen) == getattr(data, part).tolist()
    drawn = data.partners.of(getattr(data, part), 40, seed=1)
    assert not np.isin(drawn, others).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_of_cells_to_average_with_those_that_are_drawn_are_read(cells, make_data, monkeypatch, workers):
    """A chunk of a large table touches most conditions, so that all of their cells would be all of the table."""
    data = make_data(cells, cells_per_mean=2)
    source, read = data.tables[0].source, []
    take = source.take
    monkeypatch.setattr(type(source), "take", lambda self, rows: read.append(len(rows)) or take(rows))
    loader = data.loader("train", batch_size=2, rng=0, workers=workers)
    monkeypatch.setattr(loader, "AHEAD", 3)
    assert sum(len(batch) for batch in loader) == len(data.train)
    # Three minibatches of two cells, each with another and both with their controls.
    most = 3 * 2 * 2 * (1 + data.pairs.shape[1])
    assert max(read) <= most < len(data.train)


def test_means_are_drawn_anew_every_epoch_and_alike_to_validate(cells, make_data):
    data = make_data(cells, cells_per_mean=4)
    loader = data.loader("train", batch_size=1000, rng=0)
    first, second = (batch for _ in range(2) for batch in loader)
    order, again = (np.argsort(batch.index.numpy()) for batch in (first, second))
    assert not np.allclose(first.target.numpy()[order], second.target.numpy()[again])
    held = data.loader("validation", batch_size=1000, rng=0)
    before, after = list(held), list(held)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.target.numpy(), other.target.numpy())
