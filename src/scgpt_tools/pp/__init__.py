"""Preprocessing of AnnData and MuData."""

from __future__ import annotations

from scgpt_tools.pp.gene_texts import embed_gene_texts
from scgpt_tools.pp.genes import match_genes
from scgpt_tools.pp.perturbation import pair_controls, parse_conditions, perturbation_de
from scgpt_tools.pp.preprocess import preprocess
from scgpt_tools.pp.split import cell_split, perturbation_split
from scgpt_tools.pp.tokenize import tokenize

__all__ = [
    "cell_split",
    "embed_gene_texts",
    "match_genes",
    "pair_controls",
    "parse_conditions",
    "perturbation_de",
    "perturbation_split",
    "preprocess",
    "tokenize",
]


def __dir__() -> list[str]:
    return sorted(__all__)
