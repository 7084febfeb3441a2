"""Fine-tuning as the authors of a model did it, and as this package does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgpt_tools import pp
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.train import FitConfig, driver, finetune
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen


class _Stopped(Exception):
    """Raised in place of training."""


@pytest.fixture
def cells():
    adata = screen(12)
    pp.perturbation_split(adata, draw="stable")
    adata.obs["kind"] = np.resize(["a", "b"], adata.n_obs)
    return adata


@pytest.fixture
def settled(cells, monkeypatch):
    """Settings, and how cells are read, with which a run would begin."""
    found = {}

    def stop(model, data, terms, settings, **rest):
        found.update(settings=settings, model=model, data=data)
        raise _Stopped

    monkeypatch.setattr(driver, "fit", stop)

    def run(task, family="scgpt", **arguments):
        vocabulary = Vocabulary.from_genes(list(cells.var_names))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = {"dim": 16, "layers": 1, "heads": 2}
            model = CellModel(FAMILIES[family](vocabulary, **sizes), vocabulary)
        with pytest.raises(_Stopped):
            finetune(cells, model, task=task, accelerator="cpu", **arguments)
        return found["settings"], found["model"], found["data"]

    return run


ANNOTATE = {"label_key": "kind"}
INTEGRATE = {"batch_key": "batch"}


def test_annotation_of_the_authors_of_scgpt(cells, settled):
    fit, _, data = settled("annotate", recipe="authors", **ANNOTATE)
    assert (fit.epochs, fit.batch_size, fit.lr, fit.patience, fit.max_steps) == (10, 32, 1e-4, None, None)
    assert (fit.schedule, fit.step_factor, fit.step_epochs, fit.weight_decay, fit.clip) == ("step", 0.9, 1, 0.0, 1.0)
    assert len(data.validation) == pytest.approx(0.1 * cells.n_obs, abs=4)
    usual, _, _ = settled("annotate", **ANNOTATE)
    assert usual.epochs > 10
    assert usual.lr > 1e-4


def test_perturbations_of_the_authors_of_scgpt(settled):
    fit, model, _ = settled("perturb", recipe="authors")
    assert (fit.epochs, fit.batch_size, fit.lr, fit.patience) == (15, 64, 1e-4, 10)
    assert (fit.schedule, fit.step_factor, fit.step_epochs, fit.eps) == ("step", 0.9, 1, 1e-8)
    assert (fit.monitor, fit.mode) == ("validation_profile_correlation", "max")
    assert model.config.tokenizer.cells_per_mean == 1
    assert model.config.encoder.dropout == 0
    usual, model, _ = settled("perturb")
    assert usual.epochs > 15
    assert model.config.tokenizer.cells_per_mean == 16


def test_integration_is_that_of_the_authors_anyway(settled):
    fit, _, _ = settled("integrate", recipe="authors", **INTEGRATE)
    assert (fit.epochs, fit.batch_size, fit.lr, fit.schedule, fit.step_factor) == (15, 64, 1e-4, "step", 0.9)
    assert fit == settled("integrate", **INTEGRATE)[0]


@pytest.mark.parametrize(("family", "epochs"), [("scgenept", 20), ("deepsc", 10)])
def test_families_with_a_recipe_of_their_own_keep_it(settled, family, epochs):
    authors, package = settled("perturb", family, recipe="authors"), settled("perturb", family)
    assert authors[0] == package[0]
    assert (authors[0].epochs, authors[0].lr) == (epochs, 1e-4)
    assert authors[1].config.tokenizer.cells_per_mean == 1


def test_arguments_come_before_the_recipe(settled):
    fit, model, _ = settled("perturb", recipe="authors", epochs=3, lr=1e-2, cells_per_mean=4, monitor="validation_loss")
    assert (fit.epochs, fit.lr, fit.batch_size) == (3, 1e-2, 64)
    assert model.config.tokenizer.cells_per_mean == 4
    assert (fit.monitor, fit.mode) == ("validation_loss", "min")


def test_without_cells_to_validate_on_the_last_epoch_is_kept(settled):
    fit, _, _ = settled("perturb", recipe="authors", validation=0)
    assert (fit.monitor, fit.mode, fit.patience, fit.epochs) == (None, "min", None, 15)


def test_what_has_no_recipe_of_its_authors_is_refused(cells):
    vocabulary = Vocabulary.from_genes(list(cells.var_names))
    sizes = {"dim": 16, "layers": 1, "heads": 2}
    model = CellModel(FAMILIES["scgpt"](vocabulary, **sizes), vocabulary)
    cells.obs["age"] = 1.0
    with pytest.raises(ValueError, match="have a recipe for task='regress'"):
        finetune(cells, model, task="regress", target_keys="age", recipe="authors")
    scgenept = CellModel(FAMILIES["scgenept"](vocabulary, model_type="scgpt", **sizes), vocabulary)
    with pytest.raises(ValueError, match="found one of the family 'scgenept'"):
        finetune(cells, scgenept, recipe="authors", **ANNOTATE)
    with pytest.raises(ValueError, match="`recipe` or `config`"):
        finetune(cells, model, recipe="authors", config=FitConfig(), **ANNOTATE)
    with pytest.raises(ValueError, match="Expected `recipe`"):
        finetune(cells, model, recipe="scgpt", **ANNOTATE)
