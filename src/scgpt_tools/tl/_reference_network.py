"""Networks of genes that are known, from a table or a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_frame

_NAMES = (("gene1", "gene2"), ("source", "target"))


def read_reference_network(argument: str, given: Any) -> pd.DataFrame:
    """Pairs of genes with a weight: ``gene1``, ``gene2`` and ``weight``; 0 is a pair that is known to be none.

    ``given``: a table or a .csv, .tsv or .txt file, whose columns of genes are named so, or ``source`` and ``target``, or are
    the first two.  Pairs of a gene with itself are left out.
    """
    if not isinstance(given, pd.DataFrame):
        path = as_path(argument, given)
        if not path.is_file():
            raise FileNotFoundError(f"Expected a table of edges at {str(path)!r}, found none.")
        # A gene may be called NA.
        given = pd.read_csv(path, sep="\t" if path.suffix.lower() in (".tsv", ".txt") else ",", keep_default_na=False)
    check_frame(argument, given, ())
    columns = next((list(names) for names in _NAMES if set(names) <= set(given.columns)), list(given.columns[:2]))
    if len(columns) < 2:
        raise ValueError(f"Expected two columns of genes in `{argument}`, found {list(given.columns)}.")
    table = given[columns].set_axis(["gene1", "gene2"], axis=1)
    table["weight"] = pd.to_numeric(given["weight"], errors="coerce").to_numpy() if "weight" in given else 1.0
    table = table.dropna(subset=["gene1", "gene2"]).astype({"gene1": str, "gene2": str, "weight": float})
    if bad := int((~np.isfinite(table["weight"])).sum()):
        raise ValueError(
            f"Expected finite numbers in the column 'weight' of `{argument}`, found others in {bad} of {len(table)} rows. "
            "Drop the column if all pairs are edges."
        )
    return table[table["gene1"] != table["gene2"]].reset_index(drop=True)
