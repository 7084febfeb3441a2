"""The faster linear map gives torch's numbers, whichever kernel computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scgpt_tools.nn.linear import Linear


@pytest.fixture(params=[5, 13], ids="to {}".format)
def maps(request) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, theirs = Linear(8, request.param), nn.Linear(8, request.param)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


SHAPES = [(8,), (0, 8), (3, 8), (200, 8), (2, 100, 8), (4, 5, 10, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_numbers_and_gradients(maps, shape, dtype):
    ours, theirs = (module.to(dtype) for module in maps)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for module in (ours, theirs):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        y.square().sum().backward()
        results.append((y.detach(), inputs.grad, module.weight.grad, module.bias.grad))
    torch.testing.assert_close(*results)


def test_inputs_need_not_lie_in_order(maps):
    ours, theirs = maps
    x = torch.randn(8, 100, 3).permute(1, 2, 0)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[::2, 1:]), theirs(x[::2, 1:]))


def test_without_bias():
    torch.manual_seed(0)
    ours = Linear(8, 5, bias=False)
    x = torch.randn(100, 8)
    torch.testing.assert_close(ours(x), x @ ours.weight.T)


def test_autocast_is_the_callers(maps):
    ours, theirs = maps
    x = torch.randn(100, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
        torch.testing.assert_close(ours(x), theirs(x))
