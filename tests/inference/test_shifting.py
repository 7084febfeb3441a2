"""Controls that are moved by the mean change that a model predicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import scgpt_tools as sct
from generators import generator
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.perturbation import open_predictor
from screen_tables import controls, screen

pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def cells():
    return screen(6)


@pytest.fixture
def model(cells):
    return generator(cells.var_names)


def test_every_control_is_moved_by_the_mean_change(cells, model):
    own = controls(cells)
    start = cells.X[own].toarray()
    sct.tl.predict_perturbation(cells, ["G0", "G1+G9"], model)
    sct.tl.predict_perturbation(cells, ["G0", "G1+G9"], model, shift_controls=True, batch_size=3, key_added="moved")
    for name in ("G0", "G1+G9"):
        predicted, moved = cells.layers[f"predicted_{name}"], cells.layers[f"moved_{name}"]
        change = predicted[own].mean(axis=0) - start.mean(axis=0)
        np.testing.assert_allclose(moved[own], (start + change).clip(min=0), atol=1e-5)
        assert np.isnan(moved[~own]).all()
    assert cells.uns["moved"]["params"]["shift_controls"]
    assert not cells.uns["predicted"]["params"]["shift_controls"]


def test_each_context_has_a_change_of_its_own(cells, model):
    own = controls(cells)
    batch = cells.obs["batch"].to_numpy()
    for key, shift in (("plain", False), ("moved", True)):
        sct.tl.predict_perturbation(cells, "G0", model, within="batch", shift_controls=shift, key_added=key)
    for name in np.unique(batch):
        here = own & (batch == name)
        start = cells.X[here].toarray()
        change = cells.layers["plain"][here].mean(axis=0) - start.mean(axis=0)
        np.testing.assert_allclose(cells.layers["moved"][here], (start + change).clip(min=0), atol=1e-5)


def test_each_cell_under_its_own_condition(cells, model):
    sct.pp.pair_controls(cells)
    sct.tl.predict_perturbation(cells, model=model, key_added="plain")
    sct.tl.predict_perturbation(cells, model=model, shift_controls=True, key_added="moved")
    for name in ("G0+ctrl", "ctrl"):
        rows = np.flatnonzero(cells.obs["condition"] == name)
        start = cells.X[cells.obsm["ctrl_indices"][rows, 0]].toarray()
        change = cells.layers["plain"][rows].mean(axis=0) - start.mean(axis=0)
        np.testing.assert_allclose(cells.layers["moved"][rows], (start + change).clip(min=0), atol=1e-5)


def test_models_of_means_move_single_cells_by_the_change_of_means(cells, model):
    means = model.adapt(tokenizer=replace(model.config.tokenizer, cells_per_mean=7)).eval()
    found = {
        shift: sct.tl.predict_perturbation(cells, "G0", means, shift_controls=shift, as_anndata=True).X
        for shift in (False, True)
    }
    own = np.flatnonzero(controls(cells))
    conditions = cells.obs["condition"].to_numpy(dtype=object)
    rows = open_predictor(cells, means, Request()).beside(own, conditions, None)
    assert rows.shape == (len(own), 7)
    values = cells.X.toarray()
    change = found[False].mean(axis=0) - values[rows].mean(axis=(0, 1))
    np.testing.assert_allclose(found[True], (values[own] + change).clip(min=0), atol=1e-5)


def test_without_a_network_and_with_several(cells, model):
    sct.tl.predict_perturbation(cells, "G3", "kernel", key_added="plain")
    sct.tl.predict_perturbation(cells, "G3", "kernel", shift_controls=True, key_added="moved")
    np.testing.assert_allclose(cells.layers["moved"], cells.layers["plain"].clip(min=0), atol=1e-5)
    several = [model, generator(cells.var_names, seed=1)]
    sct.tl.predict_perturbation(cells, "G3", several, shift_controls=True)
    own = controls(cells)
    assert cells.layers["predicted"][own].min() >= 0
    assert np.isfinite(cells.varm["predicted_spread"]["G3"]).all()
