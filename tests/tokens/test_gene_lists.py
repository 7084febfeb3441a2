"""Bundled genes and orthologues, and tables of others."""

from __future__ import annotations

import pandas as pd
import pytest

from scgpt_tools.tokens import FeatureTable
from scgpt_tools.tokens.gene_lists import (
    gene_list,
    listed_genes,
    names_for_human,
    orthologs,
    read_orthologs,
    symbols_of_ids,
)
from scgpt_tools.vocabulary import Vocabulary


def test_protein_coding_genes():
    table, genes = gene_list(), listed_genes("human_protein_coding")
    assert len(table) == 20_120
    assert table["id"].is_unique
    assert {"CD3D", "MS4A1", "ACTB", "MT-CO1"} <= set(genes)
    assert "MALAT1" not in genes
    assert len(genes) == len(set(genes))
    assert symbols_of_ids()["ENSG00000075624"] == "ACTB"
    assert not any(symbol.startswith("ENSG0") for symbol in symbols_of_ids().values())


def test_lists_by_other_names_are_refused():
    with pytest.raises(ValueError, match="human_protein_coding"):
        gene_list("human_protein_codin")
    with pytest.raises(ValueError, match="mouse"):
        orthologs("rat")


def test_genes_of_mouse():
    names = names_for_human("mouse")
    assert len(names) > 30_000
    assert (names["Trp53"], names["ENSMUSG00000059552"], names["Ptprc"]) == ("TP53", "TP53", "PTPRC")
    assert "Cd8b1" not in names
    assert names_for_human("mouse", one_to_many=True)["Cd8b1"] == "CD8B"
    vocabulary = Vocabulary.from_genes(["TP53", "PTPRC"])
    var = pd.DataFrame(index=["Trp53", "ENSMUSG00000026395.16"])
    assert FeatureTable.from_var(var, vocabulary, symbols=names).names.tolist() == ["TP53", "PTPRC"]


BIOMART = pd.DataFrame(
    {
        "Gene name": ["Trp53", "Cd8b1", "Cd8b1", "", "Gm1", "Gm2"],
        "Human gene name": ["TP53", "CD8B", "CD8B2", "A", "B", "B"],
        "Human homology type": ["ortholog_one2one", *["ortholog_one2many"] * 2, "ortholog_one2one", *["ortholog_many2many"] * 2],
    }
)  # fmt: skip
MGI = pd.DataFrame(
    {
        "DB Class Key": ["1", "1", "2", "2", "2", "3", "3", "3", "3"],
        "Common Organism Name": ["mouse, laboratory", "human", "mouse, laboratory", "human", "human",
                                 *["mouse, laboratory"] * 2, *["human"] * 2],
        "Symbol": ["Trp53", "TP53", "Cd8b1", "CD8B", "CD8B2", "X1", "X2", "Y1", "Y2"],
    }
)  # fmt: skip


SCMODELFORGE = pd.DataFrame(
    {
        "human_gene_symbol": ["TP53", "CD8B", "CD8B2", "B"],
        "mouse_gene_symbol": ["Trp53", "Cd8b1", "Cd8b1", "Gm1"],
        "human_ensembl_id": "",
        "mouse_ensembl_id": "",
        "orthology_type": ["one2one", "one2many", "one2many", "many2many"],
    }
)


@pytest.mark.parametrize(
    ("table", "name"),
    [(BIOMART, "export.csv"), (MGI, "HOM_MouseHumanSequence.rpt.gz"), (SCMODELFORGE, "human_mouse_orthologs.tsv")],
)
def test_tables_of_others(table, name, tmp_path):
    table.to_csv(tmp_path / name, sep="," if ".csv" in name else "\t", index=False)
    found = read_orthologs(tmp_path / name)
    assert found.to_dict("list") == {
        "mouse": ["Trp53", "Cd8b1", "Cd8b1"],
        "human": ["TP53", "CD8B", "CD8B2"],
        "kind": ["one2one", "one2many", "one2many"],
    }
    assert names_for_human("mouse", tmp_path / name) == {"Trp53": "TP53"}


def test_our_own_form_is_read(tmp_path):
    orthologs().head(20).to_csv(tmp_path / "table.tsv", sep="\t", index=False)
    assert len(read_orthologs(tmp_path / "table.tsv")) == 20
    (tmp_path / "gaps.csv").write_text("mouse,human,kind\nTrp53,TP53,one2one\n,CD8A,one2one\n,CD8B,one2one\n")
    assert names_for_human("mouse", tmp_path / "gaps.csv") == {"Trp53": "TP53"}
    pd.DataFrame({"a": ["b"]}).to_csv(tmp_path / "other.tsv", index=False)
    with pytest.raises(ValueError, match="columns mouse, human and kind"):
        read_orthologs(tmp_path / "other.tsv")
