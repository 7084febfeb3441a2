"""Heads that read one stream of an encoder with several: the classifier of bins and the plain regressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.mixture import stream_of, xavier
from scgpt_tools.nn.sockets import HeadConfig, HeadInput, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor


class BinsHead(nn.Module):
    """Predict the bin of each token's value."""

    def __init__(self, dim: int, bins: int, stream: str | None) -> None:
        super().__init__()
        self.stream = stream
        self.layers = nn.Sequential(
            *(xavier(nn.Linear(dim, 2 * dim)), nn.GELU(), nn.LayerNorm(2 * dim)),
            *(xavier(nn.Linear(2 * dim, dim)), nn.GELU(), nn.LayerNorm(dim)),
            xavier(nn.Linear(dim, bins + 1)),
        )

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return logits (B, L, bins + 1); 0 is the bin of padding and never a target."""
        return {"": self.layers(stream_of(inputs, self.stream))}


@dataclass(frozen=True, kw_only=True)
class BinsConfig(HeadConfig):
    """Predict the bin of a token's value from its contextual embedding."""

    of_its_own: ClassVar[bool] = True

    bins: int = 5
    """Number of bins, counted from 1; a logit more stands for the bin of padding."""
    stream: str | None = "fused"
    """Which stream of the encoder is read; ``None`` for its tokens."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("bins", self.bins, 1)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return BinsHead(sizes.dim, self.bins, self.stream)


class DeepRegressorHead(nn.Module):
    """Predict a number of each token by four maps with norms."""

    DROPOUT = 0.1
    """Fixed, as in DeepSC."""

    def __init__(self, dim: int, stream: str | None) -> None:
        super().__init__()
        self.stream = stream
        widths = (dim, 2 * dim, dim, dim // 2)
        layers = [
            part
            for narrow, wide in zip(widths[:-1], widths[1:], strict=True)
            for part in (nn.Linear(narrow, wide), nn.ReLU(), nn.LayerNorm(wide), nn.Dropout(self.DROPOUT))
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:
        """Return the expression (B, L)."""
        return {"": self.layers(stream_of(inputs, self.stream)).squeeze(-1)}


@dataclass(frozen=True, kw_only=True)
class DeepRegressorConfig(HeadConfig):
    """Predict a token's expression by a network of four maps with norms, DeepSC's regressor without experts."""

    of_its_own: ClassVar[bool] = True

    stream: str | None = "fused"
    """Which stream of the encoder is read; ``None`` for its tokens."""

    def __post_init__(self) -> None:
        settle_fields(self)

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        return DeepRegressorHead(sizes.dim, self.stream)
