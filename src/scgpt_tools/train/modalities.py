"""How a model learns several modalities: the weights of its loss terms, and what is hidden from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scgpt_tools.objectives import BatchAdversary, MaskedExpression, MaskedExpressionFromCell
from scgpt_tools.tokens.modality_masks import HideModalities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.tokenizer import TokenizerConfig

# Chosen on pbmc_citeseq_2runs, see benchmarks/RESULTS.md.
_NO_PANEL = 0.3
_ADVERSARY = 100.0
_WHOLE = 0.8


def for_modalities(terms: Sequence[Objective], tokenizer: TokenizerConfig) -> tuple[Objective, ...]:
    """The original's terms as several modalities need them, where it counts values and asks for hidden ones only.

    A panel of fourteen proteins weighs more than all genes, whose errors are mostly noise that nothing predicts; the cell
    embedding holds what the network saw of it; and the adversary is heard beside squared errors of bins, which are about a
    hundred times a cross-entropy.  Without values of that size the adversary is left alone.
    """
    panels, weights = _panels(tokenizer), None
    if panels and len(panels) < len(tokenizer.parts):
        weights = tuple(1.0 if number in panels else _NO_PANEL for number in range(len(tokenizer.modalities)))
    large = any(part.values == "binned" or part.standard for part in tokenizer.parts)
    found: list[Objective] = []
    for term in terms:
        if isinstance(term, MaskedExpressionFromCell):
            found.append(replace(term, by_modality=True, modality_weights=weights, visible=True))
        elif isinstance(term, MaskedExpression):
            found.append(replace(term, by_modality=True, modality_weights=weights))
        elif isinstance(term, BatchAdversary) and large:
            found.append(replace(term, weight=_ADVERSARY))
        else:
            found.append(term)
    return tuple(found)


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
