"""Parts of a network under scGPT's names: what each is called and called with is scGPT's, what it computes is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from scgpt_tools.nn.embedders import BinnedValue, ContinuousValue, NormedTable
from scgpt_tools.nn.heads import (
    AdversaryHead,
    AffineExpressionHead,
    ClassifierHead,
    ExpressionHead,
    FromCellHead,
    Predicted,
    inner,
    sample_zeros,
)
from scgpt_tools.nn.norms import DomainNorm, SharedNorm
from scgpt_tools.nn.reversal import reverse_gradient

if TYPE_CHECKING:
    from collections.abc import Mapping


class Renamed(nn.Module):
    """A part of ours whose own parts are kept, listed and replaced under other names."""

    names: ClassVar[dict[str, str]]
    """Our name of a part to scGPT's."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self.names.get(name, name), value)

    def __getattr__(self, name: str) -> Any:
        theirs = self.names.get(name)
        # A part that was not built is None, an ordinary attribute.
        return super().__getattr__(name) if theirs is None else getattr(self, theirs)


# Inputs ---------------------------------------------------------------------------------------------------------------

_TABLE = {"table": "embedding", "norm": "enc_norm"}


class TableEncoder(Renamed, NormedTable):
    """Ids of genes, batches or modalities (...) to vectors (..., D)."""

    names = _TABLE


class ContinuousValueEncoder(Renamed, ContinuousValue):
    """Values (...) to vectors (..., D)."""

    names: ClassVar[dict[str, str]] = {"first": "linear1", "second": "linear2"}


class CategoryValueEncoder(Renamed, BinnedValue):
    """Bins (...) to vectors (..., D)."""

    names = _TABLE


class DomainSpecificBatchNorm1d(Renamed, DomainNorm):
    """Batch norm with statistics for each batch label."""

    names: ClassVar[dict[str, str]] = {"domains": "bns"}

    def forward(self, x: Tensor, domain_label: int) -> Tensor:  # type: ignore[override]
        """Normalise (B, D) or (B, D, S) by the statistics of one label."""
        self.check([domain_label])
        return _channels_last(self.bns[domain_label], x)

    def by_cell(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalise (B, S, D), each cell by the statistics of its own label."""
        return super().forward(x, labels)


class BatchNorm(SharedNorm):
    """Batch norm that takes (B, D) and (B, D, S) alone, as torch's does, and (..., D) beside labels, as our embedder's."""

    def forward(self, x: Tensor, *domain: Tensor | None) -> Tensor:
        """Normalise."""
        return super().forward(x) if domain else _channels_last(super().forward, x)


def _channels_last(norm: Any, x: Tensor) -> Tensor:
    """Normalise (B, D, S) as (B * S, D), which is how it lies in memory where it comes from (B, S, D)."""
    if x.dim() != 3:
        return norm(x)
    rows = x.permute(0, 2, 1)
    return norm(rows.flatten(0, 1)).view(rows.shape).permute(0, 2, 1)


# Outputs --------------------------------------------------------------------------------------------------------------


class ExprDecoder(Renamed, ExpressionHead):
    """Tokens (B, S, width) to ``pred`` (B, S) and perhaps ``zero_probs`` (B, S), the probability of a value above zero."""

    names: ClassVar[dict[str, str]] = {"value": "fc", "nonzero": "zero_logit"}

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Predict."""
        return _in_their_words(self.predict(x))


class AffineExprDecoder(Renamed, AffineExpressionHead):
    """Tokens (B, S, D) and the values before to the values after a perturbation, as :class:`ExprDecoder`."""

    names: ClassVar[dict[str, str]] = {"slope": "coeff_decoder", "offset": "bias_decoder"}

    def __init__(self, dim: int, *, nonzero: bool, activation: str | None, adaptive_offset: bool) -> None:
        super().__init__(dim, activation=activation, adaptive_offset=adaptive_offset)
        del self.nonzero  # the slope's own
        self.slope, self.offset = (ExprDecoder(dim, dim, nonzero=nonzero) for _ in range(2))  # type: ignore[assignment]

    def forward(self, x: Tensor, values: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Predict; ``values`` (B, S) are 0 at padding."""
        slope, offset = self.slope(x), self.offset(x)
        value = self.affine(slope["pred"], offset["pred"], values, values != 0)
        return _in_their_words(Predicted(value, slope.get("zero_probs")))


class ClsDecoder(Renamed, ClassifierHead):
    """Cell embeddings (B, D) to logits (B, C)."""

    names: ClassVar[dict[str, str]] = {"hidden": "_decoder", "out": "out_layer"}

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Predict."""
        return self.logits(x)


class AdversarialDiscriminator(Renamed, AdversaryHead):
    """Cell embeddings (B, D) to logits (B, C), behind a reversal of the gradient."""

    names = ClsDecoder.names

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Predict."""
        return self.logits(reverse_gradient(x))


class MVCDecoder(Renamed, FromCellHead):
    """Cell embeddings (B, width) and gene embeddings (B, S, query) to values, as :class:`ExprDecoder`."""

    names: ClassVar[dict[str, str]] = {
        "query": "gene2query",
        "product": "W",
        "nonzero": "W_zero_logit",
        "expand": "fc1",
        "activation": "hidden_activation",
        "contract": "fc2",
    }

    def forward(self, cell_emb: Tensor, gene_embs: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Predict."""
        return _in_their_words(self.predict(cell_emb, gene_embs))

    def score(self, linear: nn.Module, query: Tensor, cell: Tensor) -> Tensor:
        """Call a map that somebody changed; only weights that are known to be all there is are used by themselves."""
        return inner(linear(query), cell) if touched(linear) else super().score(linear, query, cell)


def _in_their_words(predicted: Predicted) -> dict[str, Tensor]:
    value, nonzero = predicted
    return {"pred": value} if nonzero is None else {"pred": value, "zero_probs": nonzero}


def results_of(name: str, predicted: Tensor | Mapping[str, Tensor], *, sample: bool) -> dict[str, Tensor]:
    """What a decoder said, as results of the network; a decoder that somebody put in may return the values alone."""
    if isinstance(predicted, Tensor):
        return {f"{name}_output": predicted}
    value, nonzero = predicted["pred"], predicted.get("zero_probs")
    if nonzero is None:
        return {f"{name}_output": value}
    return {f"{name}_output": sample_zeros(value, nonzero) if sample else value, f"{name}_zero_probs": nonzero}


# What a part may be without being called ------------------------------------------------------------------------------

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def touched(part: nn.Module, *known: type[nn.Module]) -> bool:
    """Whether a part was exchanged for one of another kind (torch's own aside), hooked or patched: then it must be called.

    Parameters
    ----------
    part
        The part.
    *known
        Kinds that are known to compute no more than their weights say.
    """
    if type(part) not in (nn.Linear, nn.LayerNorm, nn.Dropout, nn.ModuleList, *known) or "forward" in vars(part):
        return True
    return any(getattr(part, hooks) for hooks in _HOOKS)
