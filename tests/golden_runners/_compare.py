"""How a case is compared, as the page that describes the cases says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path


def load(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def close(ours: Any, theirs: Any, tolerance: dict | str, what: str) -> None:
    """``|a - b| <= atol + rtol |b|``, with NaN equal to NaN; exact where the case says so."""
    ours, theirs = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} against {theirs.shape}"
    if isinstance(tolerance, str):
        np.testing.assert_array_equal(ours, theirs, err_msg=what)
    else:
        np.testing.assert_allclose(ours, theirs, atol=tolerance["atol"], rtol=tolerance["rtol"], err_msg=what)


def same_gradient(ours: torch.Tensor, theirs: torch.Tensor, tolerance: dict, what: str) -> None:
    """The largest difference against the largest entry."""
    assert ours.shape == theirs.shape, what
    limit = tolerance["gradients"]["max_abs_difference_over_max_abs_reference"] * theirs.abs().max()
    difference = (ours - theirs).abs().max()
    assert difference <= limit, f"{what}: gradient differs by {difference:.3g}, limit {limit:.3g}"


def updated_like_adam(ours: torch.Tensor, theirs: torch.Tensor, rate: float, what: str) -> None:
    """Within 0.05 learning rates; one element in a thousand may be off by two, as Adam's first step is a sign."""
    difference = (ours - theirs).abs()
    assert difference.max() <= 2 * rate * (1 + 1e-4), f"{what}: off by {difference.max() / rate:.3g} learning rates"
    share = (difference > 0.05 * rate).float().mean()
    assert share <= max(1e-3, 1 / difference.numel()), f"{what}: {share:.2%} of the elements are off"
