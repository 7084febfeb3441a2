"""Perturbation labels, gene sets and flags."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.tokens.perturbations import (
    ConditionStyle,
    canonical_labels,
    column_flags,
    condition_genes,
    condition_key,
    expressible,
    format_condition,
    locate_genes,
    perturbed_genes,
)


@pytest.mark.parametrize(
    ("label", "genes"),
    [
        ("ctrl", ()),
        ("ctrl+ctrl", ()),
        ("KLF1+ctrl", ("KLF1",)),
        ("ctrl+KLF1", ("KLF1",)),
        ("KLF1", ("KLF1",)),
        ("B+A", ("B", "A")),
        ("A+B+C", ("A", "B", "C")),
        (" A + B ", ("A", "B")),
        ("A+A", ("A",)),
        ("NKX2-1+ctrl", ("NKX2-1",)),
    ],
)
def test_gears_labels(label, genes):
    assert condition_genes(label) == genes


@pytest.mark.parametrize(
    ("style", "label", "genes"),
    [
        ({"control": ("control",), "delimiter": "_"}, "CBL_CNN1", ("CBL", "CNN1")),
        ({"control": ("control",), "delimiter": "_"}, "control", ()),
        ({"control": ("control",), "delimiter": "_"}, "CBL_control", ("CBL",)),
        ({"control": ("non_targeting",), "delimiter": "_"}, "non_targeting", ()),
        ({"control": ("NT",), "delimiter": ";"}, "A; B;C", ("A", "B", "C")),
        ({"control": ("NT", "ctrl"), "delimiter": ","}, "NT,A,ctrl", ("A",)),
        ({"control": ("na",), "delimiter": "||", "guide_pattern": r"-\d+$"}, "FBXO11-1 || PLEK-2", ("FBXO11", "PLEK")),
        ({"control": ("NT",), "guide_pattern": r"g\d+$"}, "STAT2g2", ("STAT2",)),
        ({"control": ("NT",), "guide_pattern": r"g\d+$"}, "NTg5", ()),
    ],
)
def test_labels_of_other_data_sets(style, label, genes):
    assert ConditionStyle(**style).genes(label) == genes


def test_a_measured_gene_may_hold_the_delimiter():
    style = ConditionStyle(control=("control", "non_targeting"), delimiter="_")
    known = {"HLA_A", "HLA_A_2", "KLF1"}
    assert style.genes("HLA_A_KLF1", known) == ("HLA_A", "KLF1")
    assert style.genes("KLF1_HLA_A_2", known) == ("KLF1", "HLA_A_2")
    assert style.genes("KLF1_non_targeting", known) == ("KLF1",)


@pytest.mark.parametrize("label", ["", "+", "A+", "A++B"])
def test_an_empty_part_is_an_error(label):
    with pytest.raises(ValueError, match="empty part"):
        condition_genes(label)


@pytest.mark.parametrize("bad", [{"control": ()}, {"control": "ctrl"}, {"control": ("",)}, {"delimiter": ""}])
def test_styles_are_checked(bad):
    with pytest.raises(ValueError, match="Expected `"):
        ConditionStyle(**bad)


@pytest.mark.parametrize("genes", [(), ("A",), ("A", "B"), ("C", "A", "B")])
def test_formatting_is_the_inverse_of_parsing(genes):
    assert condition_genes(format_condition(genes)) == genes


def test_keys_do_not_depend_on_spelling():
    assert condition_key("B+A") == condition_key("A+B") == condition_key(("A", "B"))
    assert condition_key("ctrl+A") == condition_key("A+ctrl") == condition_key("A")


def test_a_column_in_gears_spelling_stays_as_it_is():
    labels = ["ctrl", "B+A", "A+ctrl", "C+D+A"]
    assert canonical_labels(labels) == {label: label for label in labels}


def test_one_gene_set_becomes_one_condition():
    found = canonical_labels(["B+A", "A+B", "ctrl+C", "C", "D+C"])
    assert found == {"B+A": "A+B", "A+B": "A+B", "ctrl+C": "C+ctrl", "C": "C+ctrl", "D+C": "D+C"}


def test_names_in_conditions():
    assert perturbed_genes(["ctrl", "B+ctrl", "A+C", "C"]) == ("A", "B", "C")
    assert expressible(["ctrl", "A+ctrl", "A+B", "B+C"], {"A", "B"}) == ["ctrl", "A+ctrl", "A+B"]


def test_absent_genes_are_named():
    with pytest.warns(UserWarning, match="none for X, Y"):
        assert locate_genes(["A", "X", "Y"], {"A": 3}) == {"A": 3}
    with pytest.raises(ValueError, match="none for X"):
        locate_genes(["A", "X"], {"A": 3}, missing="error")
    assert locate_genes(["X"], {"A": 3}, missing="ignore") == {}


def test_column_flags():
    flags = column_flags(["ctrl", "B+ctrl", "C+A", "A+B+C"], ["A", "B", "C", "B"])
    np.testing.assert_array_equal(flags, [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]])
