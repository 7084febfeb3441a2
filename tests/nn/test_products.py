"""Attention by products is attention: the same numbers as the formula, and a way back where it cannot be."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn import products
from scgpt_tools.nn.attention import Attention, PackedLayout, _by_products
from scgpt_tools.nn.products import attend_by_products, products_pay

HEADS, DIM = 4, 32

needs_onednn = pytest.mark.skipif(products.onednn() is None, reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def another_processor(monkeypatch):
    """Not one of those where torch's own attention is faster."""
    for module in ("products", "attention"):
        monkeypatch.setattr(f"scgpt_tools.nn.{module}.blas_is_at_home", lambda: False)


def tokens(n_queries: int, n_keys: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, DIM, generator=generator) for n in (n_queries, n_keys, n_keys))
    return q * scale, k + 3.0, v


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _by_products(q.double(), k.double(), v.double(), HEADS, 0.0).float()


@needs_onednn
@pytest.mark.parametrize("cache", [1, 2**12, 2**22], ids=["query by query", "in parts", "at once"])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 37), (37, 37), (300, 300)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)], ids=str)
def test_the_formula(cache, sizes, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(products, "_CACHE", cache)
    q, k, v = (x.to(dtype) for x in tokens(*sizes))
    found = attend_by_products(q, k, v, HEADS)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), formula(q, k, v), rtol=0, atol=tolerance)


@needs_onednn
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_all_keys_is_nothing(shift):
    """The softmax does not see it, so it must not lead to infinite or vanishing sums."""
    q, k, v = tokens(10, 10)
    moved = attend_by_products(q, k + shift, v, HEADS)
    assert moved is not None
    torch.testing.assert_close(moved, attend_by_products(q, k, v, HEADS), rtol=0, atol=5e-3)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e2, 1e4], ids=["large", "infinite"])
def test_scores_far_apart_go_the_other_way(scale, dtype, monkeypatch):
    monkeypatch.setattr(products, "_LONG", 1)
    q, k, v = (x.to(dtype) for x in tokens(30, 30, scale))
    assert attend_by_products(q, k, v, HEADS) is None
    attention = Attention(DIM, HEADS, 0.0).to(dtype)
    with torch.no_grad():
        for part in (attention.query, attention.key):
            part.weight.mul_(scale)
        assert attention(v, PackedLayout.from_lengths((30,), "cpu"), "varlen").context.isfinite().all()


@needs_onednn
def test_where_it_pays(monkeypatch):
    q, k, _ = tokens(1, products._LONG)
    assert products_pay(k, k)
    assert not products_pay(q, k)
    assert products_pay(q.bfloat16(), k.bfloat16())
    assert not products_pay(k.double(), k.double())
    assert not products_pay(k.to("meta"), k.to("meta"))
    monkeypatch.setattr(products, "onednn", lambda: None)
    assert not products_pay(k, k)


@needs_onednn
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)], ids=str)
def test_only_without_gradients(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(products, "_LONG", 1)
    used = []
    monkeypatch.setattr(
        "scgpt_tools.nn.attention.attend_by_products", lambda *x: used.append(x) or attend_by_products(*x)
    )
    torch.manual_seed(0)
    attention, layout = Attention(DIM, HEADS, 0.0).to(dtype), PackedLayout.from_lengths((5, 3), "cpu")
    x = tokens(8, 8)[0].to(dtype)
    with_gradients = attention(x, layout, "varlen").context
    assert not used
    assert with_gradients.requires_grad
    with torch.no_grad():
        without = attention(x, layout, "varlen").context
    assert len(used) == 2
    torch.testing.assert_close(without, with_gradients.detach(), rtol=0, atol=tolerance)


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_onednn_can_be_switched_off():
    q, k, _ = tokens(300, 300)
    assert products_pay(q, k)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products_pay(q, k)
