"""The number of threads is a matter of speed: every task gives the same bits and leaves torch as it was."""

from __future__ import annotations

import threading
import time

import numba
import numpy as np
import pytest
import torch

import scgpt_tools as sct
from generators import generator
from mudatas import make_base, make_mudata, without_pulling
from scgpt_tools import _threads as threads
from scgpt_tools.models import CellModel, executor
from scgpt_tools.models.config import (
    ClassifierConfig,
    Named,
)
from screen_tables import screen as screen_cells


@pytest.fixture(autouse=True)
def _many_small_parts(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(executor, "_TOKENS", 40)
    monkeypatch.setattr(threads, "usable_cpus", lambda **_: 4)
    with sct.settings.override(show_progress=False):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def annotator(make_model) -> CellModel:
    return make_model(config={"heads": Named(cell_type=ClassifierConfig(classes=3, names=("B", "NK", "T")))})


def embedded(adata, model, **how):
    return lambda: sct.tl.embed(adata, model, batch_size=5, copy=True, **how).obsm["X_scGPT"]


def classified(adata, model):
    return lambda: sct.tl.annotate(adata, model, batch_size=5, copy=True).obsm["scgpt_cell_type_probabilities"]


def predicted(cells, model, **how):
    def run():
        result = sct.tl.predict_perturbation(cells, ["G0", "G1+G9"], model, batch_size=5, copy=True, **how)
        # From anndata 0.13 on, X is one of them, without a name.
        return np.stack([result.layers[key] for key in result.layers if key is not None])

    return run


def screened(cells, model):
    def run():
        found = sct.tl.screen(cells, ["G0", "G1+G9"], model, batch_size=5)
        return np.stack([found.X, found.layers["dispersion"]])

    return run


def imputed(mdata, model):
    return lambda: (
        sct.tl.impute(mdata, model, modality="prot", batch_key="batch", copy=True).obsm["prot_imputed"].to_numpy()
    )


@pytest.fixture(
    params=[
        "embed",
        "bf16",
        "mean",
        "sampled",
        "annotate",
        "predict",
        "predict in bf16",
        "screen",
    ]
)
def task(request, adata, make_model, annotator):
    cells = screen_cells(4)
    tasks = {
        "embed": lambda: embedded(adata, make_model()),
        "bf16": lambda: embedded(adata, make_model(), precision="bf16"),
        "mean": lambda: embedded(adata, make_model(), pooling="mean", attention="sdpa"),
        "sampled": lambda: embedded(adata, make_model(ties="random"), length=6, rng=4),
        "annotate": lambda: classified(adata, annotator),
        "predict": lambda: predicted(cells, generator(cells.var_names)),
        "predict in bf16": lambda: predicted(cells, generator(cells.var_names), precision="bf16"),
        "screen": lambda: screened(cells, generator(cells.var_names)),
    }
    return tasks[request.param]()


def check_threads(run) -> None:
    torch.set_num_threads(1)
    expected = run()
    assert np.isfinite(expected).any()
    for number in (2, 4):
        torch.set_num_threads(number)
        np.testing.assert_array_equal(run(), expected)
        assert torch.get_num_threads() == number


def test_results_do_not_depend_on_the_number_of_threads(task):
    check_threads(task)


@pytest.mark.filterwarnings("ignore:var_names are not unique")
def test_nor_do_imputed_values():
    how = {"epochs": 1, "batch_size": 8, "accelerator": "cpu", "rng": 0}
    with without_pulling():
        model = sct.train.finetune(make_mudata(30), make_base(), task="multiomic", batch_key="batch", **how)
    with without_pulling():
        check_threads(imputed(make_mudata(20, seed=9), model))


def test_cells_go_to_several_threads(adata, model, monkeypatch):
    seen, embed = set(), executor._embed

    def slowly(model, part, **how):
        time.sleep(0.01)
        seen.add(here())
        return embed(model, part, **how)

    monkeypatch.setattr(executor, "_embed", slowly)
    torch.set_num_threads(2)
    sct.tl.embed(adata, model, batch_size=2)
    assert len({name for name, _ in seen}) == 2
    assert {inside for _, inside in seen} == {1}


def here() -> tuple[str, int]:
    return threading.current_thread().name, torch.get_num_threads()


def test_it_does_not_matter_that_another_library_sets_the_number(adata, model, monkeypatch):
    """As UMAP does, by numba, before the second embedding of a notebook."""
    seen, embed = set(), executor._embed
    monkeypatch.setattr(executor, "_embed", lambda *part, **how: seen.add(here()[1]) or embed(*part, **how))
    torch.set_num_threads(1)
    expected = embedded(adata, model)()

    @numba.njit(parallel=True)
    def total(values):
        found = 0.0
        for place in numba.prange(len(values)):
            found += values[place]
        return found

    total(np.ones(1000))
    torch.set_num_threads(2)
    np.testing.assert_array_equal(embedded(adata, model)(), expected)
    assert seen == {1}


def test_several_threads_of_a_user_embed_at_once(adata, model):
    torch.set_num_threads(2)
    expected, found = embedded(adata, model)(), {}
    users = [
        threading.Thread(target=lambda user=user: found.update({user: embedded(adata.copy(), model)()}))
        for user in range(4)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(found) == 4
    for embedding in found.values():
        np.testing.assert_array_equal(embedding, expected)


def test_an_error_leaves_torch_as_it_was(adata, model, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a part")

    monkeypatch.setattr(executor, "_embed", fail)
    torch.set_num_threads(2)
    with pytest.raises(KeyError, match="a part"):
        sct.tl.embed(adata, model)
    assert torch.get_num_threads() == 2
    assert not torch.is_inference_mode_enabled()


def test_training_leaves_torch_as_it_was(adata):
    base = make_base()
    torch.set_num_threads(2)
    cells = replace_names(adata, base)
    sct.train.finetune(cells, base, task="annotate", label_key="cell_type", epochs=1, accelerator="cpu", rng=0)
    assert torch.get_num_threads() == 2


def replace_names(adata, model: CellModel):
    """The same cells with genes that the model knows."""
    names = [name for name in model.vocabulary.tokens if not name.startswith("<")][: adata.n_vars]
    cells = adata[:, : len(names)].copy()
    cells.var_names = names
    return cells
