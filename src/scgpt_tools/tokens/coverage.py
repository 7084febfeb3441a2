"""What became of each column of a matrix when its names were matched to a vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

MATCHED = ("exact", "ensembl", "alias", "case")
"""Rules by which a name finds its token, strongest first."""
UNMATCHED = ("missing", "ambiguous", "unnamed")
"""Why it finds none: the vocabulary lacks it, a table or the case leaves several tokens to choose from, no name."""
OUTCOMES = MATCHED + UNMATCHED

# A report is to be read; `to_frame` has every name.
_SHOWN = 5


@dataclass(frozen=True, eq=False, repr=False)
class Coverage:
    """Report of one matching.

    Examples
    --------
    >>> import pandas as pd
    >>> from scgpt_tools.tokens.features import FeatureTable
    >>> from scgpt_tools.vocabulary import Vocabulary
    >>> var = pd.DataFrame(index=["CD3D", "ACTB", "XYZ"])
    >>> FeatureTable.from_var(var, Vocabulary(["ACTB", "CD3D"])).coverage
    Coverage: 2 of 3 features (66.7 %) match one of 2 genes of the vocabulary
      exact       2
      missing     1: XYZ
    """

    names: NDArray[np.object_]
    """(n_features,) name of each column, ``None`` where it has none."""
    tokens: NDArray[np.object_]
    """(n_features,) token that the name matches, ``None`` where it matches none."""
    outcomes: NDArray[np.int8]
    """(n_features,) position in :data:`OUTCOMES`."""
    used: NDArray[np.bool_]
    """(n_features,) whether the column is read; a column that lost its token to another one is not."""
    n_vocabulary: int
    """Number of genes in the vocabulary."""

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.names)

    @property
    def n_matched(self) -> int:
        """Number of columns whose name matches a token."""
        return int(np.count_nonzero(self.outcomes < len(MATCHED)))

    @property
    def n_duplicates(self) -> int:
        """Number of columns beyond the first of each token."""
        return self.n_matched - self.n_genes

    @property
    def n_genes(self) -> int:
        """Number of different genes that the columns match."""
        return len({token for token in self.tokens if token is not None})

    @property
    def share(self) -> float:
        """Part of the columns that match a token."""
        return self.n_matched / self.n_features if self.n_features else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Number of columns by outcome."""
        found = np.bincount(self.outcomes, minlength=len(OUTCOMES))
        return {outcome: int(count) for outcome, count in zip(OUTCOMES, found, strict=True)}

    @property
    def missing(self) -> tuple[str, ...]:
        """Names that match nothing, or several tokens."""
        unmatched = self.names[self.outcomes >= len(MATCHED)]
        return tuple(dict.fromkeys(name for name in unmatched if name is not None))

    @property
    def duplicates(self) -> tuple[str, ...]:
        """Tokens that several columns match."""
        counts = Counter(token for token in self.tokens if token is not None)
        return tuple(token for token, count in counts.items() if count > 1)

    def to_frame(self) -> pd.DataFrame:
        """One row per column of the matrix: its name, its token, how they were matched, and whether it is read.

        Returns
        -------
        A frame with the columns ``name``, ``token``, ``outcome`` and ``used``.
        """
        return pd.DataFrame(
            {
                "name": self.names,
                "token": self.tokens,
                "outcome": pd.Categorical.from_codes(self.outcomes, categories=pd.Index(OUTCOMES)),
                "used": self.used,
            },
            index=pd.RangeIndex(self.n_features, name="column"),
        )

    def to_dict(self) -> dict[str, int | float | str]:
        """Summary for ``uns``: numbers and strings only, which every version of every file format keeps.

        Returns
        -------
        Counts, share, and the first few missing and duplicated names joined by commas.
        """
        return {
            "n_features": self.n_features,
            "n_matched": self.n_matched,
            "n_genes": self.n_genes,
            "n_vocabulary": self.n_vocabulary,
            "share": self.share,
            **{f"n_{outcome}": count for outcome, count in self.counts.items()},
            "n_duplicates": self.n_duplicates,
            "missing": some(self.missing),
            "duplicates": some(self.duplicates),
        }

    def headline(self) -> str:
        """The report in one sentence without a full stop."""
        return (
            f"{self.n_matched:,} of {self.n_features:,} features ({100 * self.share:.1f} %) match one of "
            f"{self.n_vocabulary:,} genes of the vocabulary"
        )

    def __repr__(self) -> str:
        lines = [f"  {label:<11} {value}" for label, value in self._lines()]
        return "\n".join([f"Coverage: {self.headline()}", *lines])

    def _repr_html_(self) -> str:
        style = "text-align: left"
        rows = (
            f'<tr><th style="{style}">{escape(label)}</th><td style="{style}">{escape(value)}</td></tr>'
            for label, value in self._lines()
        )
        return f"<p>{escape(self.headline())}</p><table>{''.join(rows)}</table>"

    def _lines(self) -> list[tuple[str, str]]:
        lines = []
        for outcome, count in self.counts.items():
            names = some(self._named(outcome)) if outcome in ("missing", "ambiguous") else ""
            if count:
                lines.append((outcome, f"{count:,}: {names}" if names else f"{count:,}"))
        if self.n_duplicates:
            fate = "read too" if self.used[self.outcomes < len(MATCHED)].all() else "not read"
            lines.append(("duplicates", f"{self.n_duplicates:,} {fate}: {some(self.duplicates)}"))
        return lines

    def _named(self, outcome: str) -> dict[Any, None]:
        return dict.fromkeys(self.names[self.outcomes == OUTCOMES.index(outcome)])


def some(names: tuple[str, ...] | dict[Any, None]) -> str:
    """First few of possibly many names."""
    first = [str(name) for name, _ in zip(names, range(_SHOWN), strict=False)]
    return ", ".join(first) + (", ..." if len(names) > _SHOWN else "")
