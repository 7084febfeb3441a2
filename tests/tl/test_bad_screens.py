"""What is wrong with a screen is said by every step that would stumble over it, and nothing is changed."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch

import scgpt_tools as sct
from generators import generator
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

HELD = ("G0+ctrl", "G0+G6")


pytestmark = pytest.mark.usefixtures("without_bars")


@pytest.fixture
def cells():
    adata = screen(4)
    rest = [name for name in adata.obs["condition"].unique() if name not in HELD]
    sct.pp.perturbation_split(adata, "custom", parts={"train": rest, "test": HELD})
    return adata


def base(names) -> CellModel:
    vocabulary = Vocabulary.from_genes(list(names))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CellModel(FAMILIES["scgpt"](vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)


def _effects(adata):
    table = pd.DataFrame(np.zeros((len(HELD), adata.n_vars)), index=list(HELD), columns=adata.var_names)
    return sct.tl.evaluate_perturbation(adata, table)


def _candidates(adata):
    other = screen(4)
    return sct.tl.screen(other, ["G0"], generator(other.var_names))


STEPS = {
    "parse_conditions": lambda adata, model: sct.pp.parse_conditions(adata),
    "pair_controls": lambda adata, model: sct.pp.pair_controls(adata),
    "perturbation_split": lambda adata, model: sct.pp.perturbation_split(adata),
    "perturbation_de": lambda adata, model: sct.pp.perturbation_de(adata),
    "finetune": lambda adata, model: sct.train.finetune(
        adata,
        base(model.vocabulary.tokens[3:]),
        task="perturb",
        epochs=1,
        patience=None,
        accelerator="cpu",
        extend="nothing",
    ),
    "predict_own": lambda adata, model: sct.tl.predict_perturbation(adata, None, model),
    "predict": lambda adata, model: sct.tl.predict_perturbation(adata, "G0", model),
    "screen": lambda adata, model: sct.tl.screen(adata, ["G1", "G0"], model),
    "evaluate": lambda adata, model: sct.tl.evaluate_perturbation(adata, model),
    "evaluate_table": lambda adata, model: _effects(adata),
    "rank": lambda adata, model: sct.tl.rank_perturbations(adata, _candidates(adata)),
}


def _counts(adata):
    adata.X = np.rint(np.expm1(adata.X.toarray()))
    return adata


def _unlabelled(adata):
    adata.obs["condition"] = adata.obs["condition"].astype(object).where(np.arange(adata.n_obs) > 2)
    return adata


def _without_controls(adata):
    return adata[(adata.obs["condition"] != "ctrl").to_numpy()].copy()


def _one_cell(adata):
    own = np.flatnonzero(adata.obs["condition"] == "G0+G6")
    return adata[np.setdiff1d(np.arange(adata.n_obs), own[1:])].copy()


def _same(adata):
    return adata


MODELS = ("finetune", "predict_own", "predict", "screen", "evaluate")
BAD = {
    "unknown gene": (_same, "no token for G0", MODELS),
    "no controls": (
        _without_controls,
        r"control|'ctrl'",
        tuple(name for name in STEPS if name != "perturbation_split"),
    ),
    "unlabelled cells": (_unlabelled, "Expected a label", tuple(name for name in STEPS)),
    "a condition with one cell": (_one_cell, r"G0\+G6", ("perturbation_de", "evaluate", "evaluate_table")),
    "counts": (
        _counts,
        r"log-normalised|raw counts",
        ("perturbation_de", "finetune", "predict_own", "predict", "screen", "evaluate", "evaluate_table", "rank"),
    ),
}
CASES = [(what, step) for what, (_, _, steps) in BAD.items() for step in steps]


@pytest.mark.parametrize(("what", "step"), CASES, ids=[f"{what}-{step}" for what, step in CASES])
def test_bad_input_is_named_and_changes_nothing(cells, unchanged, what, step):
    change, message, _ = BAD[what]
    adata = change(cells)
    # An unknown gene is one that the model has no token for.
    known = [name for name in adata.var_names if what != "unknown gene" or name != "G0"]
    model = generator(known)
    before = unchanged(adata)
    with pytest.raises(ValueError, match=message):
        STEPS[step](adata, model)
    assert unchanged(adata) == before


@pytest.mark.parametrize("step", ["finetune", "predict_own", "predict", "screen", "evaluate"])
def test_good_input_passes(cells, step):
    """What the cases above stumble over is not the step itself."""
    with nullcontext() if step != "evaluate" else pytest.warns(UserWarning, match="nearly the same"):
        STEPS[step](cells, generator(cells.var_names))
