"""Which processor torch computes on, where that decides which of its libraries is fastest."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

_ABOUT = Path("/proc/cpuinfo")


@cache
def blas_is_at_home() -> bool:
    """Whether torch multiplies by MKL on a processor whose widest instructions it uses.

    Those are Intel's, for which it was made, and others without AVX-512.  There its products are as fast as those of oneDNN,
    and torch's fused attention, which calls them, is faster than ours; on others with AVX-512 MKL takes two to three times as
    long (``benchmarks/linear.py``).
    """
    if not torch.backends.mkl.is_available():
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX2" or "GenuineIntel" in _about()


def _about() -> str:
    """What the system says of its first processor."""
    try:
        return _ABOUT.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor()
