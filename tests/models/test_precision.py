"""Number formats, and eval mode for a while."""

from __future__ import annotations

import warnings
from threading import Event, Thread

import pytest
import torch
from torch import nn

from scgpt_tools.models import precision
from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import autocast, resolve_device, resolve_precision
from scgpt_tools.settings import settings

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("asked", "device", "bf16", "expected"),
    [
        ("auto", CPU, True, "fp32"),
        ("auto", MPS, True, "fp32"),
        ("auto", CUDA, True, "bf16"),
        ("auto", CUDA, False, "fp32"),
        ("bf16", CPU, True, "bf16"),
        ("fp16", CUDA, True, "fp16"),
        ("fp32", CUDA, True, "fp32"),
    ],
)
def test_choice(monkeypatch, asked, device, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert resolve_precision(asked, device) == expected


@pytest.mark.parametrize(("asked", "message"), [("fp8", "one of 'auto', 'fp32'"), ("fp16", "needs a GPU")])
def test_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        resolve_precision(asked, CPU)


def test_autocast():
    linear = nn.Linear(2, 2)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(name, CPU):
            assert linear(torch.ones(1, 2)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("machine", "bf16", "tile", "listed", "lacks"),
    [
        ("x86_64", False, False, {}, True),
        ("AMD64", False, False, {"avx_ne_convert": False}, True),
        ("x86_64", True, False, {}, False),
        ("x86_64", False, True, {}, False),
        ("x86_64", False, False, {"avx_ne_convert": True}, False),
        ("aarch64", False, False, {}, False),
    ],
)
def test_processors_that_compute_bf16_in_software(monkeypatch, machine, bf16, tile, listed, lacks):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tile, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listed, raising=False)
    assert precision.lacks_bf16() == lacks
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not precision.lacks_bf16()


@pytest.mark.parametrize(("asked", "warns"), [("bf16", True), ("auto", False), ("fp32", False)])
def test_bf16_in_software_is_warned_of(monkeypatch, asked, warns):
    monkeypatch.setattr(precision, "lacks_bf16", lambda: True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        assert resolve_precision(asked, CPU) == ("bf16" if warns else "fp32")
    assert [str(entry.message)[:46] for entry in found] == warns * ["This processor has no instructions for bf16 an"]
    monkeypatch.setattr(precision, "lacks_bf16", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_precision("bf16", CPU)


@pytest.mark.parametrize("fails", [False, True])
def test_every_part_gets_its_own_mode_back(fails):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model.train()
    model[1].eval()
    before = [part.training for part in model.modules()]
    try:
        with evaluating(model):
            assert not any(part.training for part in model.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [part.training for part in model.modules()] == before == [True, True, False, False]


@pytest.fixture
def machine(monkeypatch):
    """Function that says which accelerators there are."""

    def with_devices(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return with_devices


def test_device_asked_for_then_settings_then_what_is_there(machine):
    machine()
    assert resolve_device() == torch.device("cpu")
    machine(mps=True)
    assert resolve_device() == torch.device("mps")
    machine(cuda=2, mps=True)
    assert resolve_device() == resolve_device("auto") == torch.device("cuda")
    with settings.override(device="cuda:1"):
        assert resolve_device() == torch.device("cuda:1")
        assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "CPU", "cuda", "cuda:3", "mps", "meta", "", "cpu:7"])
def test_a_device_that_is_not_there_is_refused(machine, device):
    machine()
    with pytest.raises(ValueError, match=f"Expected `device` .* one of 'cpu'; found '{device}'"):
        resolve_device(device)
    with settings.override(device=device), pytest.raises(ValueError, match=r"Expected `settings\.device`"):
        resolve_device()
    machine(cuda=2)
    with pytest.raises(ValueError, match="'cuda', 'cuda:0', 'cuda:1', 'cpu'"):
        resolve_device("cuda:2")
    with pytest.raises(TypeError, match="the name of a device, found 3"):
        resolve_device(3)


def test_threads_share_a_model_in_eval_mode():
    """The first to be done must not put a model back into training mode under the others."""
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    one, other = Event(), Event()

    def first():
        with evaluating(model):
            one.set()
            other.wait(10)

    thread = Thread(target=first)
    thread.start()
    one.wait(10)
    with evaluating(model[0]):  # a part of it, by somebody else
        with evaluating(model):
            other.set()
            thread.join(10)
            assert [part.training for part in model.modules()] == [False, False, False]
        assert [part.training for part in model.modules()] == [True, False, True]
    assert all(part.training for part in model.modules())
