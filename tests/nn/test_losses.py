"""Loss terms against their formulas, written out entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from scgpt_tools.nn.losses import (
    contrastive,
    elastic_similarity,
    masked_mse,
    masked_relative_error,
    negative_log_bernoulli,
)

PREDICTION = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
TARGET = torch.tensor([[1.5, 0.0], [1.0, 5.0]])
MASK = torch.tensor([[True, False], [True, True]])


def test_masked_mse_is_the_mean_over_the_mask():
    assert masked_mse(PREDICTION, TARGET, MASK).item() == pytest.approx((0.25 + 4 + 0) / 3)


def test_masked_mse_ignores_what_is_not_masked():
    """Masking an entry is leaving it out, in value and in gradient."""
    prediction = PREDICTION.clone().requires_grad_()
    masked_mse(prediction, TARGET, MASK).backward()
    assert prediction.grad[0, 1] == 0
    other = PREDICTION.clone()
    other[0, 1] = 1e6
    assert masked_mse(other, TARGET, MASK) == masked_mse(PREDICTION, TARGET, MASK)


def test_masked_mse_of_nothing_is_nan():
    assert masked_mse(PREDICTION, TARGET, torch.zeros_like(MASK)).isnan()


def test_masked_relative_error():
    expected = (0.5 / 1.5 + 2 / 1 + 0) / 3
    assert masked_relative_error(PREDICTION, TARGET, MASK).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least one position"):
        masked_relative_error(PREDICTION, TARGET, torch.zeros_like(MASK))


def test_negative_log_bernoulli():
    nonzero = torch.tensor([[0.9, 0.2], [0.4, 0.7]])
    target = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    expected = -(math.log(0.9) + math.log(1 - 0.4) + math.log(0.7)) / 3
    assert negative_log_bernoulli(nonzero, target, MASK).item() == pytest.approx(expected, rel=1e-6)


def test_certain_probabilities_stay_finite():
    nonzero = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = negative_log_bernoulli(nonzero, torch.tensor([[1.0, 0.0]]), torch.ones(1, 2).bool())
    assert loss.item() == pytest.approx(-math.log(torch.finfo(torch.float32).eps), rel=1e-4)
    loss.backward()
    assert nonzero.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_elastic_similarity(threshold):
    cells = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    total = 0.0
    for i in range(5):
        for j in range(5):
            cosine = float(cells[i] @ cells[j] / (cells[i].norm() * cells[j].norm()))
            similarity = 0.0 if i == j else max(cosine, 0.0)
            total += 1 - (similarity - threshold) ** 2
    assert elastic_similarity(cells, threshold).item() == pytest.approx(total / 25)


def test_elastic_similarity_has_finite_gradients_at_zero():
    cells = torch.zeros(3, 2, requires_grad=True)
    elastic_similarity(cells, 0.3).backward()
    assert cells.grad.isfinite().all()


def test_contrastive():
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 3, generator=random, dtype=torch.double) for _ in range(2))
    total = 0.0
    for i in range(4):
        logits = [float(first[i] @ second[j] / (first[i].norm() * second[j].norm())) / 0.5 for j in range(4)]
        total += math.log(sum(map(math.exp, logits))) - logits[i]
    assert contrastive(first, second).item() == pytest.approx(total / 4)
    assert contrastive(first, first) < contrastive(first, first.flip(0))
