"""Attention with gradients by products, head by head, against the formula."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn import products
from scgpt_tools.nn.attention import PackedLayout, varlen
from scgpt_tools.nn.dropout import draw_bits, kept_of
from scgpt_tools.nn.learning_products import attend_and_learn, learning_pays

HEADS, WIDTH = 2, 8

pytestmark = pytest.mark.skipif(
    not products.has_products(torch.zeros(1, 8)), reason="torch was built without oneDNN's linear map"
)


def cell(tokens: int = 40, scale: float = 1.0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(tokens, HEADS * WIDTH, generator=draw, dtype=torch.float64)).requires_grad_()
        for _ in range(3)
    ]


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, WIDTH)).transpose(0, 1) for x in (q, k, v))
    weights = (q @ k.mT * WIDTH**-0.5).softmax(dim=-1)
    return ((weights if kept is None else weights * kept) @ v).transpose(0, 1).flatten(1)


def with_gradients(function, inputs) -> list[torch.Tensor]:
    result = function(*inputs)
    given = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [result, *torch.autograd.grad(result, inputs, given.to(result.dtype))]


@pytest.mark.parametrize("cache", [products._CACHE, 4 * 40 * 7], ids=["one block a head", "several blocks"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_numbers_and_gradients(monkeypatch, cache, dropout):
    monkeypatch.setattr(products, "_CACHE", cache // torch.get_num_threads())
    exact = cell()
    kept = None
    torch.manual_seed(2)
    if dropout:
        _, rows = products.block_of(HEADS, 40, 40, torch.float32)
        starts = [range(0, 40, rows)] * HEADS
        drawn = [torch.cat([draw_bits((min(rows, 40 - start), 40)) for start in own]) for own in starts]
        kept = kept_of(torch.stack(drawn), dropout, torch.float64) / (1 - dropout)
        assert 0.1 < float((kept == 0).double().mean()) < 0.4
    expected = with_gradients(lambda *x: formula(*x, kept), exact)
    torch.manual_seed(2)
    single = [x.detach().float().requires_grad_() for x in exact]
    found = with_gradients(lambda *x: attend_and_learn(*x, HEADS, dropout), single)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


def test_scores_far_apart():
    exact = cell(scale=40.0)
    single = [x.detach().float().requires_grad_() for x in exact]
    found = with_gradients(lambda *x: attend_and_learn(*x, HEADS, 0.0), single)
    expected = with_gradients(lambda *x: formula(*x, None), exact)
    torch.testing.assert_close(found[0].double(), expected[0], atol=1e-2, rtol=1e-3)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_long_cells_in_training_take_it(dropout):
    n = 512
    q, k, v = (x.detach().float().requires_grad_() for x in cell(n))
    assert learning_pays(q, k, dropout=dropout)
    assert not learning_pays(q[:200], k[:200], dropout=dropout)
    assert not learning_pays(q.bfloat16(), k.bfloat16(), dropout=dropout)
    layout = PackedLayout.from_lengths((n,), "cpu")
    torch.manual_seed(0)
    context = varlen(q, k, v, layout, HEADS, dropout).context
    torch.manual_seed(0)
    torch.testing.assert_close(context, attend_and_learn(q, k, v, HEADS, dropout))
    context.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
