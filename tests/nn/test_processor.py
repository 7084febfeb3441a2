"""Torch's own kernels where its BLAS is at home, oneDNN's elsewhere, with the same numbers."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.nn import processor
from scgpt_tools.nn.attention import Attention, PackedLayout
from scgpt_tools.nn.linear import _convolution_pays
from scgpt_tools.nn.products import products_pay

INTEL = "processor : 0\nvendor_id : GenuineIntel\n\nprocessor : 1\nvendor_id : GenuineIntel\n"


@pytest.mark.parametrize(
    "text", [INTEL, INTEL.replace("GenuineIntel", "AuthenticAMD"), ""], ids=["Intel", "AMD", "none"]
)
@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
@pytest.mark.parametrize("mkl", [True, False])
def test_vendor(text, capability, mkl, monkeypatch, tmp_path):
    about = tmp_path / "cpuinfo"
    about.write_text(text)
    monkeypatch.setattr(processor, "_ABOUT", about)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert processor.blas_is_at_home.__wrapped__() is (mkl and (text == INTEL or capability == "AVX2"))


def test_systems_without_such_a_file_are_asked_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_ABOUT", tmp_path / "none")
    monkeypatch.setattr(processor.platform, "processor", lambda: "Intel64 Family 6 Model 143, GenuineIntel")
    assert "GenuineIntel" in processor._about()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first_only", [True, False])
def test_same_numbers_either_way(dtype, first_only, monkeypatch):
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.0).to(dtype)
    lengths = (220, 3, 70)
    x = torch.randn(sum(lengths), 32).to(dtype)
    found = []
    for home in (False, True):
        for module in ("products", "linear", "attention"):
            monkeypatch.setattr(f"scgpt_tools.nn.{module}.blas_is_at_home", lambda home=home: home)
        assert not (home and products_pay(x, x))
        assert not (home and _convolution_pays(x, attention.query.weight))
        with torch.no_grad():
            layout = PackedLayout.from_lengths(lengths, "cpu")
            found.append(attention(x, layout.keeping_first(), "varlen", last=first_only).context)
    tolerance = 1e-6 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(*found, rtol=0, atol=tolerance)
