"""Changes of one token a cell."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.knockouts import most_expressed, overexpressed, with_values, without_tokens
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

PAD, CLS = 0, 1
VOCABULARY = Vocabulary(["<pad>", "<cls>", "A", "B", "C", "D", "E"])


def tokenizer(**config) -> Tokenizer:
    return Tokenizer(TokenizerConfig(values="raw", bins=None, **config), VOCABULARY)


@pytest.fixture
def batch() -> TokenBatch:
    """A cell with A, B, C and one with D, each behind its cell token."""
    genes = torch.tensor([[CLS, 2, 3, 4], [CLS, 5, PAD, PAD]])
    values = torch.tensor([[-2.0, 5.0, 3.0, 1.0], [-2.0, 2.0, -2.0, -2.0]])
    return TokenBatch(genes=genes, values=values, mask=genes != PAD)


def test_a_token_goes_and_padding_takes_its_room(batch):
    changed = without_tokens(batch, torch.tensor([2, 1]), tokenizer()).check()
    assert changed.genes.tolist() == [[CLS, 2, 4, PAD], [CLS, PAD, PAD, PAD]]
    assert changed.values.tolist() == [[-2, 5, 1, -2], [-2, -2, -2, -2]]
    assert changed.mask.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_places_are_numbered_afresh(batch):
    placed = batch.replace(positions=torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]]))
    changed = without_tokens(placed, torch.tensor([1, 1]), tokenizer(positions=True))
    assert changed.positions.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]


def test_a_value_is_exchanged_with_its_bin(batch):
    of_bins = tokenizer(linear_bins=5)
    before = of_bins.with_channels(batch)
    changed = with_values(before, torch.tensor([3, 1]), torch.tensor([5.0, 0.0]), of_bins)
    assert changed.values.tolist() == [[-2, 5, 3, 5], [-2, 0, -2, -2]]
    assert changed.bins[0, 3] == changed.bins[0, 1] == before.bins[0, 1]
    hidden = before.replace(hidden=torch.tensor([[False, False, True, False], [False] * 4]))
    hidden = hidden.replace(bins=hidden.bins.masked_fill(hidden.hidden, 7))
    assert with_values(hidden, torch.tensor([3, 1]), torch.tensor([5.0, 0.0]), of_bins).bins[0, 2] == 7


def test_a_gene_gets_the_highest_value_or_a_token_of_its_own(batch):
    top = most_expressed(batch, tokenizer())
    assert top.tolist() == [5, 2]
    changed = overexpressed(batch, torch.tensor([4, 6]), torch.tensor([3, -1]), top, tokenizer()).check()
    assert changed.genes.tolist() == [[CLS, 2, 3, 4, PAD], [CLS, 5, PAD, PAD, 6]]
    assert changed.values.tolist() == [[-2, 5, 3, 5, -2], [-2, 2, -2, -2, 2]]
    assert changed.mask.sum(dim=1).tolist() == [4, 3]


def test_where_order_is_expression_a_gene_goes_to_the_front(batch):
    ranking = tokenizer(order="rank", positions=True, length=4)
    placed = batch.replace(positions=torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]]))
    top = most_expressed(batch, ranking)
    changed = overexpressed(placed, torch.tensor([6, 6]), torch.tensor([-1, -1]), top, ranking)
    assert changed.genes.tolist() == [[CLS, 6, 2, 3], [CLS, 6, 5, PAD]]
    assert changed.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    there = overexpressed(placed, torch.tensor([4, 5]), torch.tensor([3, 1]), top, ranking)
    assert there.genes.tolist() == [[CLS, 4, 2, 3], [CLS, 5, PAD, PAD]]


def test_a_cell_without_genes_has_no_highest(batch):
    empty = batch.replace(mask=batch.mask & (batch.genes == CLS))
    assert most_expressed(empty, tokenizer()).isinf().all()
