"""Guessing the unit of a matrix, and saying so where it is not the one that is wanted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools.tokens.units import describe_values, looks_logged, warn_about_units
from scgpt_tools.tokens.values import bin_rows

FORMS = (np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array)


@pytest.fixture
def units(counts) -> dict[str, np.ndarray]:
    """The same cells in every unit."""
    dense = counts.toarray()
    normalised = dense * 1e4 / dense.sum(axis=1, keepdims=True)
    logs = np.log1p(normalised)
    return {
        "counts": dense,
        "normalised": normalised,
        "log1p": logs,
        "scaled": logs - logs.mean(axis=0),
        "binned": bin_rows(counts, 51).toarray(),
        "empty": np.zeros_like(dense),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unit", ["counts", "normalised", "log1p", "scaled", "binned", "empty"])
def test_units_are_recognised(units, unit, form):
    seen = describe_values(form(units[unit]))
    assert seen.unit == unit
    assert seen.minimum == units[unit].min()
    assert seen.maximum == units[unit].max()
    assert seen.whole == bool(np.all(units[unit] == np.rint(units[unit])))


def test_cells_whose_counts_are_zero_or_one_are_counts():
    assert describe_values(np.eye(5)).unit == "counts"


def test_a_matrix_without_zeros():
    seen = describe_values(np.array([[2.5, 3.0], [4.0, 5.0]]))
    assert (seen.minimum, seen.smallest_positive, seen.maximum) == (2.5, 2.5, 5.0)


def test_zeros_that_are_stored_are_zeros():
    stored = sp.csr_matrix((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert describe_values(stored) == describe_values(stored.toarray())


def test_shallow_logarithms_are_known_although_the_rule_of_scgpt_misses_them():
    logs = np.log1p(np.array([[0, 3.2, 6.4]]))
    assert describe_values(logs).unit == "log1p"
    assert not looks_logged(logs)


def test_nothing_positive():
    with pytest.raises(ValueError, match="Expected a matrix with positive values, found none"):
        looks_logged(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("expects", "unit", "message"),
    [
        ("counts", "log1p", r"Expected raw counts, found fractions from 0 to 9.\d+, which look like log-normalised"),
        ("log1p", "counts", r"Expected log-normalised values, found whole numbers from 0 to \d+, .* raw counts"),
        ("log1p", "normalised", "normalised counts without a logarithm"),
        ("log1p", "binned", "which look like bins"),
        ("any", "scaled", "Expected values that are not negative, found fractions from -"),
    ],
)
def test_warnings_say_what_was_seen(units, expects, unit, message):
    with pytest.warns(UserWarning, match=message) as caught:
        warn_about_units(describe_values(units[unit]), expects)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("expects", "unit"), [("counts", "counts"), ("log1p", "log1p"), ("any", "counts"), ("any", "log1p")]
)
def test_no_warning_where_all_is_well(units, expects, unit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_units(describe_values(units[unit]), expects)
