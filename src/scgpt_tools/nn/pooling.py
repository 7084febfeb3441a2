"""From token embeddings to one embedding a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from scgpt_tools._lookup import lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def first_token(tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Take the first token, ``<cls>`` where the tokenizer puts it there."""
    return tokens[:, 0]


def mean(tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Average the real tokens, ``<cls>`` included."""
    return (tokens * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def mean_with_padding(tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Divide by the padded width, so a cell depends on its neighbours; scGPT's ``avg-pool``, for parity only."""
    return tokens.mean(dim=1)


def weighted(tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sum tokens by their input values, scaled to unit length; scGPT's ``w-pool``."""
    return F.normalize((tokens * (weights * mask).unsqueeze(-1)).sum(dim=1), dim=1).to(tokens.dtype)


POOLINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cls": first_token,
    "mean": mean,
    "mean_with_padding": mean_with_padding,
    "weighted": weighted,
}


def pool(style: str, tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Pool (B, L, D) tokens to (B, D).

    ``tokens`` (B, L, D); ``mask`` (B, L) True on real tokens; ``weights`` (B, L) input values, used by ``"weighted"``.
    """
    return lookup(POOLINGS, style, "pooling")(tokens, mask, weights)
