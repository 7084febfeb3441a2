"""Mean profiles of conditions over all validation cells."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgpt_tools.objectives import PerturbedExpression
from scgpt_tools.objectives.profiles import MEASURES, ProfileSums
from scgpt_tools.tokens.batch import TokenBatch


@pytest.fixture
def cells() -> tuple[torch.Tensor, TokenBatch]:
    """Predictions and a batch of 12 cells of three conditions; genes in another order in each cell, some as padding."""
    random = np.random.default_rng(0)
    genes = torch.from_numpy(np.stack([random.permutation(6) + 2 for _ in range(12)]))
    conditions = [(2,), (3,), (2, 5)]
    perturbed = torch.stack([torch.isin(row, torch.tensor(conditions[i % 3])) for i, row in enumerate(genes)]).long()
    values, target, predicted = (torch.from_numpy(random.random((12, 6)).astype(np.float32)) for _ in range(3))
    mask = (torch.arange(12)[:, None] % 4 > 0) | (perturbed > 0) | (genes != 7)
    return predicted, TokenBatch(genes=genes, values=values, mask=mask, perturbed=perturbed, target=target)


def part(predicted: torch.Tensor, batch: TokenBatch, rows: slice) -> tuple:
    names = ("genes", "values", "mask", "perturbed", "target")
    return {"first": {"expression": predicted[rows]}}, TokenBatch(
        **{name: getattr(batch, name)[rows] for name in names}
    )


def by_hand(predicted: torch.Tensor, batch: TokenBatch) -> dict[str, float]:
    scores = []
    for first in range(3):
        profiles = np.full((3, 8), np.nan)
        for side, values in enumerate((predicted, batch.target, batch.values)):
            for gene in range(2, 8):
                there = (batch.genes[first::3] == gene) & batch.mask[first::3]
                profiles[side, gene] = values[first::3][there].mean()
        mine, true, before = profiles[:, 2:]
        scores.append(
            (
                np.square(mine - true).mean(),
                np.corrcoef(mine, true)[0, 1],
                np.corrcoef(mine - before, true - before)[0, 1],
            )
        )
    return dict(zip(MEASURES, np.mean(scores, axis=0), strict=True))


@pytest.mark.parametrize("size", [1, 5, 12])
def test_minibatches_do_not_matter(cells, size):
    sums = PerturbedExpression().collector()
    for start in range(0, 12, size):
        sums.add(*part(*cells, slice(start, start + size)))
    assert sums.gathered() is sums
    assert sums.measures() == pytest.approx(by_hand(*cells), rel=1e-5)


def test_processes_do_not_matter(cells, monkeypatch):
    """What they have is put together by token, in whatever order each has met it."""
    mine, theirs = ProfileSums(), ProfileSums()
    mine.add(*part(*cells, slice(0, 5)))
    theirs.add(*part(*cells, slice(5, 12)))
    there = {}

    def gather(everyone, own):
        there["own"] = own
        everyone[:] = [own, (theirs._sums, theirs._tokens)]

    monkeypatch.setattr("scgpt_tools.objectives.profiles.is_shared", lambda: True)
    monkeypatch.setattr(
        "scgpt_tools.objectives.profiles.dist", SimpleNamespace(get_world_size=lambda: 2, all_gather_object=gather)
    )
    assert mine.gathered().measures() == pytest.approx(by_hand(*cells), rel=1e-5)
    assert set(there["own"][1]) <= set(range(2, 8))


def test_nothing_was_seen_and_nothing_changes():
    assert ProfileSums().measures() == {}
    sums = ProfileSums()
    flat = TokenBatch(
        genes=torch.tensor([[2, 3]]), values=torch.ones(1, 2), mask=torch.ones(1, 2, dtype=torch.bool),
        perturbed=torch.tensor([[1, 0]]), target=torch.ones(1, 2),
    )  # fmt: skip
    sums.add({"first": {"expression": torch.ones(1, 2)}}, flat)
    assert sums.measures() == dict.fromkeys(MEASURES, 0.0)
