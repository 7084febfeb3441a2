"""Names of genes of one organism for those of another, from a table of orthologues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tools._validate import check_flag, check_type

if TYPE_CHECKING:
    import pandas as pd

ONE, MANY = "one2one", "one2many"


def ortholog_names(
    table: pd.DataFrame, *, to: str = "human", of: str = "mouse", kind: str = "kind", one_to_many: bool = False
) -> dict[str, str]:
    """Choose one name for each gene that has an orthologue.

    Parameters
    ----------
    table
        A row for each pair of orthologues.
    to, of
        Columns with the names that a model knows, and with those of the data.
    kind
        Column that says ``"one2one"`` or ``"one2many"`` of each pair.
    one_to_many
        Take genes with several orthologues too: each goes by the first in the table.

    Returns
    -------
    Names that a model knows by those of the data, in the order of the table; ``symbols`` or ``aliases`` of
    :meth:`~scgpt_tools.tokens.FeatureTable.from_var`.

    Raises
    ------
    ValueError
        If a column is absent, a pair is of another kind, or a gene is in two pairs that are said to be one to one.
    """
    check_flag("one_to_many", one_to_many)
    for name, column in (("to", to), ("of", of), ("kind", kind)):
        check_type(name, column, str)
        if column not in table.columns:
            raise ValueError(f"Expected a column {column!r} of the table, found {list(map(str, table.columns))[:8]}.")
    known = table.dropna(subset=[to, of])
    if other := sorted(set(known[kind].astype(str)) - {ONE, MANY}):
        raise ValueError(f"Expected {ONE!r} or {MANY!r} in the column {kind!r}, found {other[:5]}.")
    single = known[known[kind] == ONE]
    if (twice := single[of].duplicated()).any():
        raise ValueError(f"Expected each gene in one pair of {ONE!r}, found {single[of][twice].iloc[0]!r} again.")
    chosen = known if one_to_many else single
    first = chosen[~chosen[of].duplicated()]
    return dict(zip(first[of].astype(str), first[to].astype(str), strict=True))
