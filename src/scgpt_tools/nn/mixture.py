"""Mixtures of experts: a feed-forward part that sends each token to some of its experts, and a regressor of all of them.

Shape letters: D width, Q routed experts, E experts of a regressor.  ``...`` is any leading shape of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from scgpt_tools.config import settle_fields
from scgpt_tools.nn.dropout import Dropout
from scgpt_tools.nn.linear import Linear
from scgpt_tools.nn.sockets import HeadConfig, HeadInput, Sizes, check_least

if TYPE_CHECKING:
    from torch import Tensor

COLLAPSED = 0.8
"""Share of all picks above which one expert does the work of all."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Feed-forward parts of experts in the last layers of an encoder."""

    layers: int = 4
    """How many layers have them, from the last one on."""
    hidden: int = 512
    """Width within an expert."""
    experts: int = 2
    """Experts that tokens are sent to."""
    active: int = 2
    """How many of them each token is sent to."""
    shared: int = 1
    """Widths of an expert that the one which sees all tokens has."""
    score: Literal["softmax", "sigmoid", "sigmoid_unscaled"] = "softmax"
    """What makes weights of scores; those of ``"sigmoid"`` are scaled to a sum of 1 for each token, the others stay as they
    are."""
    scale: float = 1.0
    """Factor of the weights."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("layers", "hidden", "experts", "active", "shared"):
            check_least(name, getattr(self, name), 1)
        if self.active > self.experts:
            raise ValueError(f"Expected `active` to be at most experts={self.experts}, found {self.active}.")


class Usage(NamedTuple):
    """How often each expert was picked in training."""

    ratio: tuple[float, ...]
    """Share of all picks."""
    total: float
    """Picks of all tokens."""
    largest: float
    smallest: float
    variance: float
    """Of the shares, unbiased."""
    entropy: float
    collapsed: bool
    """Whether one expert has more than :data:`COLLAPSED` of the picks."""


class GatedNetwork(nn.Module):
    """Two maps, one of which gates the other, and one back: an expert."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.back, self.forth = Linear(dim, hidden), Linear(hidden, dim), Linear(dim, hidden)
        for part in (self.gate, self.back, self.forth):
            xavier(part)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., D) each by itself."""
        return self.back(F.silu(self.gate(x)) * self.forth(x))


class Router(nn.Module):
    """Choose experts for each token, and count how often each was chosen in training."""

    picks: Tensor
    total: Tensor

    def __init__(self, dim: int, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.score = nn.Linear(dim, config.experts)
        self.register_buffer("picks", torch.zeros(config.experts))
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the chosen experts, (N, D) to (N, active) each."""
        scores = self.score(x).float()
        scores = scores.softmax(dim=-1) if self.config.score == "softmax" else scores.sigmoid()
        weights, chosen = scores.topk(self.config.active, dim=-1)
        if self.config.score == "sigmoid":
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if self.training:
            with torch.no_grad():
                self.picks += chosen.flatten().bincount(minlength=self.config.experts).to(self.picks.dtype)
                self.total += chosen.numel()
        return weights * self.config.scale, chosen

    def usage(self) -> Usage:
        """What was counted so far; shares are 0 before any training."""
        ratio = self.picks.double() / self.total.double().clamp(min=1)
        smooth = ratio + 1e-10
        return Usage(
            ratio=tuple(ratio.tolist()),
            total=float(self.total),
            largest=float(ratio.max()),
            smallest=float(ratio.min()),
            variance=float(ratio.var()) if len(ratio) > 1 else 0.0,
            entropy=float(-(smooth * smooth.log()).sum()),
            collapsed=bool(ratio.max() > COLLAPSED),
        )

    def reset(self) -> None:
        """Count from 0 again."""
        self.picks.zero_()
        self.total.zero_()


class MixtureFeedForward(nn.Module):
    """Experts that each see some tokens, and one that sees all; without a residual of its own."""

    def __init__(self, dim: int, config: MixtureConfig) -> None:
        super().__init__()
        self.router = Router(dim, config)
        self.experts = nn.ModuleList(GatedNetwork(dim, config.hidden) for _ in range(config.experts))
        self.shared = GatedNetwork(dim, config.shared * config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (..., D) each by itself."""
        tokens = x.flatten(0, -2)
        weights, chosen = self.router(tokens)
        result = self.shared(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            part = expert(tokens[rows]) * weights[rows, place].unsqueeze(-1)
            result = result.index_add(0, rows, part.to(result.dtype))
        return result.view_as(x)


def routers(module: nn.Module) -> dict[str, Router]:
    """Routers of a network by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Router)}


def xavier(linear: nn.Linear) -> nn.Linear:
    """Draw weights as Xavier and Bengio do, with biases of 0."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class RegressionExpert(nn.Module):
    """A residual network with a norm and one number at the end."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.contract = xavier(Linear(dim, 2 * dim)), xavier(Linear(2 * dim, dim))
        self.norm, self.out = nn.LayerNorm(dim), xavier(nn.Linear(dim, 1))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., 1)."""
        inner = self.contract(self.dropout(F.gelu(self.expand(x))))
        return self.out(self.norm(x + self.dropout(inner)))


def earlier_expert(dim: int, dropout: float) -> nn.Sequential:
    """An expert of DeepSC's first generation: three maps, without a residual."""
    return nn.Sequential(
        *(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.LayerNorm(2 * dim), nn.Dropout(dropout)),
        *(nn.Linear(2 * dim, dim), nn.ReLU(), nn.LayerNorm(dim), nn.Dropout(dropout)),
        nn.Linear(dim, 1),
    )


class MixtureRegressor(nn.Module):
    """Experts that each predict a number, and a gate that weighs them."""

    def __init__(
        self, dim: int, experts: int, dropout: float, *, temperature: float = 1.0, earlier: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        narrow = dim // 2
        between = (nn.ReLU(), nn.LayerNorm(narrow)) if earlier else (nn.GELU(),)
        first, last = nn.Linear(dim, narrow), nn.Linear(narrow, experts)
        if not earlier:
            first, last = xavier(first), xavier(last)
        self.gate = nn.Sequential(first, *between, nn.Dropout(dropout), last)
        make = earlier_expert if earlier else RegressionExpert
        self.experts = nn.ModuleList(make(dim, dropout) for _ in range(experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) to numbers (...) and the weights of the experts (..., E)."""
        weights = (self.gate(x) / self.temperature).softmax(dim=-1, dtype=torch.float32)
        values = torch.cat([expert(x) for expert in self.experts], dim=-1)
        return (values * weights).sum(dim=-1), weights


class MixtureRegressorHead(MixtureRegressor):
    """The same as a head."""

    stream: str | None = None

    def forward(self, inputs: HeadInput) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the expression (B, L) and the weights of the experts, ``_gates`` (B, L, E)."""
        values, weights = super().forward(stream_of(inputs, self.stream))
        return {"": values, "_gates": weights}


def stream_of(inputs: HeadInput, name: str | None) -> Tensor:
    """(B, L, D) a further stream of the encoder, or for None its tokens.

    Raises
    ------
    ValueError
        If the encoder has no such stream.
    """
    if name is None:
        return inputs.tokens
    if name not in inputs.streams:
        raise ValueError(f"Expected an encoder with the stream {name!r}, found {list(inputs.streams)}.")
    return inputs.streams[name]


@dataclass(frozen=True, kw_only=True)
class MixtureRegressorConfig(HeadConfig):
    """Predict a token's expression by several experts, weighed by a gate."""

    of_its_own: ClassVar[bool] = True

    experts: int = 3
    temperature: float = 1.0
    """Of the softmax that weighs the experts."""
    earlier: bool = False
    """The experts and the gate of DeepSC's first generation."""
    stream: str | None = "fused"
    """Which stream of the encoder is read; ``None`` for its tokens."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_least("experts", self.experts, 1)
        if not self.temperature > 0:
            raise ValueError(f"Expected `temperature` to be above 0, found {self.temperature}.")

    def build(self, sizes: Sizes) -> nn.Module:
        """Make the head."""
        head = MixtureRegressorHead(
            sizes.dim, self.experts, sizes.dropout, temperature=self.temperature, earlier=self.earlier
        )
        head.stream = self.stream
        return head
