"""What is hidden is hidden, is scored, and is as much as was wished."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.tokens.batch import DECLARED, TokenBatch
from scgpt_tools.tokens.corruptions import CORRUPTIONS as KINDS
from scgpt_tools.tokens.corruptions import Corruption, GenerateValues, MaskValues

LENGTHS = (13, 2, 9, 1, 12)
PAD = 0
INPUTS = [name for name, declared in DECLARED.items() if declared.read]


@pytest.fixture
def batch() -> TokenBatch:
    """Cells of several lengths, each token, the first included, with a gene and a value of its own, and a modality that follows the gene."""
    width = max(LENGTHS) + 2
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    genes = torch.where(mask, torch.arange(mask.numel()).reshape(mask.shape) + 10, PAD)
    values = torch.where(mask, (genes % 50).float() + 1, -2.0)
    values[:, 0] = -2.0
    return TokenBatch(genes=genes, values=values, mask=mask, modality=genes % 3, index=torch.arange(len(LENGTHS)))


def copied(batch: TokenBatch) -> dict[str, torch.Tensor]:
    return {name: getattr(batch, name).clone() for name in ("genes", "values", "mask", "modality", "index")}


CORRUPTIONS = {
    "mask": MaskValues(),
    "mask each": MaskValues(count="bernoulli", ratio=0.5),
    "mask cell tokens too": MaskValues(keep_first=0, ratio=(0.3, 0.9)),
    "generate": GenerateValues(),
    "generate half": GenerateValues(ratio=0.5),
}


@pytest.fixture(params=CORRUPTIONS)
def corruption(request):
    return CORRUPTIONS[request.param]


def test_the_truth_is_kept_and_the_batch_too(corruption, batch):
    before = copied(batch)
    seen = corruption(batch, 0)
    for name, tensor in before.items():
        assert torch.equal(getattr(batch, name), tensor)
    truth = dict(zip(batch.genes[batch.mask].tolist(), batch.values[batch.mask].tolist(), strict=True))
    assert all(truth[gene] == value for gene, value in pairs(seen.genes[seen.mask], seen.target[seen.mask]))
    assert (seen.values[seen.hidden] == corruption.mask_value).all()
    assert torch.equal(seen.values[~seen.hidden], seen.target[~seen.hidden])
    assert not (seen.hidden & ~seen.mask).any()


def test_hidden_truth_is_hidden(corruption, batch):
    """Other values at hidden places give the network the same inputs."""
    seen = corruption(batch, 3)
    hidden = set(seen.genes[seen.hidden].tolist())
    places = torch.tensor([[gene in hidden for gene in row] for row in batch.genes.tolist()])
    other = corruption(batch.replace(values=torch.where(places, batch.values + 1000, batch.values)), 3)
    for name in INPUTS:
        first, second = getattr(seen, name), getattr(other, name)
        assert (first is None and second is None) or torch.equal(first, second)
    assert not torch.equal(seen.target, other.target)


def test_draws_follow_the_seed(corruption, batch):
    first, again, other = corruption(batch, 0), corruption(batch, 0), corruption(batch, 1)
    generator = corruption(batch, np.random.default_rng(0))
    assert torch.equal(first.genes, again.genes)
    assert torch.equal(first.hidden, again.hidden)
    assert torch.equal(first.hidden, generator.hidden)
    assert not (torch.equal(first.hidden, other.hidden) and torch.equal(first.genes, other.genes))


@pytest.mark.parametrize("keep_first", [0, 1, 2])
@pytest.mark.parametrize("ratio", [0.15, 0.4, 0.75])
def test_an_exact_part_of_every_cell_is_masked(batch, keep_first, ratio):
    seen = MaskValues(ratio=ratio, keep_first=keep_first)(batch, 5)
    expected = [int(ratio * max(length - keep_first, 0)) for length in LENGTHS]
    assert seen.hidden.sum(1).tolist() == expected
    assert not seen.hidden[:, :keep_first].any()


def test_every_value_is_as_likely_to_be_masked(batch):
    often = sum(MaskValues(ratio=0.4)(batch, seed).hidden.float() for seed in range(2000)) / 2000
    for cell, length in enumerate(LENGTHS):
        n = length - 1
        if n > 1:
            share = int(0.4 * n) / n
            np.testing.assert_allclose(often[cell, 1:length], share, atol=5 * np.sqrt(0.25 / 2000))


def test_zeros_may_be_left_alone(batch):
    values = batch.values.clone()
    values[:, 3] = 0
    zeros = batch.replace(values=values)
    assert any(MaskValues(ratio=0.9)(zeros, seed).hidden[:, 3].any() for seed in range(5))
    assert not any(MaskValues(ratio=0.9, zeros=False)(zeros, seed).hidden[:, 3].any() for seed in range(5))


def test_one_of_several_ratios_is_drawn_for_a_batch(batch):
    ratios = (0.25, 0.5, 0.75)
    drawn = Counter(int(MaskValues(ratio=ratios)(batch, seed).hidden[0].sum()) for seed in range(300))
    assert set(drawn) == {int(ratio * 12) for ratio in ratios}
    assert min(drawn.values()) > 60


@pytest.mark.parametrize("keep_first", [0, 1, 2])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_split_only_moves_tokens(batch, ratio, keep_first):
    split = GenerateValues(ratio=ratio, keep_first=keep_first)(batch, 2)
    width = max(LENGTHS)
    n_generated = int((width - keep_first) * ratio)
    border = width - n_generated
    assert split.genes.shape == (len(LENGTHS), width)
    assert torch.equal(split.generated, (torch.arange(width) >= border).expand(len(LENGTHS), width))
    assert torch.equal(split.hidden, split.generated & split.mask)
    assert torch.equal(split.genes[:, :keep_first], batch.genes[:, :keep_first])
    assert torch.equal(split.modality, split.genes % 3)
    assert (split.genes[~split.mask] == PAD).all()
    assert (split.values[~split.mask] == -2).all()
    for cell, length in enumerate(LENGTHS):
        assert sorted(split.genes[cell].tolist()) == sorted(batch.genes[cell, :width].tolist())
        n = int(max(length - keep_first, 0) * ratio)
        for side, expected in ((split.mask[cell, :border], length - n), (split.mask[cell, border:], n)):
            assert side.tolist() == [True] * expected + [False] * (len(side) - expected)


def test_a_batch_of_cell_tokens_only_has_nothing_to_hide(batch):
    only = batch.select(torch.tensor([3]))
    for corruption in (MaskValues(), GenerateValues()):
        seen = corruption(only, 0)
        assert not seen.hidden.any()
    assert torch.equal(seen.genes, only.genes[:, :1])


@pytest.mark.parametrize("kind", [MaskValues, GenerateValues])
@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, (0.5, 1), ()])
def test_ratios_that_cannot_be(kind, ratio):
    with pytest.raises(ValueError, match="Expected `ratio`"):
        kind(ratio=ratio)


def test_other_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="Expected `keep_first` to be at least 0"):
        MaskValues(keep_first=-1)
    with pytest.raises(ValueError, match="Expected `count` to be one of 'exact', 'bernoulli', found 'some'"):
        MaskValues(count="some")


def pairs(genes: torch.Tensor, values: torch.Tensor):
    return zip(genes.tolist(), values.tolist(), strict=True)


def test_every_channel_of_a_value_is_hidden(batch):
    """A bin or a rank beside the value tells it as well, so both go with it."""
    batch = batch.replace(bins=batch.genes % 7, positions=batch.genes % 11)
    seen = MaskValues(mask_bin=8, mask_position=12)(batch, 0)
    assert (seen.bins[seen.hidden] == 8).all()
    assert (seen.positions[seen.hidden] == 12).all()
    assert torch.equal(seen.target_bins, batch.bins)
    assert torch.equal(seen.bins[~seen.hidden], batch.bins[~seen.hidden])
    # Visible tokens are numbered afresh: a gap would tell the place of a hidden one.
    for row in range(len(batch)):
        visible = seen.positions[row][batch.mask[row] & ~seen.hidden[row]]
        assert torch.equal(visible, torch.arange(len(visible)))
    with pytest.raises(ValueError, match="Expected `mask_bin` to hide the `bins`"):
        MaskValues(mask_position=12)(batch, 0)
    with pytest.raises(ValueError, match="Expected `mask_position`"):
        GenerateValues(mask_bin=8)(batch, 0)


@pytest.mark.parametrize("name", KINDS)
def test_every_corruption_is_found_by_its_name(name):
    given = {"name": name} | ({"chances": [0.1]} if name == "mask_bins" else {})
    # It hides nothing, so markers are refused.
    given |= {"mask_value": -3} if name != "next_tokens" else {}
    corruption = from_dict(Corruption, given)
    assert type(corruption) is KINDS[name]
    assert corruption.mask_value == given.get("mask_value", Corruption.mask_value)
    assert from_dict(Corruption, to_dict(corruption)) == corruption
    with pytest.raises(ValueError, match="Did you mean 'mask_value'"):
        from_dict(Corruption, {"name": name, "mask_values": 1})
