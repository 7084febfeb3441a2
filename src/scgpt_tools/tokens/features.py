"""Which columns of a matrix are which tokens.

Names of genes are matched to a vocabulary by rules tried in one order: the name itself, its symbol if a table knows
the Ensembl id, its current symbol if a table knows it as outdated, the same letters in another case.  The later rules
need the user's word.  What became of each column is kept (:class:`Coverage`), because a model that misses half of the
genes still returns an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd

from scgpt_tools._validate import check_choice, check_flag, check_fraction, check_type
from scgpt_tools.tokens.coverage import Coverage
from scgpt_tools.tokens.matching import Duplicates, Matcher, Totals, matched, report
from scgpt_tools.tokens.names import column_names, mask_columns

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools.tokens.modalities import Span
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Columns of a matrix that have a token, in the order of the matrix.

    Several tables can describe the modalities of one cell; :attr:`modality` tells their tokens apart.
    """

    columns: NDArray[np.int64]
    """(n_known,) columns of the matrix."""
    ids: NDArray[np.int64]
    """(n_known,) token id of each column."""
    names: NDArray[np.object_]
    """(n_known,) token of each column."""
    n_columns: int
    """Number of columns of the matrix, known or not."""
    coverage: Coverage
    """What became of every column."""
    modality: NDArray[np.int64] | None = None
    """(n_known,) modality id of each column; ``None`` for models that know one modality only."""
    spans: tuple[Span, ...] = ()
    """Which columns belong to which modality, of a table of several."""
    parts: tuple[FeatureTable, ...] = ()
    """The modalities one by one, each over its own columns; as many as ``spans``."""
    vocabulary: Vocabulary | None = None
    """What ``ids`` are numbers of, where the vocabulary was extended for the table."""

    def __post_init__(self) -> None:
        lengths = {"columns": len(self.columns), "ids": len(self.ids), "names": len(self.names)}
        if self.modality is not None:
            lengths["modality"] = len(self.modality)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Expected one entry per known column in every field, found {lengths}.")
        if len(self.columns) and not (0 <= self.columns.min() and self.columns.max() < self.n_columns):
            raise ValueError(
                f"Expected columns of a matrix with {self.n_columns} of them, found {self.columns.min()} to "
                f"{self.columns.max()}."
            )

    def completed(self, vocabulary: Vocabulary) -> FeatureTable:
        """The same with every other column under the token of padding."""
        ids = np.full(self.n_columns, vocabulary.pad_id, dtype=np.int64)
        names = np.full(self.n_columns, vocabulary.pad, dtype=object)
        ids[self.columns], names[self.columns] = self.ids, self.names
        return replace(self, columns=np.arange(self.n_columns), ids=ids, names=names)

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def from_var(
        cls,
        var: pd.DataFrame,
        vocabulary: Vocabulary,
        *,
        column: str | None = None,
        symbols: NameTable | str | None = None,
        aliases: NameTable | None = None,
        ignore_case: bool = False,
        min_coverage: float = 0.5,
        duplicates: Duplicates = "most_counts",
        totals: Totals | None = None,
        modality: str | None = None,
        mask_var: ArrayLike | str | None = None,
    ) -> FeatureTable:
        """Match the genes of a data set to a vocabulary.

        Parameters
        ----------
        var
            ``adata.var``; not changed.
        vocabulary
            Tokens of the model.  Special tokens are no genes and never match.
        column
            Column of ``var`` with the names; ``None`` takes the index.
        symbols
            Symbol of each Ensembl id, as a table or as the name of a column of ``var``.  The version of an id does not
            count, in the table or in the names.
        aliases
            Current symbol of each outdated one.
        ignore_case
            Let names that match nothing else match a token with the same letters in another case.  Mouse symbols then
            match the human genes of the same letters, which are orthologues mostly but not always.
        min_coverage
            Warn if a smaller part of the columns matches.
        duplicates
            What to do with several columns of the same token.  ``"most_counts"`` reads the one with the largest sum
            over cells, ``"first"`` the one that matches by the strongest rule, the first of equals; both warn.
            ``"error"`` refuses; ``"all"`` reads each of them as a token, as scGPT does.
        totals
            Sums of columns over cells, such as :meth:`~scgpt_tools.data.rows.RowSource.totals`, asked for columns of
            the same token only; without it ``"most_counts"`` is ``"first"``.
        modality
            What the genes are of, for messages.
        mask_var
            (columns,) True for columns that may be matched, or the name of such a column of ``var``; ``None`` for all.

        Returns
        -------
        The table.  A name for which a table offers several tokens of the vocabulary matches none of them.

        Raises
        ------
        KeyError
            If a named column is absent.
        ValueError
            If no name matches, or several match the same token and ``duplicates="error"``.
        """
        to_memory = getattr(var, "to_memory", None)
        if callable(to_memory):  # a lazily read AnnData keeps `var` on disk
            var = to_memory()
        check_type("var", var, pd.DataFrame)
        check_fraction("min_coverage", min_coverage)
        check_flag("ignore_case", ignore_case)
        check_choice("duplicates", duplicates, get_args(Duplicates))
        n_columns, places = len(var), np.arange(len(var))
        if mask_var is not None:
            places = np.flatnonzero(mask_columns(var, mask_var))
            var = var.iloc[places]
        names = column_names(var, column)
        if isinstance(symbols, str):
            symbols = pd.Series(column_names(var, symbols), index=pd.Index(names, dtype=object), dtype=object)
        matcher = Matcher(vocabulary, symbols=symbols, aliases=aliases, ignore_case=ignore_case)
        if totals is None and duplicates == "most_counts":
            duplicates = "first"
        sums = None if totals is None else lambda columns: totals(places[columns])
        coverage = matched(names, matcher, duplicates, sums)
        report(coverage, matcher, var, min_coverage=min_coverage, duplicates=duplicates, modality=modality)
        columns = np.flatnonzero(coverage.used)
        tokens = coverage.tokens[columns]
        return cls(places[columns], vocabulary.ids(tokens, unknown=None), tokens, n_columns, coverage)
