"""Genes that everybody means by the same names: protein-coding genes of human, and orthologues of mouse.

The tables are bundled; ``scripts/reference_tables.py`` makes them of what GENCODE and Ensembl published.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Literal, TypeAlias

import pandas as pd

from scgpt_tools._files import as_path
from scgpt_tools._lookup import lookup
from scgpt_tools.tokens.orthologs import MANY, ONE, ortholog_names

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

GeneList: TypeAlias = Literal["human_protein_coding"]
"""Lists of genes by name."""
Organism: TypeAlias = Literal["mouse"]
"""Organisms with a bundled table of orthologues of human genes."""

_LISTS = {"human_protein_coding": "human_protein_coding.tsv.gz"}
_ORTHOLOGUES = {"mouse": "mouse_human.tsv.gz"}
_UNNAMED = re.compile(r"ENSG\d{11}")
# Of a file of MGI's, HOM_MouseHumanSequence.rpt.
_MGI = ("DB Class Key", "Common Organism Name", "Symbol")
# Columns of BioMart's exports, and of scModelForge's tables: mouse, human and kind.
_NAMED = (
    ("Gene name", "Human gene name", "Human homology type"),
    ("mouse_gene_symbol", "human_gene_symbol", "orthology_type"),
)
_KINDS = {"one2one": ONE, "one2many": MANY, "many2many": None}


def gene_list(name: GeneList = "human_protein_coding") -> pd.DataFrame:
    """Read a bundled list of genes.

    Parameters
    ----------
    name
        ``"human_protein_coding"``: the 20,120 protein-coding genes of GENCODE 48 (GRCh38).

    Returns
    -------
    A row for each gene: ``id``, its Ensembl id, and ``symbol``, which is the id for the few without one.
    """
    return _bundled(lookup(_LISTS, name, "list of genes")).copy()


def listed_genes(name: GeneList) -> list[str]:
    """Symbols of a bundled list, each once, in the order of the Ensembl ids; genes without a symbol by their ids."""
    return list(dict.fromkeys(gene_list(name)["symbol"]))


def symbols_of_ids(name: GeneList = "human_protein_coding") -> dict[str, str]:
    """Symbol of each Ensembl id of a bundled list, ``symbols`` of :meth:`~scgpt_tools.tokens.FeatureTable.from_var`."""
    table = gene_list(name)
    named = ~table["symbol"].str.fullmatch(_UNNAMED)
    return dict(zip(table.loc[named, "id"], table.loc[named, "symbol"], strict=True))


def orthologs(of: Organism = "mouse") -> pd.DataFrame:
    """Read a bundled table of orthologues of human genes.

    Parameters
    ----------
    of
        ``"mouse"``: 19,793 pairs of Ensembl (GRCm39 and GRCh38), with today's human symbols.  Pairs of many genes to many
        are not among them.

    Returns
    -------
    A row for each pair: ``mouse_id``, ``mouse``, ``human`` and ``kind``, for
    :func:`~scgpt_tools.tokens.orthologs.ortholog_names`.
    """
    return _bundled(lookup(_ORTHOLOGUES, of, "organism")).copy()


def read_orthologs(path: str | PathLike[str]) -> pd.DataFrame:
    """Read a table of orthologues of mouse and human genes as somebody publishes it.

    Parameters
    ----------
    path
        A table with the columns ``mouse``, ``human`` and ``kind``; an export of Ensembl's BioMart (``Gene name``,
        ``Human gene name``, ``Human homology type``); one of scModelForge (``mouse_gene_symbol``, ``human_gene_symbol``,
        ``orthology_type``); or MGI's ``HOM_MouseHumanSequence.rpt``.  Columns are separated by tabs, or by commas in a
        ``.csv``; a file that ends in ``.gz`` is unpacked.

    Returns
    -------
    A row for each pair: ``mouse``, ``human`` and ``kind``, ``"one2one"`` or ``"one2many"``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If its columns are others.
    """
    path = as_path("path", path)
    separator = "," if ".csv" in path.suffixes[-2:] else "\t"
    # A gene may be called NA.
    table = pd.read_csv(path, sep=separator, dtype=str, na_filter=False)
    named = next((names for names in _NAMED if set(names) <= set(table.columns)), None)
    if {"mouse", "human", "kind"} <= set(table.columns):
        pairs = table
    elif named is not None:
        pairs = table[list(named)].set_axis(["mouse", "human", "kind"], axis=1)
        pairs["kind"] = pairs["kind"].str.removeprefix("ortholog_").map(_KINDS)
    elif set(_MGI) <= set(table.columns):
        pairs = _classes_of_mgi(table)
    else:
        raise ValueError(
            f"Expected the columns mouse, human and kind in {path}, or those of BioMart, scModelForge or MGI, found "
            f"{list(map(str, table.columns))[:8]}."
        )
    known = pairs["kind"].notna() & (pairs["mouse"] != "") & (pairs["human"] != "")
    return pairs[known].drop_duplicates().reset_index(drop=True)


def names_for_human(of: Organism = "mouse", table: Path | None = None, *, one_to_many: bool = False) -> dict[str, str]:
    """Human symbol by symbol of another organism, and by its Ensembl id where the table has these.

    ``table``: a file instead of the bundled table, see :func:`read_orthologs`.
    """
    pairs = orthologs(of) if table is None else read_orthologs(table)
    names = ortholog_names(pairs, one_to_many=one_to_many)
    if f"{of}_id" in pairs.columns:
        names |= ortholog_names(pairs, of=f"{of}_id", one_to_many=one_to_many)
    return names


def _classes_of_mgi(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs of the classes of homologous genes."""
    key, organism, symbol = _MGI
    mouse = table[table[organism].str.startswith("mouse")][[key, symbol]]
    human = table[table[organism] == "human"][[key, symbol]]
    pairs = mouse.merge(human, on=key, suffixes=("_mouse", "_human"))
    sizes = pairs.groupby(key)[key].transform("size")
    several = (pairs.groupby(key)[f"{symbol}_mouse"].transform("nunique") > 1) & (
        pairs.groupby(key)[f"{symbol}_human"].transform("nunique") > 1
    )
    kind = pd.Series(ONE, index=pairs.index).mask(sizes > 1, MANY).mask(several)
    return pd.DataFrame({"mouse": pairs[f"{symbol}_mouse"], "human": pairs[f"{symbol}_human"], "kind": kind})


@cache
def _bundled(name: str) -> pd.DataFrame:
    with as_file(files("scgpt_tools.tokens") / "tables" / name) as path:
        return pd.read_csv(path, sep="\t", dtype=str, na_filter=False)
