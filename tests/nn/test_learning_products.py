"""Attention with gradients by products, head by head, against the formula."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn import learning_products, products
from scgpt_tools.nn.attention import PackedLayout, varlen
from scgpt_tools.nn.dropout import draw_kept, draw_seed, drawing_from
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


LENGTHS = (40, 7, 25)
FEWER = (12, 0, 25)


def formula_by_cell(q, k, v, kept=None, queries=LENGTHS):
    cells = zip(q.split(queries), k.split(LENGTHS), v.split(LENGTHS), kept or [None] * len(LENGTHS), strict=True)
    return torch.cat([formula(*cell) for cell in cells])


def drawn(seed: int, dropout: float, queries: tuple[int, ...]) -> list[torch.Tensor]:
    """What is kept of the weights of each cell, (H, m, n), divided by how likely that is."""
    kept = [torch.empty(HEADS, m, n, dtype=torch.float64) for m, n in zip(queries, LENGTHS, strict=True)]
    with drawing_from(seed):
        for own, m, n in zip(kept, queries, LENGTHS, strict=True):
            for heads, rows, _ in learning_products._blocks((m,), (n,), HEADS):
                own[heads, rows] = draw_kept(own[heads, rows].shape, dropout, torch.float32).double()
    return [own / (1 - dropout) for own in kept]


@pytest.mark.parametrize("way", ["all heads of a cell", "one head", "some rows"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("queries", [LENGTHS, FEWER])
def test_numbers_and_gradients(monkeypatch, way, dropout, queries):
    if way != "all heads of a cell":
        monkeypatch.setattr(learning_products, "_TOGETHER", 0)
    if way == "some rows":
        monkeypatch.setattr(products, "_CACHE", 4 * 40 * 7 // torch.get_num_threads())
    blocks = list(learning_products._blocks(queries, LENGTHS, HEADS))
    assert (len(blocks) > len(LENGTHS) * HEADS) == (way == "some rows")
    exact = cell(sum(LENGTHS))
    exact[0] = exact[0].detach()[: sum(queries)].requires_grad_()
    kept = None
    if dropout:
        torch.manual_seed(2)
        kept = drawn(draw_seed(), dropout, queries)
        assert 0.1 < float(torch.cat([(own == 0).flatten() for own in kept]).double().mean()) < 0.4
    expected = with_gradients(lambda *x: formula_by_cell(*x, kept, queries), exact)
    torch.manual_seed(2)
    single = [x.detach().float().requires_grad_() for x in exact]
    found = with_gradients(lambda *x: attend_and_learn(*x, queries, LENGTHS, HEADS, dropout), single)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("together", [0, 2**19], ids=["one head", "all heads"])
def test_half_precision(monkeypatch, together):
    monkeypatch.setattr(learning_products, "_TOGETHER", together)
    exact = cell(sum(LENGTHS))
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    found = with_gradients(lambda *x: attend_and_learn(*x, LENGTHS, LENGTHS, HEADS, 0.0), half)
    expected = with_gradients(formula_by_cell, exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, atol=0.05, rtol=0.05)


def test_scores_far_apart():
    exact = cell(scale=40.0)
    single = [x.detach().float().requires_grad_() for x in exact]
    found = with_gradients(lambda *x: attend_and_learn(*x, (40,), (40,), HEADS, 0.0), single)
    expected = with_gradients(lambda *x: formula(*x, None), exact)
    torch.testing.assert_close(found[0].double(), expected[0], atol=1e-2, rtol=1e-3)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("dropout", "least"), [(0.0, 512), (0.1, 64)])
def test_long_cells_in_training_take_it(dropout, least):
    lengths = (least, 30)
    q, k, v = (x.detach().float().requires_grad_() for x in cell(sum(lengths)))
    assert learning_pays(q, least, dropout=dropout)
    assert not learning_pays(q, least - 1, dropout=dropout)
    assert learning_pays(q.bfloat16(), least, dropout=dropout)
    assert not learning_pays(q.double(), least, dropout=dropout)
    layout = PackedLayout.from_lengths(lengths, "cpu")
    torch.manual_seed(0)
    context = varlen(q, k, v, layout, HEADS, dropout).context
    torch.manual_seed(0)
    assert torch.equal(context, attend_and_learn(q, k, v, lengths, lengths, HEADS, dropout))
    context.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_double_precision_stays_double():
    exact = cell(512)
    layout = PackedLayout.from_lengths((512,), "cpu")
    found = with_gradients(lambda *x: varlen(*x, layout, HEADS, 0.0).context, exact)
    for ours, theirs in zip(found, with_gradients(lambda *x: formula(*x, None), exact), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
