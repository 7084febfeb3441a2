"""Mean changes of training conditions and their standard errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools.screens.effects import training_effects


@pytest.fixture
def table(rng):
    values = rng.random((14, 5)) * (rng.random((14, 5)) < 0.7)
    conditions = np.array(["ctrl"] * 6 + ["a"] * 4 + ["b+c"] * 4, dtype=object)
    contexts = np.array(["x", "x", "x", "x", "y", "y", "x", "x", "x", "y", "x", "x", "x", "y"], dtype=object)
    return values, conditions, contexts


def effects_of(values, conditions, contexts):
    own = conditions == "ctrl"
    return training_effects(
        sp.csr_matrix(values), conditions, contexts, perturbed=~own, controls=own, genes=[f"G{i}" for i in range(5)]
    )


def test_errors_have_the_variance_within_conditions(table):
    found = effects_of(*table)
    values, conditions, contexts = table
    groups = [
        values[(conditions == name) & (contexts == where)] for name in ("ctrl", "a", "b+c") for where in ("x", "y")
    ]
    squares = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups)
    variance = squares / (14 - 6)
    assert found.perturbed == (("a",), ("b", "c"), ("a",), ("b", "c"))
    sizes = np.array([1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 1 + 1 / 2, 1 / 1 + 1 / 2])
    np.testing.assert_allclose(found.errors, np.sqrt(sizes[:, None] * variance))


def test_single_cells_have_no_errors(table):
    values, conditions, contexts = (part[[0, 4, 6, 9]] for part in table)
    assert effects_of(values, conditions, contexts).errors is None
