"""What baselines learn from."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics.effects import TrainingEffects

GENES = tuple(f"G{i}" for i in range(25))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GENES, np.zeros(25), (("a",),), np.zeros((2, 25))), "effects of shape"),
        ((GENES, np.zeros(24), (("a",),), np.zeros((1, 25))), "effects of shape"),
        ((GENES, np.zeros(25), ((),), np.zeros((1, 25))), "at least one training condition"),
    ],
)
def test_training_effects_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingEffects(*arguments)


def test_weighing_by_cell_needs_numbers():
    unknown = TrainingEffects(GENES, np.zeros(25), (("a",), ("b",)), np.array([[1.0] * 25, [4.0] * 25]))
    np.testing.assert_allclose(unknown.mean(), 2.5)
    known = TrainingEffects(unknown.genes, unknown.control, unknown.perturbed, unknown.effects, np.array([2, 1]))
    np.testing.assert_allclose(known.mean(by_cell=True), 2)
    with pytest.raises(ValueError, match="n_cells"):
        unknown.mean(by_cell=True)
