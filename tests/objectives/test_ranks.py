"""What a loss asks of other processes, here with one process in their place."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.objectives import CellType, MaskedExpression, MaskedExpressionFromCell, ZeroLikelihood, ranks
from scgpt_tools.tokens.batch import TokenBatch


@pytest.fixture
def others(monkeypatch):
    """Another process with as many entries as it is told."""

    def have(entries):
        monkeypatch.setattr(ranks, "is_shared", lambda: True)
        monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(ranks.dist, "all_reduce", lambda tensor: tensor.add_(entries))

    return have


@pytest.mark.parametrize(("here", "there", "share"), [(3, 3, 1.0), (3, 1, 1.5), (0, 4, 0.0), (4, 0, 2.0), (0, 0, 0.0)])
def test_share_of_the_mean(others, here, there, share):
    others(there)
    found = ranks.share_of_mean(torch.arange(6) < here)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(share)


def test_labels_that_nobody_has_cost_nothing(others):
    others(0)

    class Batch:
        @staticmethod
        def require(name):
            return torch.full((4,), -1)

    logits = torch.randn(4, 3, requires_grad=True)
    loss = CellType()({"first": {"cell_type": logits}}, Batch())
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("term", "prediction"),
    [
        (MaskedExpression(), "expression"),
        (MaskedExpressionFromCell(), "expression_from_cell"),
        (MaskedExpression(by_modality=True), "expression"),
        (ZeroLikelihood(), "expression_nonzero"),
    ],
)
def test_a_process_with_nothing_hidden_adds_nothing_and_keeps_its_gradient(others, term, prediction):
    others(3)
    values = torch.rand(2, 3)
    batch = TokenBatch(
        genes=torch.zeros(2, 3).long(), values=values, mask=torch.ones(2, 3, dtype=torch.bool), target=values,
        hidden=torch.zeros(2, 3, dtype=torch.bool), modality=torch.zeros(2, 3).long(),
    )  # fmt: skip
    found = torch.rand(2, 3, requires_grad=True)
    loss = term({"first": {prediction: found}}, batch)
    loss.backward()
    assert loss.item() == 0
    assert not found.grad.any()
