"""What a model of one modality becomes to read a MuData: parts of its configuration, and what is hidden from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scgpt_tools.objectives import BatchAdversary, MaskedExpression, MaskedExpressionFromCell
from scgpt_tools.tokens.modality_masks import HideModalities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgpt_tools.models.config import HeadsConfig, ModelConfig
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.tokenizer import TokenizerConfig

# Chosen on pbmc_citeseq_2runs, see benchmarks/RESULTS.md.
_NO_PANEL = 0.3
_ADVERSARY = 100.0
_WHOLE = 0.8


def modality_parts(config: ModelConfig, tokenizer: TokenizerConfig) -> dict[str, Any]:
    """Fields of a model's configuration that several modalities change, but for its heads.

    Parameters
    ----------
    config
        Of the model to start from.
    tokenizer
        Of several modalities.

    Returns
    -------
    Arguments of :meth:`~scgpt_tools.CellModel.adapt`.
    """
    names = tokenizer.modalities
    embedder = config.embedder
    if embedder.values != "scale":
        # What stands for the values of a modality that is not there.
        embedder = replace(embedder, generation=True)
    return {
        "family": "scgpt_multiomic",
        "embedder": embedder,
        "context": replace(config.context, modalities=len(names), modality_pad=names.index("<pad>")),
    }


def heads_in_context(heads: HeadsConfig) -> HeadsConfig:
    """Heads of a model of several modalities, whose gene query is told the modality."""
    if heads.expression_from_cell is None:
        return heads
    return replace(heads, expression_from_cell=replace(heads.expression_from_cell, context_in_query=True))


def by_modality(term: Objective) -> Objective:
    """A term as several modalities need it, where the original's counts values and asks for hidden ones only.

    A panel of fourteen proteins then weighs as much as all genes, and the cell embedding holds what the network saw of it.
    """
    if isinstance(term, MaskedExpressionFromCell):
        return replace(term, by_modality=True, shown=True)
    return replace(term, by_modality=True) if isinstance(term, MaskedExpression) else term


def weighed(terms: Sequence[Objective], tokenizer: TokenizerConfig) -> tuple[Objective, ...]:
    """Terms weighed by what they are of.

    Panels count more than other modalities, whose errors are mostly noise that nothing predicts.  The adversary is heard
    beside squared errors of bins, which are about a hundred times a cross-entropy; without such values it is left alone.
    """
    if any(part.values == "binned" or part.standard for part in tokenizer.parts):
        terms = [replace(term, weight=_ADVERSARY) if isinstance(term, BatchAdversary) else term for term in terms]
    panels = _panels(tokenizer)
    if not panels or len(panels) == len(tokenizer.parts):
        return tuple(terms)
    weights = tuple(1.0 if number in panels else _NO_PANEL for number in range(len(tokenizer.modalities)))
    return tuple(
        replace(term, modality_weights=weights)
        if isinstance(term, MaskedExpression | MaskedExpressionFromCell) and term.by_modality
        else term
        for term in terms
    )


def check_weights(terms: Sequence[Objective], tokenizer: TokenizerConfig) -> None:
    """Refuse weights of modalities that do not cover all numbers of modalities."""
    for term in terms:
        weights = getattr(term, "modality_weights", None)
        if weights is not None and len(weights) != len(tokenizer.modalities):
            raise ValueError(
                f"Expected `modality_weights` of {term.name!r} to hold a number for each of {list(tokenizer.modalities)}, "
                f"found {len(weights)}."
            )


def hiding(tokenizer: TokenizerConfig, *, generate: bool) -> HideModalities:
    """What to hide by default: whole panels in most cells, some values of all modalities in the others."""
    panels = _panels(tokenizer)
    several = len(tokenizer.parts) > 1
    return HideModalities(
        modalities=panels,
        whole=_WHOLE if panels and several else 0.0,
        mask_value=tokenizer.mask_value,
        generate=generate,
    )


def _panels(tokenizer: TokenizerConfig) -> tuple[int, ...]:
    """Numbers of the modalities of which a cell shows all features."""
    whole = {part.name for part in tokenizer.parts if part.genes == "all"}
    return tuple(number for number, name in enumerate(tokenizer.modalities) if name in whole)
