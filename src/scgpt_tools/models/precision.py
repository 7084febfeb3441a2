"""Number formats of matrix products, chosen by the caller and never inside a part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from scgpt_tools._validate import check_choice

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """Choose the number format for a device.

    Parameters
    ----------
    precision
        ``"auto"`` takes bf16 on CUDA devices that have it and fp32 elsewhere.
    device
        Where the products are computed.

    Returns
    -------
    ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Raises
    ------
    ValueError
        For another word, or fp16 on a CPU, where it would be slow.
    """
    check_choice("precision", precision, get_args(Precision))
    if precision == "auto":
        # Older GPUs emulate bf16, which is slower than fp32.
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("Expected precision 'fp32' or 'bf16' on a CPU, found 'fp16', which needs a GPU.")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Context in which matrix products run in a resolved precision; norms and sums stay in fp32."""
    return torch.autocast(device.type, dtype=_DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")
