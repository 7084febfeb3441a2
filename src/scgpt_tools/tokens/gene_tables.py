"""Tables of genes in which several names share a row of a model: approved symbols, aliases, former names (DeepSC).

Rows are counted from 0 in the table and from 1 in the model, whose row 0 is padding and whose last one is the cell token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scgpt_tools._files import as_path, replace_file
from scgpt_tools.vocabulary import CLS, PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike

NAME, ROW = "feature_name", "id"


def read_rows(path: str | PathLike[str]) -> dict[str, int]:
    """Row of each name, counted from 0; a name that is there twice has its last.

    Parameters
    ----------
    path
        CSV with the columns ``feature_name`` and ``id``.

    Returns
    -------
    Rows by name, in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is absent, or an id is no whole number of at least 0.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a table of genes at {str(path)!r}, found none.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected {str(path)!r} to be a table with commas, found another file: {error}.") from None
    for column in (NAME, ROW):
        if column not in table.columns:
            raise ValueError(
                f"Expected the columns {NAME!r} and {ROW!r} in {str(path)!r}, found {list(map(str, table.columns))[:8]}."
            )
    rows = pd.to_numeric(table[ROW], errors="coerce")
    wrong = rows.isna() | (rows < 0) | (rows % 1 != 0)
    if wrong.any() or table.empty:
        found = "no rows" if table.empty else f"{table[ROW][wrong].iloc[0]!r} for {table[NAME][wrong].iloc[0]!r}"
        raise ValueError(f"Expected whole numbers of at least 0 in {ROW!r} of {str(path)!r}, found {found}.")
    return dict(zip(table[NAME], rows.astype(int).tolist(), strict=True))


def read_gene_table(path: str | PathLike[str], *, genes: int | None = None) -> Vocabulary:
    """Read the vocabulary of a model.

    Parameters
    ----------
    path
        See :func:`read_rows`.
    genes
        Rows of genes that the model has; ``None`` for as many as the table.

    Returns
    -------
    Padding, a token for each row, and the cell token.  A row goes by the last of its names, the others are aliases; one
    without a name is ``<row 17>``.

    Raises
    ------
    ValueError
        If a row is beyond those of the model.
    """
    rows = read_rows(path)
    last = max(rows.values())
    genes = last + 1 if genes is None else genes
    if last >= genes:
        name = next(name for name, row in rows.items() if row == last)
        raise ValueError(
            f"Expected rows within 0 .. {genes - 1}, those of the model, found {last} for {name!r} in {str(path)!r}. The "
            "table is that of another model."
        )
    names = {row: name for name, row in rows.items()}
    aliases = {name: names[row] for name, row in rows.items() if names[row] != name}
    return Vocabulary([PAD, *(names.get(row, f"<row {row}>") for row in range(genes)), CLS], aliases=aliases)


def write_gene_table(vocabulary: Vocabulary, path: str | PathLike[str]) -> None:
    """Write the table that :func:`read_gene_table` reads as this vocabulary.

    Raises
    ------
    ValueError
        If padding is not the first token or the cell token not the last.
    """
    last = len(vocabulary) - 1
    if vocabulary.pad_id != 0 or vocabulary.cls_id != last:
        raise ValueError(
            f"Expected padding to be token 0 and the cell token {last}, the last one, as DeepSC has them, found "
            f"{vocabulary.pad_id} and {vocabulary.cls_id}."
        )
    known = [*vocabulary.aliases, *(token for token in vocabulary.tokens[1:-1] if not vocabulary.is_special(token))]
    table = pd.DataFrame({NAME: known, ROW: vocabulary.ids(known) - 1})
    replace_file(as_path("path", path), lambda aside: table.to_csv(aside, index=False))


def match_symbols(names: Iterable[str], database: pd.DataFrame) -> pd.DataFrame:
    """Find approved symbols of names among approved, alias and former ones, without regard to case.

    Parameters
    ----------
    names
        As a data set spells them.
    database
        Columns ``Approved symbol``, ``Alias symbol``, ``Previous symbol`` (several with commas) and ``Ensembl gene ID``.
        Of rows that claim the same name, the last has it.

    Returns
    -------
    Columns ``feature_name``, ``Ensembl id`` and ``Approved Name``, one row for each name that was found, by name without
    regard to case.
    """
    known: dict[str, tuple[str, str]] = {}
    columns = [database[column].fillna("").astype(str) for column in _DATABASE]
    for approved, alias, former, ensembl in zip(*columns, strict=True):
        for name in (approved, *alias.split(","), *former.split(",")):
            if folded := name.strip().upper():
                known[folded] = (ensembl, approved)
    found = [(name, *known[name.upper()]) for name in (str(name).strip() for name in names) if name.upper() in known]
    table = pd.DataFrame(found, columns=[NAME, "Ensembl id", "Approved Name"]).drop_duplicates(ignore_index=True)
    return table.sort_values(NAME, key=lambda column: column.str.upper(), kind="stable", ignore_index=True)


def merge_symbols(first: pd.DataFrame, second: pd.DataFrame, *, labels: Sequence[str]) -> pd.DataFrame:
    """Table of genes of two sources, of the approved names that both have.

    Parameters
    ----------
    first, second
        What :func:`match_symbols` returned for each.
    labels
        What the columns that say which source has a name are called.

    Returns
    -------
    Columns of both, one for each source that says whether it has the name, and ``id``, the rank of the approved name.
    """
    both = set(first["Approved Name"]) & set(second["Approved Name"])
    rank = {name: number for number, name in enumerate(sorted(both))}
    table = pd.concat([first, second], ignore_index=True).drop_duplicates(subset=[NAME, "Approved Name"])
    table = table[table["Approved Name"].isin(both)]
    order = pd.DataFrame({"approved": table["Approved Name"].str.upper(), "name": table[NAME]})
    table = table.loc[order.sort_values(["approved", "name"], kind="stable").index].reset_index(drop=True)
    pairs: list[Any] = list(zip(table[NAME], table["Approved Name"], strict=True))
    for label, source in zip(labels, (first, second), strict=True):
        own = set(zip(source[NAME], source["Approved Name"], strict=True))
        table[label] = [pair in own for pair in pairs]
    table[ROW] = [rank[name] for name in table["Approved Name"]]
    return table


_DATABASE = ("Approved symbol", "Alias symbol", "Previous symbol", "Ensembl gene ID")
