"""Perturbations predicted by kernel ridge regression on a screen."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import scgpt_tools as sct
from generators import generator
from scgpt_tools.metrics.kernel_ridge import KernelModel
from scgpt_tools.screens.conditions import control_mask
from scgpt_tools.screens.effects import training_effects
from screen_tables import controls, screen

FEW = "fewer than 8 training conditions"


pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def cells():
    return screen(8)


def learnt(adata, trained, contexts=None):
    conditions = adata.obs["condition"].to_numpy(dtype=object)
    where = np.full(adata.n_obs, "", dtype=object) if contexts is None else adata.obs[contexts].to_numpy(dtype=object)
    own = control_mask(conditions)
    return KernelModel.fit(
        training_effects(
            adata.X, conditions, where, perturbed=trained & ~own, controls=trained & own, genes=adata.var_names
        )
    )


def test_controls_are_moved_by_the_effect(cells):
    before = cells.X.copy()
    sct.tl.predict_perturbation(cells, "G3", "kernel", within="batch")
    effect = learnt(cells, np.ones(cells.n_obs, dtype=bool), "batch").predict([("G3",)]).effects
    own = controls(cells)
    np.testing.assert_allclose(
        cells.layers["predicted"][own] - cells.X[own].toarray(), np.tile(effect, (own.sum(), 1)), atol=1e-5
    )
    assert np.isnan(cells.layers["predicted"][~own]).all()
    assert (cells.X != before).nnz == 0
    about = cells.uns["predicted"]
    assert about["model"]["name"] == "kernel"
    assert about["params"]["split"] == "all cells"
    assert about["params"]["condition_key"] == "condition"


def test_what_is_held_out_is_not_learnt_from(cells):
    sct.pp.parse_conditions(cells)
    tested = ["G0+G1", "G2+G3"]
    trained = [name for name in cells.obs["condition"].cat.categories if name not in tested]
    sct.pp.perturbation_split(cells, "custom", parts={"train": trained, "test": tested})
    with pytest.warns(UserWarning, match=FEW):
        sct.tl.predict_perturbation(cells, "G0+G1", "kernel")
    assert cells.uns["predicted"]["params"]["split"] == "split"
    changed, values = cells.copy(), cells.X.toarray()
    values[(cells.obs["condition"] == "G0+G1").to_numpy()] = 0.5
    changed.X = sp.csr_matrix(values)
    with pytest.warns(UserWarning, match=FEW):
        sct.tl.predict_perturbation(changed, "G0+G1", "kernel")
    np.testing.assert_array_equal(changed.layers["predicted"], cells.layers["predicted"])
    cells.obs["other"] = cells.obs["split"].to_numpy()
    with pytest.warns(UserWarning, match=FEW):
        sct.tl.predict_perturbation(cells, "G0+G1", "kernel", split="other")
    assert cells.uns["predicted"]["params"]["split"] == "other"


def test_every_cell_from_its_control(cells):
    with pytest.warns(UserWarning, match=FEW):
        sct.tl.predict_perturbation(cells, model="kernel")
    assert np.isfinite(cells.layers["predicted"]).all()
    own = controls(cells)
    # A control is its own pair or another one, and no effect is added.
    rows = {tuple(row) for row in cells.X[own].toarray().tolist()}
    assert {tuple(row) for row in cells.layers["predicted"][own].tolist()} <= rows


def test_a_layer_is_scored_like_the_row_of_the_table():
    cells = screen(12)
    sct.pp.parse_conditions(cells)
    tested = ["G0+G1", "G2+G3", "G0+G6"]
    trained = [name for name in cells.obs["condition"].cat.categories if name not in tested]
    sct.pp.perturbation_split(cells, "custom", parts={"train": trained, "test": tested})
    with pytest.warns(UserWarning, match=FEW):
        sct.tl.predict_perturbation(cells, model="kernel", key_added="by kernel")
    means = sct.tl.evaluate_perturbation(cells, "by kernel", metrics=["mse", "pearson_control"]).means()
    assert means.loc["by kernel", "mse"] < means.loc["no_change", "mse"]
    assert means.loc["by kernel", "pearson_control"] == pytest.approx(means.loc["kernel", "pearson_control"], abs=0.1)


def test_several_perturbations_and_a_table_of_their_own(cells):
    with pytest.warns(UserWarning, match=FEW):
        found = sct.tl.predict_perturbation(
            cells, ["G3", "G4+G6"], "kernel", as_anndata=True, n_controls=5, batch_size=3
        )
    assert found.shape == (10, cells.n_vars)
    assert list(found.obs["condition"].unique()) == ["G3+ctrl", "G4+G6"]


def test_predicted_cells_may_fall_below_zero_and_are_scored():
    cells = screen(12)
    sct.pp.parse_conditions(cells)
    tested = ["G0+G1", "G2+G3"]
    trained = [name for name in cells.obs["condition"].cat.categories if name not in tested]
    sct.pp.perturbation_split(cells, "custom", parts={"train": trained, "test": tested})
    with pytest.warns(UserWarning, match=FEW):
        found = sct.tl.predict_perturbation(cells, tested, "kernel", as_anndata=True)
    assert found.X.min() < 0
    scores = sct.tl.evaluate_perturbation(reference=cells, prediction={"mine": found}, metrics=["mse"], cells=True)
    means = scores.means()
    assert means.loc["mine", "mse"] < means.loc["no_change", "mse"]
    assert means.loc["mine", "energy"] < means.loc["no_change", "energy"]
    found.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="Expected finite predictions of 'mine'"):
        sct.tl.evaluate_perturbation(reference=cells, prediction={"mine": found})


def test_unseen_genes_are_named(cells):
    with pytest.warns(UserWarning, match=r"1 genes are perturbed in no training condition \(G30\)"):
        sct.tl.predict_perturbation(cells, ["G3", "G30"], "kernel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "all"}, "Expected no `include` with model='kernel'"),
        ({"ignore_case": True}, "Expected no `ignore_case` with model='kernel'"),
        ({"duplicates": "first"}, "Expected no `duplicates` with model='kernel'"),
        ({"device": "cpu"}, "Expected no `device` with model='kernel'"),
        ({"precision": "fp32"}, "Expected no `precision` with model='kernel'"),
        ({"attention": "sdpa"}, "Expected no `attention` with model='kernel'"),
        ({"condition_key": None}, "Expected `condition_key`"),
    ],
)
def test_arguments_that_it_does_not_take(cells, options, message):
    with pytest.raises(ValueError, match=message):
        sct.tl.predict_perturbation(cells, "G3", "kernel", **options)
    assert "predicted" not in cells.layers


def test_a_network_takes_no_split(cells):
    with pytest.raises(ValueError, match="Expected no `split` with a network"):
        sct.tl.predict_perturbation(cells, "G3", generator(cells.var_names), split="split")


def test_a_split_without_training_cells(cells):
    cells.obs["split"] = np.where(controls(cells), "train", "test")
    with pytest.raises(ValueError, match="none in the part 'train'"):
        sct.tl.predict_perturbation(cells, "G3", "kernel")


def test_a_table_of_controls_has_nothing_to_learn_from(cells):
    with pytest.raises(ValueError, match=r"found none in obs\['condition'\]"):
        sct.tl.predict_perturbation(cells[controls(cells)].copy(), "G3", "kernel")


def test_many_perturbations_are_predicted_at_once(cells, monkeypatch):
    asked = []
    predict = KernelModel.predict
    monkeypatch.setattr(KernelModel, "predict", lambda self, sets: asked.append(sets) or predict(self, sets))
    sct.tl.predict_perturbation(cells, ["G3", "G4", "G6"], "kernel")
    assert asked == [[("G3",), ("G4",), ("G6",)]]


def test_it_is_a_baseline_of_every_table(cells):
    for predictions in ("kernel", {"mine": "kernel"}):
        with pytest.raises(ValueError, match="one of them"):
            sct.tl.evaluate_perturbation(cells, predictions)
