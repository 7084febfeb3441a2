"""Perturbation labels of a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.screens.conditions import context_labels, control_mask, parse_labels, read_conditions, read_labels
from scgpt_tools.tokens.perturbations import ConditionStyle
from screen_tables import screen

GENES = ["A", "B", "C_1"]


def parse(labels, names=GENES, style=None, **options):
    return parse_labels(np.array(labels, dtype=object), ConditionStyle(**(style or {})), names, **options)


def test_labels_are_spelled_like_gears():
    found = parse(["control", "A_B", "B", "C_1_B"], style={"control": ("control",), "delimiter": "_"})
    assert found.labels.tolist() == ["ctrl", "A+B", "B+ctrl", "C_1+B"]
    assert found.is_control.tolist() == [True, False, False, False]
    assert (found.genes, found.missing) == (("A", "B", "C_1"), ())


def test_genes_without_a_column_are_named():
    with pytest.warns(UserWarning, match="none for X"):
        assert parse(["ctrl", "A+X"]).missing == ("X",)
    with pytest.raises(ValueError, match="none for X"):
        parse(["ctrl", "A+X"], missing="error")


def test_another_separator_is_hinted_at():
    with pytest.raises(ValueError, match="pass delimiter='_'"):
        parse(["ctrl", "A_B"], missing="error")


@pytest.mark.parametrize("label", ["control", "non-targeting", "NT", "NTC", "NegCtrl0", "unperturbed"])
def test_a_likely_control_is_named(label):
    with pytest.raises(ValueError, match=f"Pass control='{label}'"):
        parse([label, "A", "B"], missing="ignore")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["A", "B"], "Labels are 'A', 'B'"), (["ctrl", "ctrl"], "found controls only"), (["ctrl", "A+"], "empty part")],
)
def test_labels_that_make_no_screen_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        parse(labels)


def test_counts_check_the_parsing():
    parse(["ctrl", "A+B", "A"], counts=np.array([1, 2, 1]))
    with pytest.raises(ValueError, match=r"found 1 in 'A-B' instead of 2 \(1 cells"):
        parse(["ctrl", "A-B", "A"], counts=np.array([0, 2, 1]), missing="ignore")


def test_cells_without_a_label_are_counted():
    adata = screen(4)
    adata.obs["holes"] = adata.obs["condition"].astype(object)
    adata.obs.iloc[[2, 5], adata.obs.columns.get_loc("holes")] = [np.nan, " "]
    with pytest.raises(ValueError, match=f"none for 2 of {adata.n_obs} .*{adata.obs_names[2]}"):
        read_labels(adata, "holes")
    with pytest.raises(KeyError, match="Did you mean 'condition'"):
        read_labels(adata, "conditions")


def test_a_column_in_another_spelling_is_recognised():
    adata = screen(4)
    adata.obs["raw"] = pd.Categorical(adata.obs["condition"].astype(str).str.replace("+", "_"))
    adata = adata[adata.obs["condition"] != "ctrl"].copy()
    with pytest.raises(ValueError, match="Run pp.parse_conditions"):
        read_conditions(adata, "raw")


def test_contexts_join_columns():
    adata = screen(4)
    assert context_labels(adata, None) is None
    assert set(context_labels(adata, ["cell_type", "batch"])) == {"K562_a", "K562_b"}
    assert set(context_labels(adata, "batch")) == {"a", "b"}


def test_contexts_that_would_be_spelled_alike_stay_apart():
    adata = screen(4)
    first = np.arange(adata.n_obs) % 2 == 0
    adata.obs["donor"] = np.where(first, "a_b", "a")
    adata.obs["plate"] = np.where(first, "c", "b_c")
    found = context_labels(adata, ["donor", "plate"])
    assert len(set(found[first])) == len(set(found[~first])) == 1
    assert found[first][0] != found[~first][0]


def test_control_mask():
    assert control_mask(["ctrl", "A+ctrl", "ctrl+ctrl", "A+B"]).tolist() == [True, False, True, False]
