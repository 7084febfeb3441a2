"""The main job on bundled data, as the first command of the README runs it."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread

import scgpt_tools as sct
from scgpt_tools import cli
from scgpt_tools.datasets import pbmc_demo
from scgpt_tools.demo import RECIPE, run_demo, unseen_cells, untrained_twin
from scgpt_tools.metrics.embedding import score_clusters
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.train.collection import DataConfig, open_collection
from scgpt_tools.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Folder of a small untrained model."""
    vocabulary = Vocabulary.from_genes(pbmc_demo().var_names[:600])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        small = sct.CellModel(scgpt(vocabulary, dim=16, layers=1, heads=2, hidden=16), vocabulary)
    return str(small.save(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "made" / "here"


@pytest.fixture(scope="module")
def demo(model, folder):
    torch.manual_seed(0)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    done = run_demo(folder, model=model)
    assert torch.equal(torch.get_rng_state(), state[0]), "the global generator of torch was used"
    assert np.array_equal(np.random.get_state()[1], state[1]), "the global generator of NumPy was used"
    return done


def test_cells_are_embedded_and_kept(demo, folder):
    written = ad.read_h5ad(folder / "embedded.h5ad")
    assert written.shape == (700, 765)
    for key in ("X_scGPT", "X_untrained", "X_pca"):
        np.testing.assert_array_equal(written.obsm[key], demo.adata.obsm[key])
    assert written.uns["X_scGPT"]["model"]["name"] == "small"
    assert written.uns["X_untrained"]["model"]["name"] == "untrained"


def test_scores_are_those_of_the_embeddings(demo, folder):
    assert list(demo.scores.index) == ["small", "untrained, same size", "PCA, 50 components"]
    assert list(demo.scores.columns) == ["NMI", "ARI", "ASW"]
    labels = demo.adata.obs["cell_type"]
    assert demo.scores.iloc[0].to_list() == pytest.approx(list(score_clusters(demo.adata.obsm["X_scGPT"], labels)))
    assert demo.scores.loc["PCA, 50 components", "NMI"] > 0.5
    written = pd.read_csv(folder / "scores.csv", index_col="embedding")
    pd.testing.assert_frame_equal(written, demo.scores, check_names=False, atol=1e-4)


def test_the_figure_has_something_on_it(demo, folder):
    image = imread(folder / "embedding.png")[..., :3]
    assert image.shape[0] > 400
    assert image.shape[1] > 2 * image.shape[0]
    # Dots of ten types on a white ground.
    assert len(np.unique((image * 255).round().astype(int).reshape(-1, 3), axis=0)) > 50
    assert 0.5 < (image == 1).all(axis=-1).mean() < 0.98
    assert not plt.get_fignums()


def test_the_report_says_what_was_done(demo, folder):
    text = str(demo)
    assert "600 of 765" in text
    assert "700, embedded in 16 dimensions" in text
    for row, value in demo.scores["NMI"].items():
        assert f"{row}" in text
        assert f"{value:.3f}" in text
    assert all(str(folder / file) in text for file in ("scores.csv", "embedding.png", "embedded.h5ad"))


def test_a_perturbation_is_predicted_and_drawn(demo, folder):
    screened = demo.screen
    controls = (screened.obs["condition"] == "ctrl").to_numpy()
    np.testing.assert_array_equal(np.isfinite(screened.layers["predicted"]).all(axis=1), controls)
    assert 0.25 < demo.correlation < 1
    text = str(demo)
    assert f"correlates with the simulated one, from other controls, by {demo.correlation:.2f}" in text
    assert f"from {controls.sum()} controls" in text
    assert str(folder / "perturbation.png") in text
    assert imread(folder / "perturbation.png").shape[0] > 300


def test_cells_of_the_training_are_left_out(tmp_path):
    """Cells are divided by their names alone, as in training."""
    recipe = tmp_path / RECIPE
    names = pbmc_demo().obs_names
    assert unseen_cells(recipe, names).all()
    recipe.write_text("data: {paths: [cells.h5ad], test: 0.2, validation: 0.1, rng: 3}")
    unseen = unseen_cells(recipe, names)
    assert unseen.sum() == 140
    config = DataConfig(paths=("cells.h5ad",), test=0.2, validation=0.1, rng=3)
    pbmc_demo()[::-1].copy().write_h5ad(tmp_path / "cells.h5ad")
    with open_collection(config, tmp_path) as collection:
        assert set(collection.sources[0].names[collection.cells("test")]) == set(names[unseen])
    recipe.write_text("data: {paths: [cells.h5ad]}")
    assert unseen_cells(recipe, names).all()


def test_the_untrained_twin_is_a_matter_of_the_seed(model):
    trained = sct.CellModel.from_pretrained(model)
    assert untrained_twin(trained, 1).checksum == untrained_twin(trained, 1).checksum
    assert untrained_twin(trained, 1).checksum != untrained_twin(trained, 2).checksum != trained.checksum
    assert untrained_twin(trained, 1).config == trained.config
    assert not untrained_twin(trained, 1).training


def test_the_command_prints_the_report(model, demo, tmp_path, capsys):
    output = tmp_path / "twice"
    for _ in range(2):  # its own output may be there already
        assert cli.main(["demo", "--model", model, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PCA, 50 components") == 2
    pd.testing.assert_frame_equal(
        pd.read_csv(output / "scores.csv", index_col="embedding"), demo.scores, check_names=False, atol=1e-4
    )
