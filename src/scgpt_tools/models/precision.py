"""Devices and number formats of matrix products, chosen by the caller and never inside a part."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Choose a device: the one asked for, else ``settings.device``, else CUDA, MPS or CPU, whichever comes first.

    ``device``: a name that torch knows, such as ``"cuda:1"``; ``"auto"`` or ``None`` to choose.
    """
    name, asked = ("device", device) if device is not None else ("settings.device", settings.device)
    if not isinstance(asked, str | torch.device):
        raise TypeError(f"Expected `{name}` to be the name of a device, found {asked!r}.")
    there = _devices()
    if str(asked) == "auto":
        return torch.device(there[0])
    try:
        chosen = torch.device(asked)
    except RuntimeError:
        chosen = None
    if chosen is None or (str(chosen) not in there and str(chosen).removesuffix(":0") not in there):
        raise ValueError(
            f"Expected `{name}` to be 'auto' or a device that is here, one of {', '.join(map(repr, there))}; found "
            f"{str(asked)!r}."
        )
    return chosen


def _devices() -> list[str]:
    """Names of the devices of this machine, best first."""
    several = ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    others = [name for name in ("xpu", "hpu") if hasattr(torch, name) and getattr(torch, name).is_available()]
    return [
        *(several if torch.cuda.is_available() else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
        "cpu",
        *others,
    ]


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """Choose the number format for a device, and warn of one that a processor has no instructions for."""
    check_choice("precision", precision, get_args(Precision))
    if precision == "auto":
        # Older GPUs emulate bf16, which is slower than fp32.
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("Expected precision 'fp32' or 'bf16' on a CPU, found 'fp16', which needs a GPU.")
    if precision == "bf16" and device.type == "cpu" and lacks_bf16():
        warn_user(
            "This processor has no instructions for bf16 and computes it in software, which is slower than fp32. Pass "
            "precision='fp32' or 'auto'.",
            once_about=(),
        )
    return precision


def lacks_bf16() -> bool:
    """Whether the processor is known to compute bf16 in software; not where torch does not tell, as for ARM."""
    tells = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    if platform.machine().lower() not in ("x86_64", "amd64") or None in tells:
        return False
    # The third way to have bf16, which torch lists since it has this function.
    others: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return not (any(tell() for tell in tells if tell is not None) or others.get("avx_ne_convert"))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Context in which matrix products run in a resolved precision; norms and sums stay in fp32."""
    return torch.autocast(device.type, dtype=_DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")
