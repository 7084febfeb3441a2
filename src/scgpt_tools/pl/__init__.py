"""Plots."""

from __future__ import annotations

from scgpt_tools.pl.annotation import confidence, confusion_matrix
from scgpt_tools.pl.benchmark import benchmark
from scgpt_tools.pl.coverage import coverage
from scgpt_tools.pl.embedding import embedding
from scgpt_tools.pl.gene_networks import gene_network, program_heatmap
from scgpt_tools.pl.knockout import knockout
from scgpt_tools.pl.modalities import joint_embedding, modality_weights
from scgpt_tools.pl.perturbation import perturbation_de, perturbation_scatter
from scgpt_tools.pl.scores import scores
from scgpt_tools.pl.screens import perturbation_benchmark, perturbation_heatmap

__all__ = [
    "benchmark",
    "confidence",
    "confusion_matrix",
    "coverage",
    "embedding",
    "gene_network",
    "joint_embedding",
    "knockout",
    "modality_weights",
    "perturbation_benchmark",
    "perturbation_de",
    "perturbation_heatmap",
    "perturbation_scatter",
    "program_heatmap",
    "scores",
]


def __dir__() -> list[str]:
    return sorted(__all__)
