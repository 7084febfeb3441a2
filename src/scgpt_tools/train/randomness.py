"""The global random numbers of torch, which its layers and dropout draw from, lent for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw by seed inside a ``with`` block, and give the global random numbers back as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
