"""Hidden genes: how many, what stands in their place, and that nothing visible tells them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgpt_tools.tokens import MaskGenes, NextTokens, TokenBatch, Tokenizer, TokenizerConfig
from scgpt_tools.tokens.edges import uniform_edges
from scgpt_tools.vocabulary import Vocabulary

SPECIALS = ("<pad>", "<unk>", "<mask>", "<cls>")
VOCABULARY = Vocabulary([*SPECIALS, *(f"G{number}" for number in range(200))])
CONFIG = TokenizerConfig(
    values="raw", bins=None, length=None, cls_value=0.0, pad_value=0.0, positions=True, edges=uniform_edges(10)
)
TOKENIZER = Tokenizer(CONFIG, VOCABULARY)


@pytest.fixture
def batch() -> TokenBatch:
    """Cells of 40, 80 and 1 genes in the order of their columns, values that tell the gene."""
    lengths = np.array([41, 81, 2])
    genes = np.zeros((3, 81), dtype=np.int64)
    rng = np.random.default_rng(0)
    for row, length in enumerate(lengths):
        genes[row, 0] = 3
        genes[row, 1:length] = np.sort(rng.choice(200, length - 1, replace=False)) + 4
    mask = np.arange(81) < lengths[:, None]
    values = np.where(mask & (genes != 3), genes / 20, 0).astype(np.float32)
    tokens = TokenBatch(genes=torch.tensor(genes), values=torch.tensor(values), mask=torch.tensor(mask))
    return TOKENIZER.with_channels(tokens)


def test_how_many_and_what_of_them(batch):
    seen = MaskGenes().of(TOKENIZER)(batch, 0)
    assert seen.hidden.sum(1).tolist() == [6, 12, 1]
    assert not seen.hidden[:, 0].any()
    assert torch.equal(seen.target_genes, batch.genes)
    masked = (seen.genes == VOCABULARY["<mask>"]).sum(1).tolist()
    assert masked == [5, 10, 1]
    assert torch.equal(seen.genes[~seen.hidden], batch.genes[~seen.hidden])
    assert (seen.genes[seen.hidden] != 0).all()


def test_all_genes_can_be_hidden(batch):
    seen = MaskGenes(ratio=1, other=0, keep=0).of(TOKENIZER)(batch, 0)
    assert torch.equal(seen.hidden.sum(1), batch.mask.sum(1) - 1)
    assert (seen.genes[seen.hidden] == VOCABULARY["<mask>"]).all()


def test_everything_that_tells_a_hidden_gene_is_hidden(batch):
    seen = MaskGenes().of(TOKENIZER)(batch, 0)
    assert (seen.values[seen.hidden] == CONFIG.mask_value).all()
    assert not seen.bins[seen.hidden].any()
    assert not seen.positions[seen.hidden].any()
    for row in range(len(batch)):
        visible = seen.positions[row][batch.mask[row] & ~seen.hidden[row]]
        assert torch.equal(visible, torch.arange(len(visible)))


def looked_up(seen: TokenBatch) -> float:
    """Share of masked genes that a table of what stands beside them finds: the gene seen most often with it."""
    right = total = 0
    table = {}
    visible = seen.mask & ~seen.hidden
    for value, gene in zip(seen.values[visible], seen.genes[visible], strict=True):
        table[round(float(value), 4)] = int(gene)
    masked = seen.hidden & (seen.genes == VOCABULARY["<mask>"])
    for value, gene in zip(seen.values[masked], seen.target_genes[masked], strict=True):
        total += 1
        right += table.get(round(float(value), 4)) == int(gene)
    return right / total


def test_a_table_of_visible_inputs_finds_nothing(batch):
    """Values that tell the gene are of use only where the original's leak is asked for."""
    several = TokenBatch.stacked([batch.shortened(41).select(slice(0, 1))] * 20, TOKENIZER.padding)
    several = several.replace(index=torch.arange(20))
    assert looked_up(MaskGenes().of(TOKENIZER)(several, 1)) == 0
    assert looked_up(MaskGenes(compat=True).of(TOKENIZER)(several, 1)) > 0.9


def test_compat_leaves_all_but_the_gene(batch):
    seen = MaskGenes(compat=True).of(TOKENIZER)(batch, 0)
    for name in ("values", "bins", "positions"):
        assert torch.equal(getattr(seen, name), getattr(batch, name))


def test_draws_belong_to_the_cell(batch):
    batch = batch.replace(index=torch.tensor([7, 8, 9]))
    corruption = MaskGenes().of(TOKENIZER)
    alone = corruption(batch.select(slice(1, 2)), 5)
    assert torch.equal(alone.genes[0], corruption(batch, 5).genes[1])


def test_refusals(batch):
    with pytest.raises(ValueError, match="call `of` with a tokenizer"):
        MaskGenes()(batch)
    with pytest.raises(ValueError, match="vocabulary with '<mask>'"):
        MaskGenes().of(Tokenizer(CONFIG, Vocabulary(["<pad>", "<cls>", "A"])))
    with pytest.raises(ValueError, match="at most 1 together"):
        MaskGenes(other=0.6, keep=0.6)


def test_the_next_token(batch):
    seen = NextTokens()(batch)
    assert torch.equal(seen.genes, batch.genes)
    assert seen.hidden.sum(1).tolist() == [40, 80, 1]
    places = seen.hidden[:, :-1]
    for target, name in (("target_genes", "genes"), ("target", "values"), ("target_bins", "bins")):
        assert torch.equal(getattr(seen, target)[:, :-1][places], getattr(batch, name)[:, 1:][places])
