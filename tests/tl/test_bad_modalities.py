"""Cells and features of several modalities that say little: said by name and number; results that are no numbers: refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from mudatas import PROTEINS, contents, make_base, make_mudata
from scgpt_tools.models import CellModel

# A protein has the name of a gene on purpose.
pytestmark = [pytest.mark.filterwarnings("ignore:var_names are not unique"), pytest.mark.usefixtures("without_bars")]


@pytest.fixture(scope="module")
def trained() -> CellModel:
    with sct.settings.override(show_progress=False):
        return sct.train.finetune(
            make_mudata(24), make_base(), task="multiomic", epochs=1, batch_size=8, accelerator="cpu", rng=0
        )


@pytest.fixture
def damaged(trained, monkeypatch) -> CellModel:
    real = trained.encoder.forward

    def strange(*args, **options):
        encoded = real(*args, **options)
        return encoded._replace(tokens=encoded.tokens * float("nan"))

    monkeypatch.setattr(trained.encoder, "forward", strange)
    return trained


TASKS = {
    "embed": lambda mdata, model: sct.tl.embed(mdata, model),
    "impute": lambda mdata, model: sct.tl.impute(mdata, [model, model], modality="prot"),
    "modality_weights": lambda mdata, model: sct.tl.modality_weights(mdata, model),
}


@pytest.mark.parametrize("task", TASKS)
def test_results_that_are_no_numbers_are_refused(damaged, task):
    mdata = make_mudata(10)
    before = contents(mdata)
    with pytest.raises(ValueError, match="Expected finite results"):
        TASKS[task](mdata, damaged)
    assert contents(mdata) == before


@pytest.mark.parametrize("task", TASKS)
def test_measured_cells_without_molecules_are_counted_and_absent_ones_are_not(trained, task):
    mdata = make_mudata(20, mosaic=True)  # the last four lack RNA
    X = mdata["rna"].X.toarray()
    X[2:5] = 0
    mdata["rna"].X = X
    with pytest.warns(UserWarning, match=r"known features of 'rna' above zero, found 3 of 16 without any"):
        TASKS[task](mdata, trained)


def test_a_panel_with_few_of_the_features_is_named(trained):
    query = make_mudata(10)
    query["prot"].var_names = [PROTEINS[0], *(f"{name}_TotalSeqB" for name in PROTEINS[1:])]
    with pytest.warns(UserWarning, match=r"Only 1 of 4 features \(25.0 %\) .* of modality 'prot'"):
        sct.tl.embed(query, trained)


def test_genes_of_a_modality_are_named_too(trained):
    query = make_mudata(10)
    query["rna"].var_names = [f"GENE{i}" if i < 6 else f"other{i}" for i in range(24)]
    with pytest.warns(UserWarning, match=r"Only 6 of 24 features .* in modality 'rna'; expected"):
        sct.tl.embed(query, trained)


def test_tokens_of_measured_cells_without_molecules_are_said(trained):
    mdata = make_mudata(10)
    mdata["rna"].X = mdata["rna"].X.toarray() * (np.arange(10) > 1)[:, None]
    with pytest.warns(UserWarning, match=r"known features of 'rna' above zero, found 2 of 10"):
        sct.pp.tokenize(mdata, trained)


def test_what_mudata_keeps_for_itself_is_not_replaced(trained):
    with pytest.raises(ValueError, match=r"obsm\['rna'\]"):
        sct.tl.embed(make_mudata(10), trained, key_added="rna")


def test_the_model_is_in_its_own_mode_afterwards(damaged):
    damaged.train()
    with pytest.raises(ValueError, match="finite"), torch.no_grad():
        sct.tl.embed(make_mudata(6), damaged)
    assert damaged.training
    damaged.eval()
