"""Layers in parts, with gradients, against all cells at once."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from scgpt_tools import _threads
from scgpt_tools._threads import in_training, training_threads
from scgpt_tools.nn import parts
from scgpt_tools.nn.attention import Kept, PackedLayout
from scgpt_tools.nn.sockets import Embedded, Sizes
from scgpt_tools.nn.transformer import TransformerConfig

LENGTHS = (30, 5, 17, 40, 3)
DIM = 16


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "_TOKENS", 48)
    monkeypatch.setattr(parts, "_NUMBERS", 0)


@contextmanager
def threads(monkeypatch, number: int):
    before = torch.get_num_threads()
    monkeypatch.setattr(_threads, "usable_cpus", lambda **_: number)
    torch.set_num_threads(number)
    try:
        with training_threads():
            yield
    finally:
        torch.set_num_threads(before)


def encoder(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    config = TransformerConfig(layers=3, heads=2, hidden=24, dropout=dropout, norm="pre", final_norm=True)
    return config.build(Sizes(dim=DIM)).train()


def tokens() -> torch.Tensor:
    return torch.randn(sum(LENGTHS), DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()


def kept(which: str) -> PackedLayout:
    layout = PackedLayout.from_lengths(LENGTHS, "cpu")
    if which == "some":
        drawn = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(3)) < 0.3
        drawn[30:35] = False  # nothing of the second cell
        places, counts = drawn.nonzero().squeeze(1), tuple(int(own.sum()) for own in drawn.split(LENGTHS))
        return replace(layout, kept=Kept(places, counts))
    return layout.keeping_first() if which == "first" else layout


def learnt(module: nn.Module, x: torch.Tensor, which: str = "all") -> list[torch.Tensor | None]:
    torch.manual_seed(5)
    module.zero_grad()
    result = module(Embedded(x, {}), None, kept(which)).tokens
    x.grad = None
    (result * torch.arange(result.numel()).view_as(result).sin()).sum().backward()
    return [result.detach(), x.grad, *(p.grad for p in module.parameters())]


def in_threads_of_cells(module: nn.Module, x: torch.Tensor) -> bool:
    names = set()
    handle = module.blocks[0].register_forward_hook(lambda *_: names.add(threading.current_thread().name))
    learnt(module, x)
    handle.remove()
    return any(name.startswith("cells") for name in names)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("which", ["all", "some", "first"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_same_as_all_cells_at_once(monkeypatch, number, which, frozen):
    module, x = encoder(), tokens()
    if frozen:
        module.blocks[0].requires_grad_(requires_grad=False)
        module.blocks[2].attention.key.weight.requires_grad_(requires_grad=False)
        x.requires_grad_(requires_grad=False)
    whole = learnt(module, x, which)
    with threads(monkeypatch, number):
        found = learnt(module, x, which)
    assert len(found[0]) == len(kept(which).keep(x))
    for ours, theirs in zip(found, whole, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    module, x = encoder(dropout=0.3), tokens()
    runs = []
    for number in (1, 2, 3, 2):
        with threads(monkeypatch, number):
            runs.append(learnt(module, x))
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
    assert not torch.equal(runs[0][0], learnt(encoder(), x)[0])


def test_half_precision(monkeypatch):
    module, x = encoder(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        whole = learnt(module, x)
        with threads(monkeypatch, 2):
            found = learnt(module, x)
    assert all(ours.dtype == theirs.dtype for ours, theirs in zip(found, whole, strict=True))
    torch.testing.assert_close(found[0], whole[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(found[1], whole[1], atol=0.1, rtol=0.1)


def test_where_parts_are_cut():
    layout = PackedLayout.from_lengths((50, 20, 20, 9, 1, 60), "cpu")
    assert [part.lengths for part in parts._parts(layout, DIM)] == [(50, 20), (20, 9, 1, 60)]


@pytest.mark.parametrize("reason", ["outside", "recomputed", "other dropout", "several processes", "no gradients"])
def test_reasons_to_stay_whole(monkeypatch, reason):
    module, x = encoder(), tokens()
    with threads(monkeypatch, 2):
        assert in_threads_of_cells(module, x)
        module.gradient_checkpointing = reason == "recomputed"
        if reason == "other dropout":
            module.blocks[1].feed_forward.dropout = nn.Dropout(0.1)
        if reason == "several processes":
            monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        if reason == "no gradients":
            module.requires_grad_(requires_grad=False)
            layout, names = PackedLayout.from_lengths(LENGTHS, "cpu"), []
            module.blocks[0].register_forward_hook(lambda *_: names.append(threading.current_thread().name))
            assert not module(Embedded(x.detach(), {}), None, layout).tokens.requires_grad
            assert names == [threading.current_thread().name]
        elif reason != "outside":
            assert not in_threads_of_cells(module, x)
    if reason == "outside":
        assert in_training() is None
        assert not in_threads_of_cells(module, x)


def test_errors_arrive(monkeypatch):
    module, x = encoder(), tokens()

    def fails(*_: object) -> None:
        raise KeyError("here")

    module.blocks[1].register_forward_hook(fails)
    with threads(monkeypatch, 2), pytest.raises(KeyError, match="here"):
        learnt(module, x)
    assert in_training() is None
