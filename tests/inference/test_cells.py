"""A table is opened once a call, and its unit is guessed once, however many models read it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from generators import generator
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models import CellModel
from screen_tables import screen


@pytest.fixture
def opened(monkeypatch):
    """Numbers of tables that were opened and looked at."""
    counts = {"opened": 0, "looked at": 0}
    begin, sample = RowSource.__init__, RowSource.sample

    def counting_begin(self, *args, **options):
        counts["opened"] += 1
        begin(self, *args, **options)

    def counting_sample(self):
        counts["looked at"] += 1
        return sample(self)

    monkeypatch.setattr(RowSource, "__init__", counting_begin)
    monkeypatch.setattr(RowSource, "sample", counting_sample)
    return counts


def test_embeddings(opened):
    names = CellModel.from_pretrained("scgpt-demo", device="cpu").vocabulary.tokens[5:45]
    counts = np.random.default_rng(0).poisson(1.0, (6, 40)).astype(np.float32)
    sct.tl.embed(ad.AnnData(counts, var=pd.DataFrame(index=names)), "scgpt-demo", device="cpu")
    assert opened == {"opened": 1, "looked at": 1}


@pytest.mark.filterwarnings("ignore:The predictions of:UserWarning")
@pytest.mark.parametrize("task", ["predict", "screen", "evaluate"])
def test_perturbations(opened, task):
    cells = screen(6)
    model = generator(cells.var_names)
    if task == "predict":
        sct.tl.predict_perturbation(cells, ["G0", "G1"], model)
    elif task == "screen":
        sct.tl.screen(cells, ["G0", "G1"], model)
    else:
        sct.pp.perturbation_split(cells, draw="stable")
        opened.update({"opened": 0, "looked at": 0})
        sct.tl.evaluate_perturbation(cells, {"one": model, "two": model}, n_controls=4, metrics=["mse"])
    assert opened == {"opened": 1, "looked at": 1}
