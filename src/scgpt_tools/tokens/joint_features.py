"""Features of several modalities as one table over their columns in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from scgpt_tools._lookup import lookup
from scgpt_tools._warnings import warn_user
from scgpt_tools.tokens.coverage import OUTCOMES, Coverage, some
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.modalities import ModalityConfig, Span, default_modality, modality_names
from scgpt_tools.tokens.names import column_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from scgpt_tools.tokens.matching import Duplicates, Totals
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.vocabulary import Vocabulary


class HasVar(Protocol):
    """A table with features."""

    @property
    def var(self) -> pd.DataFrame:
        """Columns of the features."""


class HasModalities(Protocol):
    """What of a MuData is needed here."""

    @property
    def mod(self) -> Mapping[str, HasVar]:
        """Tables by name."""


def match_modalities(
    mdata: HasModalities,
    vocabulary: Vocabulary,
    modalities: Sequence[ModalityConfig] | None = None,
    *,
    extend: bool = True,
    numbering: Sequence[str] | None = None,
    column: str | Mapping[str, str] | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    min_coverage: float = 0.5,
    duplicates: Duplicates = "most_counts",
    totals: Mapping[str, Totals] | None = None,
) -> FeatureTable:
    """Match the features of several modalities to one vocabulary.

    Parameters
    ----------
    mdata
        A MuData, or anything whose ``mod`` maps names to tables with a ``var``; not changed.
    vocabulary
        Tokens of the model.
    modalities
        How each modality is read, in the order of its columns; ``None`` reads all with the defaults of their names
        (:func:`~scgpt_tools.tokens.modalities.default_modality`).
    extend
        Append features that the vocabulary lacks, of modalities that are configured so, to the vocabulary of the
        table; its tokens keep their ids.  Otherwise what it lacks is not read.
    numbering
        Names of modalities in the order of their numbers, as ``TokenizerConfig.modalities`` of a model holds them;
        ``None`` sorts those that are read.
    column
        Column of ``var`` with the names, by modality; one name is that of modalities without prefix.
    symbols, aliases, ignore_case, duplicates
        As in :meth:`FeatureTable.from_var`, for modalities that are matched to genes.
    min_coverage
        Warn if a smaller part of the genes matches, or of the other features that the vocabulary knows of a
        modality.
    totals
        Sums of columns by modality; see :meth:`FeatureTable.from_var`.

    Returns
    -------
    A table over the columns of all modalities in a row; each modality is followed by one more column, which tells
    measured cells from others (:class:`~scgpt_tools.data.modalities.ModalityRows`).  Its ``vocabulary`` is the one
    given with what was added.

    Raises
    ------
    KeyError
        If a modality or a column is absent.
    ValueError
        If a modality has no features, a name twice, or none that the vocabulary knows.
    """
    matching: dict[str, Any] = {
        "symbols": symbols,
        "aliases": aliases,
        "ignore_case": ignore_case,
        "min_coverage": min_coverage,
        "duplicates": duplicates,
    }
    configs = [default_modality(name) for name in mdata.mod] if modalities is None else list(modalities)
    frames = {config.name: _frame(mdata, config.name) for config in configs}
    columns = {config.name: _column_of(config, column) for config in configs}
    grown = _extended(vocabulary, configs, frames, columns) if extend else vocabulary
    parts = [
        _match_one(
            frames[config.name],
            grown,
            config,
            columns[config.name],
            matching | {"totals": (totals or {}).get(config.name)},
        )
        for config in configs
    ]
    return joined_features(configs, parts, grown, modality_names(configs) if numbering is None else numbering)


def _frame(mdata: HasModalities, name: str) -> pd.DataFrame:
    var = lookup(dict(mdata.mod), name, "modality", error=KeyError).var
    to_memory = getattr(var, "to_memory", None)
    frame = to_memory() if callable(to_memory) else var
    if not len(frame):
        raise ValueError(f"Expected features in modality {name!r}, found none. Leave it out with `modalities=`.")
    return frame


def _column_of(config: ModalityConfig, column: str | Mapping[str, str] | None) -> str | None:
    if isinstance(column, Mapping):
        return column.get(config.name)
    return None if config.prefix else column


def _extended(
    vocabulary: Vocabulary,
    configs: Sequence[ModalityConfig],
    frames: Mapping[str, pd.DataFrame],
    columns: Mapping[str, str | None],
) -> Vocabulary:
    tokens: list[str] = []
    for config in configs:
        if config.extend:
            kept = None if config.keep is None else set(config.keep)
            names = (config.token_of(name) for name in _names(frames[config.name], config, columns[config.name]))
            tokens += [token for token in names if kept is None or token in kept]
    return vocabulary.extended(tokens)


def _names(frame: pd.DataFrame, config: ModalityConfig, column: str | None) -> list[str]:
    """Names of the features, each there and once: a second one would be another token without a name."""
    names = column_names(frame, column)
    named = [name for name in names if name is not None]
    if len(named) < len(names):
        raise ValueError(f"Expected a name for every feature of {config.name!r}, found {names.count(None)} without.")
    twice = tuple(name for name, count in Counter(named).items() if count > 1)
    if twice:
        raise ValueError(
            f"Expected every feature of {config.name!r} once, found {len(twice)} names again: {some(twice)}. Make them "
            "unique with `var_names_make_unique()`."
        )
    return named


def _match_one(
    frame: pd.DataFrame, vocabulary: Vocabulary, config: ModalityConfig, column: str | None, matching: Mapping[str, Any]
) -> FeatureTable:
    if config.extend:
        features = _match_exactly(_names(frame, config, column), vocabulary, config)
        _warn_about_panel(features, vocabulary, config, matching["min_coverage"])
        return features
    if config.prefix:
        raise ValueError(
            f"Expected modality {config.name!r} with a prefix to extend the vocabulary, which holds names of genes; "
            f"found extend=False with prefix {config.prefix!r}."
        )
    features = FeatureTable.from_var(frame, vocabulary, column=column, modality=config.name, **matching)
    if config.keep is None:
        return features
    features = _kept(features, config)
    _warn_about_panel(features, vocabulary, config, matching["min_coverage"])
    return features


def _warn_about_panel(
    features: FeatureTable, vocabulary: Vocabulary, config: ModalityConfig, min_coverage: float
) -> None:
    """Say that a table has few of the features that the model knows of a modality."""
    if config.keep is not None:
        n_known = len(config.keep)
    elif config.prefix:
        n_known = sum(token.startswith(config.prefix) for token in vocabulary)
    else:
        n_known = features.n_columns
    share = len(features) / max(n_known, 1)
    if share < min_coverage:
        warn_user(
            f"Only {len(features):,} of {n_known:,} features ({100 * share:.1f} %) that the model knows of modality "
            f"{config.name!r} are there; expected at least {100 * min_coverage:g} %. Not known: "
            f"{some(features.coverage.missing) or 'none'}. Give features the names that the model was trained with."
        )


def _match_exactly(names: Sequence[str], vocabulary: Vocabulary, config: ModalityConfig) -> FeatureTable:
    tokens = np.asarray([config.token_of(name) for name in names], dtype=object)
    kept = None if config.keep is None else set(config.keep)
    ids = vocabulary.ids(tokens)
    known = (ids >= 0) & np.asarray([kept is None or token in kept for token in tokens], dtype=bool)
    if not known.any():
        raise ValueError(
            f"Expected features of {config.name!r} that the vocabulary knows, found none among {len(names)}: it has no "
            f"token {tokens[0]!r}. Fine-tune a model on this modality first, or leave it out with `modalities=`."
        )
    outcomes = np.where(known, OUTCOMES.index("exact"), OUTCOMES.index("missing")).astype(np.int8)
    found = tokens.copy()
    found[~known] = None
    n_genes = len(vocabulary) - len(vocabulary.specials)
    coverage = Coverage(np.asarray(names, dtype=object), found, outcomes, known, n_vocabulary=n_genes)
    return FeatureTable(np.flatnonzero(known), ids[known], tokens[known], len(names), coverage)


def _kept(features: FeatureTable, config: ModalityConfig) -> FeatureTable:
    """The features among those that the cap has kept."""
    mine = pd.Index(features.names).isin(config.keep or ())
    if not mine.any():
        raise ValueError(
            f"Expected features of {config.name!r} among the {len(config.keep or ())} that the model reads, found none."
        )
    used = np.zeros(features.n_columns, dtype=bool)
    used[features.columns[mine]] = True
    return replace(
        features,
        columns=features.columns[mine],
        ids=features.ids[mine],
        names=features.names[mine],
        coverage=replace(features.coverage, used=used),
    )


def joined_features(
    configs: Sequence[ModalityConfig], parts: Sequence[FeatureTable], vocabulary: Vocabulary, numbering: Sequence[str]
) -> FeatureTable:
    """One table from those of the modalities, each followed by a column that tells measured cells from others."""
    numbers = {name: number for number, name in enumerate(numbering)}
    spans, start = [], 0
    for config, part in zip(configs, parts, strict=True):
        stop = start + part.n_columns
        spans.append(Span(config.name, start, stop, stop))
        start = stop + 1
    ids = np.concatenate([part.ids for part in parts])
    _refuse_shared(configs, parts)
    return FeatureTable(
        columns=np.concatenate([part.columns + span.start for part, span in zip(parts, spans, strict=True)]),
        ids=ids,
        names=np.concatenate([part.names for part in parts]),
        n_columns=start,
        coverage=_coverage(parts, len(vocabulary) - len(vocabulary.specials)),
        modality=np.concatenate(
            [np.full(len(part), numbers[config.name]) for config, part in zip(configs, parts, strict=True)]
        ),
        spans=tuple(spans),
        parts=tuple(parts),
        vocabulary=vocabulary,
    )


def _refuse_shared(configs: Sequence[ModalityConfig], parts: Sequence[FeatureTable]) -> None:
    owner: dict[str, str] = {}
    for config, part in zip(configs, parts, strict=True):
        for token in part.names:
            other = owner.setdefault(token, config.name)
            if other != config.name:
                raise ValueError(
                    f"Expected no token in two modalities, found {token!r} in {other!r} and {config.name!r}. Give one of "
                    "them another `prefix`."
                )


def _coverage(parts: Sequence[FeatureTable], n_vocabulary: int) -> Coverage:
    """Reports of the modalities as one."""

    def stacked(field: str) -> Any:
        return np.concatenate([getattr(part.coverage, field) for part in parts])

    names = ("names", "tokens", "outcomes", "used")
    return Coverage(**{name: stacked(name) for name in names}, n_vocabulary=n_vocabulary)
