"""Number formats, and eval mode for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scgpt_tools.models.modes import evaluating
from scgpt_tools.models.precision import autocast, resolve_precision

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("precision", "device", "bf16", "expected"),
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
def test_choice(monkeypatch, precision, device, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
    assert resolve_precision(precision, device) == expected


@pytest.mark.parametrize(("precision", "message"), [("fp8", "one of 'auto', 'fp32'"), ("fp16", "needs a GPU")])
def test_refused(precision, message):
    with pytest.raises(ValueError, match=message):
        resolve_precision(precision, CPU)


def test_autocast():
    linear = nn.Linear(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(precision, CPU):
            assert linear(torch.ones(1, 2)).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")


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
