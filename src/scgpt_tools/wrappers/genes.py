"""Genes of a wrapper: from its settings, a list, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgpt_tools.wrappers.config import scGPTConfig


def listed(genes: Iterable[str]) -> tuple[str, ...]:
    """Names of a gene list, each once."""
    if isinstance(genes, str):
        raise TypeError(f"Expected `gene_list` to be a list of genes, found one string, {genes!r}.")
    names = tuple(dict.fromkeys(map(str, genes)))
    if not names:
        raise ValueError("Expected genes in `gene_list`, found none.")
    return names


def vocabulary_of(config: scGPTConfig, genes: tuple[str, ...] | None) -> Vocabulary:
    """Genes of a model that is not loaded."""
    if config.vocab is not None:
        return config.vocab.extended(genes or ())
    if genes is None:
        raise ValueError(
            "Expected `gene_list`, the genes of the model, or a `config` of a loaded model, found neither. No vocabulary "
            "is shipped, because the rows of trained weights belong to the checkpoint's own: use `from_pretrained`."
        )
    known = Vocabulary.from_genes(
        genes, config.specials or (), special_first=config.special_first, pad=config.pad_token
    )
    whole, rows = known.extended((known.pad, known.cls)), config.ntoken
    if rows is not None and rows < len(known):
        raise ValueError(f"Expected `ntoken` to be at least {len(known)}, as many as there are genes, found {rows}.")
    everything = known.with_specials()
    # As files are read: the reserved token is there where it has a row.
    return everything if rows is not None and len(everything) <= rows else whole


def needed(vocabulary: Vocabulary | None) -> Vocabulary:
    """Vocabulary of settings that were resolved."""
    assert vocabulary is not None, "filled in before a network is built"  # noqa: S101
    return vocabulary
