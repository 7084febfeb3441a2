"""Arguments of every function for screens: what is no such thing is refused by name, and nothing is changed."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from generators import generator
from screen_tables import screen

HELD = ("G0+ctrl", "G0+G6")


pytestmark = pytest.mark.usefixtures("without_bars")


def divided() -> ad.AnnData:
    adata = screen(3)
    rest = [name for name in adata.obs["condition"].unique() if name not in HELD]
    sct.pp.perturbation_split(adata, "custom", parts={"train": rest[:-1], "val": rest[-1:], "test": HELD})
    return adata


@pytest.fixture(scope="module")
def prepared() -> ad.AnnData:
    return divided()


def effects() -> ad.AnnData:
    values = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    table = ad.AnnData(values, layers={"effect": values.copy()})
    table.obs_names, table.var_names = ["G0", "G1", "G0+G1"], [f"G{i}" for i in range(40)]
    return table


MODEL = generator([f"G{i}" for i in range(40)])
CALLS = {
    "parse": lambda adata, **options: sct.pp.parse_conditions(adata, **options),
    "pair": lambda adata, **options: sct.pp.pair_controls(adata, **options),
    "de": lambda adata, **options: sct.pp.perturbation_de(adata, **options),
    "split": lambda adata, **options: sct.pp.perturbation_split(adata, **options),
    "cells": lambda adata, **options: sct.pp.cell_split(adata, **options),
    "predict": lambda adata, **options: sct.tl.predict_perturbation(adata, **{"perts": "G0", "model": MODEL} | options),
    "screen": lambda adata, **options: sct.tl.screen(adata, **{"perts": ["G0"], "model": MODEL} | options),
    "evaluate": lambda adata, **options: sct.tl.evaluate_perturbation(adata, **{"predictions": MODEL} | options),
    "rank": lambda adata, **options: sct.tl.rank_perturbations(adata, **{"screened": effects()} | options),
    "interactions": lambda adata, **options: sct.tl.genetic_interactions(effects(), **options),
    "heatmap": lambda adata, **options: sct.pl.perturbation_heatmap(effects(), show=False, **options),
}

TEXTS = [5, None, ["a"], "", "  "]
FLAGS = ["False", 1, None]
COUNTS = [0, -1, 1.5, "3", True]
SEEDS = [-1, 1.5, "0", True]
SHARES = [-0.1, 1.5, "half", None, float("nan"), True]
KEYS = [5, None, "", "a/b", ".", ".."]
LISTS = ["G0", 5, [], [5], [""], {"G0": 1}]
BAD = {
    ("parse", "condition_key"): TEXTS, ("parse", "control"): [5, [], [""], ""], ("parse", "delimiter"): [5, None, "", ["+"]],
    ("parse", "guide_pattern"): [5, "("], ("parse", "count_key"): [5, "batch"], ("parse", "missing"): ["no", None],
    ("parse", "key_added"): KEYS, ("parse", "copy"): FLAGS, ("parse", "direction"): ["left", 1],
    ("pair", "condition_key"): TEXTS, ("pair", "within"): [5, [], [5], "absent"], ("pair", "n"): COUNTS, ("pair", "rng"): SEEDS,
    ("pair", "draw"): ["other", None], ("pair", "key_added"): KEYS, ("pair", "copy"): FLAGS,
    ("de", "condition_key"): TEXTS, ("de", "within"): [5, ["batch"], ""], ("de", "layer"): [5, ["X"], "absent"],
    ("de", "method"): [5, "t_test", None], ("de", "gears"): FLAGS, ("de", "key_added"): KEYS, ("de", "copy"): FLAGS,
    ("split", "method"): ["all", 5, None], ("split", "condition_key"): TEXTS, ("split", "draw"): ["other", None],
    ("split", "rng"): SEEDS, ("split", "train_genes"): SHARES, ("split", "train_seen2"): SHARES,
    ("split", "test_fraction"): SHARES, ("split", "val_fraction"): SHARES, ("split", "test_genes"): [*LISTS, ["NO"]],
    ("split", "test_conditions"): [*LISTS, ["NO"], ["G0+G1"]], ("split", "only_test_genes"): [*FLAGS, True],
    ("split", "parts"): [{"train": ["G0"]}, ["G0"], "G0"], ("split", "key_added"): KEYS, ("split", "copy"): FLAGS,
    ("cells", "groups"): [5, ["batch"], ""], ("cells", "test"): [*SHARES[:3], ["a"]], ("cells", "val"): SHARES[:3],
    ("cells", "stratify"): [5, [5]], ("cells", "rng"): SEEDS, ("cells", "key_added"): KEYS, ("cells", "copy"): FLAGS,
    ("predict", "perts"): [5, [], [5], [""], ["G0", None], {"G0": 1}, "ctrl", "NO", "G0+", ["G0", "A/B"]],
    ("predict", "model"): [["a"], 5], ("predict", "condition_key"): [5, ["condition"], ""], ("predict", "layer"): [5, ["X"]],
    ("predict", "batch_size"): COUNTS, ("predict", "rng"): SEEDS, ("predict", "key_added"): KEYS,
    ("predict", "copy"): FLAGS, ("predict", "include"): ["some"], ("predict", "direction"): ["left", 1],
    ("predict", "show_progress"): ["no", 1],
    ("screen", "perts"): [5, [], [5], [""], "ctrl", "NO"], ("screen", "n_controls"): [0, 1, 1.5, "3", True],
    ("screen", "condition_key"): [5, ""], ("screen", "model"): [None, 5], ("screen", "direction"): ["left"],
    ("evaluate", "predictions"): [{}, {5: MODEL}, {"": MODEL}, {"additive": MODEL}, {"ceiling": MODEL}, None, 5],
    ("evaluate", "condition_key"): TEXTS, ("evaluate", "split"): [5, ["a"], "", "  "], ("evaluate", "part"): [5, None, "", "absent"],
    ("evaluate", "metrics"): ["mse", [], ["no"], 5], ("evaluate", "cells"): FLAGS, ("evaluate", "cell_eval"): FLAGS,
    ("evaluate", "distances"): [5, ["no"], "no"], ("evaluate", "n_controls"): COUNTS, ("evaluate", "within"): [5, [5]],
    ("rank", "screened"): [None, "table"], ("rank", "condition_key"): TEXTS, ("rank", "source"): [5, None, "", "absent"],
    ("rank", "targets"): [5, [], [5], "absent", "ctrl+"], ("rank", "metric"): ["no", None], ("rank", "by"): ["no"],
    ("rank", "exclude_perturbed"): FLAGS, ("rank", "layer"): [5, "absent"],
    ("interactions", "condition_key"): [5, "", "absent"], ("interactions", "layer"): [5, "absent"],
    ("interactions", "max_pairs"): COUNTS, ("interactions", "rng"): SEEDS, ("interactions", "exclude_perturbed"): FLAGS,
    ("heatmap", "genes"): [*LISTS, ["NO"]], ("heatmap", "n_genes"): COUNTS,
    ("heatmap", "perturbations"): ["G1", 5, [], [5], ["NO"]], ("heatmap", "layer"): [5, "absent"],
    ("heatmap", "cluster"): FLAGS, ("heatmap", "limit"): [0, -1.0, "1", float("nan")], ("heatmap", "title"): [5],
    ("heatmap", "figsize"): [5, (1,), (0, 1), "ab"],
}  # fmt: skip
CASES = [(step, name, value) for (step, name), values in BAD.items() for value in values]


@pytest.mark.parametrize(
    ("step", "name", "value"), CASES, ids=[f"{s}-{n}-{v!r:.20}-{i}" for i, (s, n, v) in enumerate(CASES)]
)
def test_what_is_no_such_thing_is_refused(prepared, unchanged, step, name, value):
    before = unchanged(prepared)
    options = {"method": "combo_seen2"} if name == "test_conditions" and value != ["G0+G1"] else {}
    with pytest.raises((TypeError, ValueError, KeyError)) as caught:
        CALLS[step](prepared, **options, **{name: value})
    text = str(caught.value).strip("\"'")
    assert text.startswith(("Expected", "Found no")), text
    assert unchanged(prepared) == before


def test_the_table_of_arguments_is_that_of_the_functions():
    """Every step passes with nothing but its defaults, so that the cases above fail by their argument."""
    for step, call in CALLS.items():
        adata = divided()
        if step == "evaluate":
            with pytest.warns(UserWarning, match="nearly the same"):
                call(adata)
        else:
            call(adata)


OTHERS = {
    "frame": pd.DataFrame({"condition": ["ctrl"]}),
    "nothing": None,
    "text": "screen.h5ad",
    "array": np.zeros((2, 2)),
}


@pytest.mark.parametrize("step", [name for name in CALLS if name not in ("interactions", "heatmap")])
@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_table_is_refused(step, other):
    with pytest.raises(TypeError, match="^Expected"):
        CALLS[step](OTHERS[other])


def test_two_columns_of_one_gene_are_named():
    adata = divided()
    adata.var_names = [name if name != "G9" else "G1" for name in adata.var_names]
    table = effects()
    with pytest.raises(ValueError, match="'G1' twice"):
        CALLS["rank"](adata)
    table.var_names = adata.var_names
    with pytest.raises(ValueError, match="one column of 'G1', found 2"):
        sct.pl.perturbation_heatmap(table, genes=["G1"], show=False)
