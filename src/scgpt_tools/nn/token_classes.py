"""Predict which of several classes a token is of: which gene, or which bin its value has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.sockets import HeadConfig, HeadInput, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-12
"""What the norm adds to the variance, as in BERT and in scModelForge."""


class TokenClassesHead(nn.Module):
    """A linear map, an activation, a norm, and a logit of each class."""

    def __init__(self, dim: int, classes: int, *, hidden_only: bool) -> None:
        super().__init__()
        self.hidden_only = hidden_only
        self.dense, self.norm = Linear(dim, dim), nn.LayerNorm(dim, eps=EPS)
        self.out = Linear(dim, classes)

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return logits (B, L, C), or (H, C) of the H hidden tokens in their order where that is all that is asked for."""
        tokens = inputs.tokens
        if self.hidden_only and inputs.batch.hidden is not None:
            tokens = tokens[inputs.batch.hidden]
        return {"": self.out(self.norm(F.gelu(self.dense(tokens))))}


@dataclass(frozen=True, kw_only=True)
class TokenClassesConfig(HeadConfig):
    """Predict a class of each token from its contextual embedding.

    The classes are bins, or the tokens of the vocabulary; these are many, and logits are made for hidden tokens only
    where a batch has any.
    """

    of_its_own: ClassVar[bool] = True

    classes: int | None = None
    """Number of classes; ``None`` for one for each token of the vocabulary."""

    def __post_init__(self) -> None:
        settle_fields(self)
        if self.classes is not None:
            check_least("classes", self.classes, 1)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        everything = self.classes is None
        return TokenClassesHead(sizes.dim, self.classes or sizes.n_tokens, hidden_only=everything)
