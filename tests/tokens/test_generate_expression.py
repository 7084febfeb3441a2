"""Visible genes and query genes, expressed or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.corruptions import GenerateExpression

N_GENES = 40


@pytest.fixture
def batch(rng) -> TokenBatch:
    """All genes of some cells, the first token being the cell's; one cell expresses nothing and one a single gene."""
    expressed = rng.random((8, N_GENES)) < 0.5
    expressed[0] = False
    expressed[1] = np.arange(N_GENES) == 7
    values = np.where(expressed, rng.integers(1, 9, expressed.shape), 0)
    values = torch.from_numpy(np.column_stack([np.full(8, -2), values])).float()
    genes = torch.cat([torch.ones(8, 1), torch.arange(2, N_GENES + 2).expand(8, -1)], dim=1).long()
    return TokenBatch(genes, values, torch.ones_like(genes, dtype=torch.bool), index=torch.arange(8))


def tokens(seen: TokenBatch, cell: int, which: torch.Tensor) -> dict[int, float]:
    places = which[cell]
    return dict(zip(seen.genes[cell][places].tolist(), seen.target[cell][places].tolist(), strict=True))


def test_shown_genes_are_expressed_and_asked_ones_are_hidden(batch):
    seen = GenerateExpression(visible=6, expressed=5, unexpressed=4)(batch, 0)
    for cell in range(8):
        truth = dict(zip(batch.genes[cell].tolist(), batch.values[cell].tolist(), strict=True))
        expressed = {gene for gene, value in truth.items() if value > 0}
        visible = tokens(seen, cell, seen.mask & ~seen.hidden)
        queries = tokens(seen, cell, seen.hidden)
        assert visible.pop(1) == -2
        assert set(visible) <= expressed
        assert not set(visible) & set(queries)
        assert all(truth[gene] == value for gene, value in (visible | queries).items())
        assert len(set(queries) & expressed) == min(5, len(expressed) // 3)
        assert len(visible) == min(
            6, len(expressed) - len(expressed) // 3 if len(expressed) < 15 else len(expressed) - 5
        )
        assert len(set(queries) - expressed) == 4


def test_hidden_values_are_not_among_the_inputs(batch):
    seen = GenerateExpression(visible=6, expressed=5, unexpressed=4)(batch, 0)
    assert (seen.values[seen.hidden] == -1).all()
    assert torch.equal(seen.hidden, seen.generated)
    assert not (seen.hidden & ~seen.mask).any()
    assert torch.equal(seen.values[seen.mask & ~seen.hidden], seen.target[seen.mask & ~seen.hidden])


def test_tokens_that_are_seen_come_first_and_padding_last(batch):
    seen = GenerateExpression(visible=6, expressed=5, unexpressed=4)(batch, 0)
    kind = torch.where(seen.hidden, 1, torch.where(seen.mask, 0, 2))
    assert (kind.diff(dim=1) >= 0).all()
    assert seen.mask.any(dim=0).all()
    assert (seen.genes[:, 0] == 1).all()


def test_draws_belong_to_the_cell(batch):
    """A cell is treated alike among other cells, and another seed treats it in another way."""
    corruption = GenerateExpression(visible=6, expressed=5, unexpressed=4)
    whole = corruption(batch, np.random.default_rng(3))
    part = corruption(batch.select(slice(4, 7)), np.random.default_rng(3))
    for place, cell in enumerate(range(4, 7)):
        assert tokens(whole, cell, whole.hidden) == tokens(part, place, part.hidden)
        assert tokens(whole, cell, whole.mask) == tokens(part, place, part.mask)
    other = corruption(batch, np.random.default_rng(4))
    assert any(tokens(whole, cell, whole.hidden) != tokens(other, cell, other.hidden) for cell in range(8))


@pytest.mark.parametrize("options", [{"visible": 0}, {"expressed": 0}, {"unexpressed": -1}, {"keep_first": -1}])
def test_wrong_options_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        GenerateExpression(**options)


def test_genes_are_asked_for_as_often_in_cells_that_express_them(rng):
    """With known frequencies a question about a gene has both answers with the same chance."""
    frequency = np.linspace(0.1, 0.9, N_GENES)
    expressed = rng.random((6000, N_GENES)) < frequency
    genes = torch.cat([torch.ones(6000, 1), torch.arange(2, N_GENES + 2).expand(6000, -1)], dim=1).long()
    values = torch.from_numpy(np.column_stack([np.full(6000, -2), expressed * 3])).float()
    batch = TokenBatch(genes, values, torch.ones_like(genes, dtype=torch.bool), index=torch.arange(6000))
    known = torch.tensor([0.0, 0.0, *frequency])

    def share_expressed(corruption: GenerateExpression) -> np.ndarray:
        seen = corruption(batch, 0)
        queries = np.bincount(seen.genes[seen.hidden], minlength=N_GENES + 2)[2:]
        found = np.bincount(seen.genes[seen.hidden & (seen.target > 0)], minlength=N_GENES + 2)[2:]
        return found / queries

    plain = GenerateExpression(visible=4, expressed=2, unexpressed=2)
    assert np.ptp(share_expressed(plain)) > 0.7
    assert np.abs(share_expressed(plain.knowing(known)) - 0.5).max() < 0.12
    assert plain.knowing(known) == plain
    assert plain.frequency is None
