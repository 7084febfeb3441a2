"""Rows and features of a table for a tokenizer, whether it reads one modality or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scgpt_tools._lookup import lookup
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.modalities import ModalityRows, has_modalities
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.joint_features import match_modalities
from scgpt_tools.tokens.units import warn_about_units

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import Expects, Layers
    from scgpt_tools.data.rows import Rows
    from scgpt_tools.tokens.matching import Duplicates, Totals
    from scgpt_tools.tokens.modalities import ModalityConfig
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How names of features are matched to a vocabulary; :func:`scgpt_tools.tl.embed` describes the fields."""

    genes: str | None = None
    symbols: NameTable | str | None = None
    aliases: NameTable | None = None
    ignore_case: bool = False
    duplicates: Duplicates = "most_counts"
    mask_var: ArrayLike | str | None = None
    """Of one modality."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of :meth:`~scgpt_tools.tokens.FeatureTable.from_var`."""
        return {
            "column": self.genes,
            "symbols": self.symbols,
            "aliases": self.aliases,
            "ignore_case": self.ignore_case,
            "duplicates": self.duplicates,
            **({} if self.mask_var is None else {"mask_var": self.mask_var}),
        }


class Opened(NamedTuple):
    """A table ready to be tokenized."""

    rows: Rows
    features: FeatureTable


def open_rows(
    data: AnnData | MuData,
    config: TokenizerConfig,
    *,
    layer: Layers = None,
    modality: str | None = None,
    modalities: Sequence[str] | None = None,
    opened: Rows | None = None,
) -> Rows:
    """Rows of a table as a tokenizer reads them.

    ``config``: of the tokenizer; its ``parts`` say which modalities it reads; ``modalities``: modalities to read of
    those that the tokenizer knows; ``None`` for all that are there; ``opened``: rows of the same table and layers,
    which are taken if the tokenizer reads them so.  Returns rows of one modality for a tokenizer of one, of several
    side by side for a tokenizer of several.
    """
    if not config.parts:
        if isinstance(layer, Mapping):
            raise TypeError(f"Expected `layer` to name one layer for a model of one modality, found {dict(layer)!r}.")
        if modalities is not None:
            raise ValueError(f"Expected no `modalities` for a model that reads one, found {list(modalities)}.")
        return opened if isinstance(opened, RowSource) else RowSource(data, layer=layer, modality=modality)
    names = [part.name for part in config.parts]
    if not has_modalities(data):
        raise TypeError(
            f"Expected a MuData for a model of the modalities {names}, found {type(data).__name__}. Wrap a single one "
            f"as `mudata.MuData({{{names[0]!r}: adata}})`."
        )
    named = [*(modalities or ()), *([] if modality is None else [modality])]
    asked = [lookup({known: known for known in names}, name, "modality") for name in named] or names
    there = [name for name in names if name in data.mod and name in asked]
    if not there:
        raise ValueError(f"Expected one of the modalities {asked} that the model reads, found {list(data.mod)}.")
    if isinstance(opened, ModalityRows) and list(opened.parts) == there:
        return opened
    return ModalityRows(data, modalities=there, layer=_of_these(layer, there))


def match_rows(
    rows: Rows,
    vocabulary: Vocabulary,
    config: TokenizerConfig,
    matching: Matching,
    *,
    totals: Totals | None = None,
    min_coverage: float = 0.5,
) -> FeatureTable:
    """Features of rows for a tokenizer whose vocabulary is fixed.

    ``totals``: sums of columns, where the rows are only some of those that count; of one modality; ``min_coverage``: warn
    if a smaller part of the genes of one modality matches.
    """
    if isinstance(rows, ModalityRows):
        if matching.mask_var is not None:
            raise ValueError("Expected no `mask_var` for several modalities, found one. Name one with `modality`.")
        parts: list[ModalityConfig] = [part for part in config.parts if part.name in rows.parts]
        return match_modalities(
            rows.mdata,
            vocabulary,
            parts,
            extend=False,
            numbering=config.modalities,
            totals={name: part.totals for name, part in rows.parts.items()},
            **matching.arguments(),
        )
    assert isinstance(rows, RowSource)  # noqa: S101 - there are no others
    return FeatureTable.from_var(
        rows.var, vocabulary, totals=totals or rows.totals, min_coverage=min_coverage, **matching.arguments()
    )


def warn_about_rows(rows: Rows, expects: Expects) -> None:
    """Warn if values do not look like what a tokenizer was made for; see :func:`warn_about_units`."""
    parts = rows.parts.values() if isinstance(rows, ModalityRows) else [rows]
    for part in parts:
        assert isinstance(part, RowSource)  # noqa: S101 - there are no others
        if len(part):
            warn_about_units(part.units, expects)


def warn_about_empty(expressed: NDArray[np.int64], names: pd.Index, where: str, consequence: str) -> None:
    """Warn of cells in which nothing that a model knows is above zero.

    ``expressed`` (cells,) known features above zero, negative for cells that were not measured; ``where``: which
    modality, as ``" of 'rna'"``; empty for tables of one.
    """
    empty = np.flatnonzero(expressed == 0)
    if empty.size:
        warn_user(
            f"Expected cells with known features{where} above zero, found {empty.size:,} of "
            f"{int((expressed >= 0).sum()):,} without any (first: {str(names[empty[0]])!r}). {consequence}"
        )


def _of_these(layer: Layers, names: Sequence[str]) -> Layers:
    """Layers of modalities that are read; a mapping may name others too."""
    return {name: key for name, key in layer.items() if name in names} if isinstance(layer, Mapping) else layer
