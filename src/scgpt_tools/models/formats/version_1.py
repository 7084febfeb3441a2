"""Descriptions of models as the first version of our format had them, in the words of this one.

The embedder was a list of options, the only encoder was a transformer, and the heads were four of fixed names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    EmbedderNorm,
    ExpressionConfig,
    FromCellConfig,
    Named,
    TransformerConfig,
    ValueStyle,
    scgpt_embedder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class _Embedder:
    values: ValueStyle = "continuous"
    value_rows: int | None = None
    value_pad: int | None = None
    perturbation_rows: int = 0
    perturbation_pad: int | None = None
    generation: bool = False
    norm: EmbedderNorm = "none"


@dataclass(frozen=True, kw_only=True)
class _Expression:
    style: Literal["plain", "affine"] = "plain"
    nonzero: bool = False
    activation: str | None = None
    adaptive_offset: bool = False


@dataclass(frozen=True, kw_only=True)
class _Heads:
    expression: _Expression | None = None
    expression_from_cell: FromCellConfig | None = None
    cell_type: ClassifierConfig | None = None
    batch: AdversaryConfig | None = None


def in_todays_words(model: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Rewrite the description of a model, or of its network alone."""
    embedder = from_dict(_Embedder, model.get("embedder", {}), where=f"{where}.embedder")
    encoder = from_dict(TransformerConfig, model.get("encoder", {}), where=f"{where}.encoder")
    heads = from_dict(_Heads, model.get("heads", {}), where=f"{where}.heads")
    named: Named[Any] = Named(
        expression=_expression(heads.expression),
        expression_from_cell=heads.expression_from_cell,
        cell_type=heads.cell_type,
        batch=heads.batch,
    )
    return {
        **model,
        "embedder": to_dict(scgpt_embedder(**asdict(embedder))),
        "encoder": to_dict(encoder),
        "heads": {name: to_dict(head) for name, head in named.items()},
    }


def _expression(said: _Expression | None) -> ExpressionConfig | None:
    if said is None:
        return None
    if said.style == "plain":
        return ExpressionConfig(nonzero=said.nonzero)
    return AffineConfig(nonzero=said.nonzero, activation=said.activation, adaptive_offset=said.adaptive_offset)
