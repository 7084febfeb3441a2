"""Predictions of perturbations by several models."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch

import scgpt_tools as sct
from generators import generator
from screen_tables import controls, screen

pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def cells():
    return screen(4)


@pytest.fixture
def models(cells):
    return [generator(cells.var_names, seed=seed) for seed in range(3)]


def alone(cells, models, perts="G0+G1"):
    return np.stack(
        [sct.tl.predict_perturbation(cells, perts, model, copy=True).layers["predicted"] for model in models]
    )


def test_the_mean_over_models_is_written_and_how_far_they_are_apart(cells, models, tmp_path):
    each = alone(cells, models)
    sct.tl.predict_perturbation(cells, "G0+G1", models, batch_size=3)
    own = controls(cells)
    np.testing.assert_allclose(cells.layers["predicted"][own], each.mean(axis=0)[own], atol=1e-5)
    assert np.isnan(cells.layers["predicted"][~own]).all()
    spread = cells.varm["predicted_spread"]
    assert list(spread.columns) == ["G0+G1"]
    assert list(spread.index) == list(cells.var_names)
    np.testing.assert_allclose(spread["G0+G1"], each[:, own].mean(axis=1).std(axis=0, ddof=1), atol=1e-5)
    about = cells.uns["predicted"]["model"]
    assert about["checksum"].split(", ") == [model.checksum for model in models]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert list(ad.read_h5ad(tmp_path / "cells.h5ad").varm["predicted_spread"].columns) == ["G0+G1"]


def test_several_perturbations_and_each_cells_own(cells, models):
    sct.tl.predict_perturbation(cells, ["G0", "G1+G9"], models)
    assert list(cells.varm["predicted_spread"].columns) == ["G0", "G1+G9"]
    each = alone(cells, models, "G0")
    np.testing.assert_allclose(
        cells.varm["predicted_spread"]["G0"],
        each[:, controls(cells)].mean(axis=1).std(axis=0, ddof=1),
        atol=1e-5,
    )
    sct.tl.predict_perturbation(cells, None, models, key_added="own")
    conditions = {name.removesuffix("+ctrl") for name in cells.obs["condition"].unique()}
    assert set(cells.varm["own_spread"].columns) == conditions
    assert np.isfinite(cells.varm["own_spread"].to_numpy()).all()


def test_a_table_of_its_own_has_the_spread_too(cells, models):
    found = sct.tl.predict_perturbation(cells, ["G0", "G3"], models, as_anndata=True, n_controls=4)
    assert list(found.varm["predicted_spread"].columns) == ["G0", "G3"]
    assert not len(cells.varm)
    mean = np.mean(
        [sct.tl.predict_perturbation(cells, "G0", one, as_anndata=True, n_controls=4).X for one in models], axis=0
    )
    np.testing.assert_allclose(found[:4].X, mean, atol=1e-5)


def test_one_model_has_no_spread_and_takes_that_of_several_away(cells, models):
    sct.tl.predict_perturbation(cells, "G0", models)
    sct.tl.predict_perturbation(cells, "G0", models[:1])
    assert "predicted_spread" not in cells.varm
    np.testing.assert_array_equal(cells.layers["predicted"], alone(cells, models[:1], "G0")[0])


def test_saved_models_and_loaded_ones(cells, models, tmp_path):
    models[1].save(tmp_path / "second")
    mixed = sct.tl.predict_perturbation(cells, "G0", [models[0], tmp_path / "second"], device="cpu", copy=True)
    both = sct.tl.predict_perturbation(cells, "G0", models[:2], copy=True)
    np.testing.assert_array_equal(mixed.layers["predicted"], both.layers["predicted"])


def broken(model):
    with torch.no_grad():
        model.embedder.perturbation.weight.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda cells: [], "Expected one `model` or more, found an empty list"),
        (lambda cells: [generator(cells.var_names), "kernel"], "Expected networks to average, found 'kernel'"),
        (lambda cells: [generator(cells.var_names), generator(cells.var_names[:-1])], "same genes of the table, found 40 and 39"),
        (lambda cells: [generator(cells.var_names), broken(generator(cells.var_names, seed=1))], "NaN"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged(cells, others, message):
    with pytest.raises(ValueError, match=message):
        sct.tl.predict_perturbation(cells, "G0", others(cells))
    assert "predicted" not in cells.layers
    assert not len(cells.varm)


def test_models_of_means_of_cells_and_of_single_cells(cells, models):
    config = models[1].config.tokenizer
    means = models[1].adapt(tokenizer=replace(config, cells_per_mean=7)).eval()
    with pytest.raises(ValueError, match="trained on means of as many cells, found 1 and 7"):
        sct.tl.predict_perturbation(cells, "G0", [models[0], means])
    each = alone(cells, [means, means], "G0")
    sct.tl.predict_perturbation(cells, "G0", [means, means])
    np.testing.assert_allclose(cells.layers["predicted"], each[0], atol=1e-6)
    np.testing.assert_allclose(cells.varm["predicted_spread"], 0, atol=1e-6)


def test_a_name_that_is_taken(cells, models):
    cells.varm["mine_spread"] = np.zeros((cells.n_vars, 2))
    with pytest.raises(ValueError, match=r"found varm\['mine_spread'\]"):
        sct.tl.predict_perturbation(cells, "G0", models, key_added="mine")
