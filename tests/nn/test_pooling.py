"""Pooling of tokens to a cell."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn.pooling import POOLINGS, pool

MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
WEIGHTS = torch.tensor([[-2.0, 3.0, 1.0], [-2.0, 4.0, 9.0], [9.0, 9.0, 9.0]])


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))


def test_first_token(tokens):
    torch.testing.assert_close(pool("cls", tokens, MASK, WEIGHTS), tokens[:, 0])


def test_mean_of_the_real_tokens(tokens):
    found = pool("mean", tokens, MASK, WEIGHTS)
    torch.testing.assert_close(found[0], tokens[0].mean(0))
    torch.testing.assert_close(found[1], tokens[1, :2].mean(0))
    assert not found[2].any()


def test_mean_over_padding_too(tokens):
    torch.testing.assert_close(pool("mean_with_padding", tokens, MASK, WEIGHTS), tokens.mean(1))


def test_sum_weighted_by_the_values(tokens):
    found = pool("weighted", tokens, MASK, WEIGHTS)
    sums = torch.stack([(tokens[0] * WEIGHTS[0][:, None]).sum(0), -2 * tokens[1, 0] + 4 * tokens[1, 1]])
    torch.testing.assert_close(found[:2], sums / sums.norm(dim=1, keepdim=True))
    assert not found[2].any()


@pytest.mark.parametrize("style", ["mean", "weighted"])
def test_what_stands_at_padding_does_not_count(tokens, style):
    other = torch.where(MASK[..., None], tokens, torch.tensor(7.0))
    torch.testing.assert_close(pool(style, other, MASK, WEIGHTS), pool(style, tokens, MASK, WEIGHTS))


def test_a_long_cell_in_half_precision():
    """1200 tokens: a sum in bf16 itself would stop growing at 256."""
    tokens = torch.ones(1, 1200, 2, dtype=torch.bfloat16)
    found = pool("mean", tokens, torch.ones(1, 1200).bool(), torch.ones(1, 1200))
    torch.testing.assert_close(found.float(), torch.ones(1, 2), rtol=1e-2, atol=1e-2)


def test_unknown_names_are_refused(tokens):
    with pytest.raises((KeyError, ValueError), match="mean"):
        pool("meen", tokens, MASK, WEIGHTS)
    assert set(POOLINGS) == {"cls", "mean", "mean_with_padding", "weighted"}
