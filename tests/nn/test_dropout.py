"""Dropout by few draws: as often as asked, independent, with the gradient of what was kept."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn.dropout import Dropout, draw_kept, drawing_from, drop


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.5, 0.9])
def test_so_many_are_zero_and_the_others_stay(probability):
    torch.manual_seed(0)
    x = torch.rand(7, 300, 301) + 1
    dropped = drop(x, probability)
    share = (dropped == 0).float().mean()
    assert share == pytest.approx(probability, abs=0.005)
    assert torch.equal(dropped[dropped != 0], x[dropped != 0])
    # Numbers that share a draw do not share their fate: neighbours agree as often as chance has it.
    kept = (dropped != 0).flatten()
    chance = probability**2 + (1 - probability) ** 2
    for apart in range(1, 9):
        assert (kept[apart:] == kept[:-apart]).float().mean() == pytest.approx(chance, abs=0.005)


def test_the_gradient_is_that_of_what_was_kept():
    torch.manual_seed(0)
    x = torch.rand(5, 6, requires_grad=True)
    dropped = drop(x, 0.4)
    (3 * dropped).sum().backward()
    assert torch.equal(x.grad, 3.0 * (dropped != 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_module_scales_what_it_keeps(dtype):
    torch.manual_seed(0)
    x = (torch.rand(200, 200) + 1).to(dtype).requires_grad_()
    module = Dropout(0.25)
    dropped = module(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.75)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.01)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, kept.to(dtype) / 0.75)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    # Few numbers go to torch, which has the same distribution.
    assert set(Dropout(0.5)(torch.ones(8)).tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.0003, 0.1, 0.7])
def test_the_probability_is_right_over_many_draws(dtype, probability):
    shares = []
    with drawing_from(0):
        for _ in range(4000):
            kept = draw_kept((64,), probability, dtype)
            assert kept.dtype == dtype
            shares.append(1 - kept.float().mean())
    found = torch.stack(shares)
    assert float(found.mean()) == pytest.approx(probability, abs=4 * float(found.std()) / 4000**0.5 + 1e-4)


def test_nearly_all_may_be_dropped():
    torch.manual_seed(0)
    assert (Dropout(0.999999)(torch.ones(2**17)) == 0).float().mean() > 0.9999


def test_seeds_decide():
    torch.manual_seed(1)
    first = drop(torch.ones(100), 0.5)
    second = drop(torch.ones(100), 0.5)
    torch.manual_seed(1)
    assert torch.equal(drop(torch.ones(100), 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5])
def test_any_size(size):
    assert drop(torch.ones(size, 1), 0.5).shape == (size, 1)


def test_draws_of_a_thread():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with drawing_from(3):
        first = [draw_kept((5, 3), 0.5, torch.float32), drop(torch.ones(50), 0.5), Dropout(0.5)(torch.ones(8))]
        with drawing_from(4):
            other = draw_kept((5, 3), 0.5, torch.float32)
        rest = draw_kept((5,), 0.5, torch.float32)
    with drawing_from(3):
        again = [draw_kept((5, 3), 0.5, torch.float32), drop(torch.ones(50), 0.5), Dropout(0.5)(torch.ones(8))]
        assert torch.equal(draw_kept((5,), 0.5, torch.float32), rest)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other)
    # Torch's own numbers are left alone.
    assert torch.equal(torch.get_rng_state(), state)
