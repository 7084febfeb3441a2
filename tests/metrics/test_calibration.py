from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.metrics import calibrated_confidence, conformal_p_values


def test_calibrated_confidences_are_shares_of_right_answers():
    rng = np.random.default_rng(0)
    votes = rng.uniform(size=20_000)
    # An overconfident judge: right with the square of what it says.
    right = rng.uniform(size=votes.size) < votes**2
    found = calibrated_confidence([0.1, 0.5, 0.9], held_out=votes, correct=right)
    np.testing.assert_allclose(found, [0.01, 0.25, 0.81], atol=0.05)
    assert (np.diff(calibrated_confidence(np.linspace(0, 1, 50), held_out=votes, correct=right)) >= 0).all()


def test_few_cells_make_no_certainty():
    assert calibrated_confidence([1.0], held_out=[1.0, 0.9], correct=[True, True]).tolist() == [0.75]
    assert calibrated_confidence([0.0], held_out=[1.0, 0.9], correct=[False, False]).tolist() == [0.25]


def test_weights_count_as_cells():
    votes, right = [0.5, 0.5, 0.5, 0.5], [True, False, False, False]
    assert calibrated_confidence([0.5], held_out=votes, correct=right, weights=[9, 1, 1, 1]) == pytest.approx(0.75)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_cells_like_the_held_out_ones_are_rejected_at_the_rate_that_was_asked_for(alpha):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 40_000)
    # One class lies much farther out than the other.
    scores = rng.gamma(2.0, 1 + 9 * classes)
    known, new = slice(0, 2_000), slice(2_000, None)
    p = conformal_p_values(scores[new], classes[new], held_out=scores[known], held_out_classes=classes[known])
    for number in (0, 1):
        assert (p[classes[new] == number] <= alpha).mean() == pytest.approx(alpha, abs=0.02)


def test_p_values_by_hand():
    p = conformal_p_values([0.5, 2.0, 9.0], [0, 0, 0], held_out=[1, 2, 3], held_out_classes=[0, 0, 0], min_cells=3)
    assert p.tolist() == [1.0, 0.75, 0.25]


def test_rare_classes_are_compared_with_all_cells():
    common = {"held_out": np.arange(30.0), "held_out_classes": np.array([0] * 28 + [1] * 2)}
    assert conformal_p_values([100.0], [1], **common) == pytest.approx(1 / 31)
    assert conformal_p_values([100.0], [1], min_cells=2, **common) == pytest.approx(1 / 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one held-out cell"):
        calibrated_confidence([0.5], held_out=[], correct=[])
    with pytest.raises(ValueError, match="`correct` of shape"):
        calibrated_confidence([0.5], held_out=[0.1, 0.2], correct=[True, False, True])
    with pytest.raises(ValueError, match="`held_out`"):
        conformal_p_values([0.5], [0], held_out=[np.nan], held_out_classes=[0])
