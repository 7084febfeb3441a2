"""Small data to try things on: cells and a simulated screen that are always there, and public sets by name."""

from __future__ import annotations

from scgpt_tools.datasets._examples import pbmc_demo
from scgpt_tools.datasets._gene_embeddings import available_gene_embeddings, gene_embeddings
from scgpt_tools.datasets._registry import available, load
from scgpt_tools.datasets._simulated import simulated_screen

__all__ = ["available", "available_gene_embeddings", "gene_embeddings", "load", "pbmc_demo", "simulated_screen"]


def __dir__() -> list[str]:
    return sorted(__all__)
