"""Rules by which a name finds its token, and what to say about names that find none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pandas as pd

from scgpt_tools._warnings import warn_user
from scgpt_tools.tokens.coverage import MATCHED, OUTCOMES, Coverage, some
from scgpt_tools.tokens.names import column_names, describe, name_pairs, text_columns, unversioned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.vocabulary import Vocabulary

Duplicates: TypeAlias = Literal["most_counts", "first", "error", "all"]
"""What to do with several columns of the same token: read the one with the most counts or the one that is matched best,
refuse, or read each as a token."""

Totals: TypeAlias = "Callable[[NDArray[np.int64]], NDArray[np.float64]]"
"""Sum over the cells of each of some columns."""


# Human cells have some 20,000 genes with a protein, and measured panels have fewer than highly variable genes are taken.
_SMALL, _PANEL = 15_000, 2_000


class Matcher:
    """Token of one name, and the rule that found it."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        symbols: NameTable | None = None,
        aliases: NameTable | None = None,
        ignore_case: bool = False,
    ) -> None:
        specials = set(vocabulary.specials)
        self.genes = dict.fromkeys(token for token in vocabulary if token not in specials)
        self.shared = vocabulary.aliases
        self.ignore_case = ignore_case
        self.symbols = _Table({} if symbols is None else name_pairs(symbols, "symbols"), ignore_case=ignore_case)
        self.aliases = _Table({} if aliases is None else name_pairs(aliases, "aliases"), ignore_case=ignore_case)
        self._folded: dict[str, set[str]] = {}
        if ignore_case:
            for gene in self.genes:
                self._folded.setdefault(gene.casefold(), set()).add(gene)

    def __call__(self, name: str | None) -> tuple[str | None, str]:
        """Return the token, or ``None``, and the outcome."""
        if name is None:
            return None, "unnamed"
        if name in self.genes:
            return name, "exact"
        if name in self.shared:
            return self.shared[name], "alias"
        ambiguous = False
        for rule, candidates in self._candidates(name):
            found = {candidate for candidate in candidates if candidate in self.genes}
            if len(found) == 1:
                return found.pop(), rule
            ambiguous |= len(found) > 1
        return None, "ambiguous" if ambiguous else "missing"

    def _candidates(self, name: str) -> Iterable[tuple[str, Iterable[str]]]:
        bare = unversioned(name)
        symbols = self.symbols.of(bare)
        yield "ensembl", (bare, *symbols)
        outdated = (name, *symbols)
        current = [new for old in outdated for new in self.aliases.of(old)]
        yield "alias", current
        if self.ignore_case:
            yield (
                "case",
                {gene for spelled in (*outdated, *current) for gene in self._folded.get(spelled.casefold(), ())},
            )


class _Table:
    """Names to names, whatever the version of an Ensembl id and, if wished, the case."""

    def __init__(self, pairs: dict[str, tuple[str, ...]], *, ignore_case: bool) -> None:
        self._fold = str.casefold if ignore_case else str
        self._pairs: dict[str, tuple[str, ...]] = {}
        for old, new in pairs.items():
            key = self._fold(unversioned(old))
            self._pairs[key] = (*self._pairs.get(key, ()), *new)

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def of(self, name: str) -> tuple[str, ...]:
        return self._pairs.get(self._fold(name), ())


def matched(
    names: Sequence[str | None], matcher: Matcher, duplicates: Duplicates, totals: Totals | None = None
) -> Coverage:
    """Find the token of every name, and which of several columns of a token is read."""
    tokens = np.empty(len(names), dtype=object)
    outcomes = np.empty(len(names), dtype=np.int8)
    for position, name in enumerate(names):
        tokens[position], outcome = matcher(name)
        outcomes[position] = OUTCOMES.index(outcome)
    used = outcomes < len(MATCHED)
    if duplicates != "all":
        by_counts = totals if duplicates == "most_counts" else None
        used = _best(tokens, outcomes, np.flatnonzero(used), by_counts)
    return Coverage(_objects(names), tokens, outcomes, used, n_vocabulary=len(matcher.genes))


def _best(
    tokens: NDArray[np.object_], outcomes: NDArray[np.int8], columns: NDArray[np.int64], totals: Totals | None
) -> NDArray[np.bool_]:
    """One column per token: with the most counts if those are known, by the strongest rule, the first of equals.

    A column that matches in another case only, which may be another gene, comes behind all others with counts.
    """
    several = pd.Series(tokens[columns]).duplicated(keep=False).to_numpy()
    counts = np.zeros(columns.size)
    if totals is not None and several.any():
        counts[several] = totals(columns[several])
    in_other_case = outcomes[columns] == OUTCOMES.index("case")
    order = np.lexsort((columns, outcomes[columns], -counts, in_other_case, counts == 0))
    best: dict[str, int] = {}
    for column in columns[order]:
        best.setdefault(tokens[column], int(column))
    used = np.zeros(len(tokens), dtype=bool)
    used[list(best.values())] = True
    return used


def _objects(values: Sequence[object]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def report(
    coverage: Coverage,
    matcher: Matcher,
    var: pd.DataFrame,
    *,
    min_coverage: float,
    duplicates: Duplicates,
    modality: str | None = None,
) -> None:
    """Say what the user can act on."""
    where = "" if modality is None else f" in modality {modality!r}"
    if coverage.n_features == 0:
        raise ValueError(f"Expected a matrix with genes{where}, found no row in `var`.")
    if coverage.n_matched == 0:
        raise ValueError(
            f"Expected names of genes of the vocabulary{where}, which holds {describe(matcher.genes)}, found none among "
            f"{coverage.n_features:,} features. {_advice(coverage, matcher, var)}"
        )
    if coverage.n_duplicates and duplicates == "error":
        raise ValueError(
            f"Expected one column per gene{where}, found {coverage.n_duplicates} more: {some(coverage.duplicates)}. "
            "Merge or drop them, or choose with duplicates='most_counts', 'first' or 'all'."
        )
    if coverage.n_duplicates and duplicates != "all":
        extra = "1 column matches" if coverage.n_duplicates == 1 else f"{coverage.n_duplicates} columns match"
        rule = "with the most counts" if duplicates == "most_counts" else "that is matched best, or the first,"
        warn_user(
            f"{extra} a gene that another column{where} has. Of each gene the column {rule} is read: "
            f"{some(_chosen(coverage))}. Merge them, or choose with `duplicates=`.",
            once_about=coverage.names,
        )
    if coverage.share < min_coverage:
        warn_user(
            f"Only {coverage.headline()}{where}; expected at least {100 * min_coverage:g} %. "
            f"{_advice(coverage, matcher, var)}",
            once_about=coverage.names,
        )


def _chosen(coverage: Coverage) -> tuple[str, ...]:
    """Which column is read of each token that several match."""
    twice = set(coverage.duplicates)
    columns = [column for column in np.flatnonzero(coverage.used) if coverage.tokens[column] in twice]
    return tuple(f"{coverage.tokens[column]} from column {column} ({coverage.names[column]!r})" for column in columns)


def _advice(coverage: Coverage, matcher: Matcher, var: pd.DataFrame) -> str:
    """Why names do not match, and what to do.

    Names may be of a wrong kind, the vocabulary may hold few genes, or spell them otherwise or lack them.
    """
    looks = describe(coverage.missing)
    who = "The others" if coverage.n_matched else "Yours"
    seen = f"{who} look like {looks}." if coverage.missing else "The names are missing."
    shares = {column: _share(column_names(var, column), matcher) for column in [None, *text_columns(var)]}
    column = max(shares, key=lambda name: shares[name])
    if shares[column] > max(2 * coverage.share, 0.05):
        if column is None:
            return f"{seen} The index of `var` matches {100 * shares[column]:.0f} %: leave `genes` out."
        return f"{seen} The column {column!r} of `var` matches {100 * shares[column]:.0f} %: pass genes={column!r}."
    in_other_case = _in_other_case(coverage.missing, matcher)
    if 10 * in_other_case > len(coverage.missing) and not matcher.ignore_case:
        return (
            f"{seen} {in_other_case:,} of them are in the vocabulary with other upper and lower case: correct the "
            "spelling, or pass ignore_case=True if the genes are the same."
        )
    if "Ensembl" in looks:
        return f"{seen} Name a column of `var` with symbols, `genes=`, or pass `symbols=` a table from Ensembl id to symbol."
    if "lower-case" in looks and coverage.n_matched:
        orthologues = "" if matcher.aliases else "pass `aliases=` a table (`tokens.orthologs.ortholog_names`), or "
        return f"{seen} The model knows no orthologue of these by the names it was given: {orthologues}take a larger model."
    if "gene symbols" not in looks or not coverage.n_matched:
        return (
            f"{seen} No column of `var` matches better; add one with names that the vocabulary has, and pass `genes=`."
        )
    panel = (
        f" The table is a panel or a selection, so the model reads {coverage.n_genes:,} genes in all."
        if coverage.n_features < _PANEL
        else ""
    )
    if coverage.n_vocabulary < _SMALL:
        return (
            f"{seen} Such names are right: the model knows {coverage.n_vocabulary:,} genes and not these, and reads the "
            f"others.{panel} A model with more genes, such as 'scgpt-human', reads more; `train.finetune(..., extend=\"all\")` "
            "gives them tokens."
        )
    return (
        f"{seen} If they are outdated, pass `aliases=` a table to current symbols; what is no gene of the vocabulary's species "
        f"is not read.{panel}"
    )


def _in_other_case(names: Sequence[str], matcher: Matcher) -> int:
    folded = {gene.casefold() for gene in matcher.genes}
    return sum(name.casefold() in folded for name in names)


def _share(names: Sequence[str | None], matcher: Matcher) -> float:
    return sum(matcher(name)[0] is not None for name in names) / max(len(names), 1)
