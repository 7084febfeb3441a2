"""What a model of one modality becomes to read a MuData: parts of its configuration, and what is hidden from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scgpt_tools.tokens.modality_masks import HideModalities

if TYPE_CHECKING:
    from scgpt_tools.models.config import HeadsConfig, ModelConfig
    from scgpt_tools.tokens.tokenizer import TokenizerConfig


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


def hiding(tokenizer: TokenizerConfig, *, generate: bool) -> HideModalities:
    """What to hide by default: whole panels in half of the cells, some values of all modalities in the other half."""
    panels = tuple(
        number
        for number, name in enumerate(tokenizer.modalities)
        if any(part.name == name and part.genes == "all" for part in tokenizer.parts)
    )
    several = len(tokenizer.parts) > 1
    return HideModalities(
        modalities=panels,
        whole=0.5 if panels and several else 0.0,
        mask_value=tokenizer.mask_value,
        generate=generate,
    )
