"""Results as tidy data frames."""

from __future__ import annotations

from scgpt_tools.get.cells import annotation, class_probabilities, provenance
from scgpt_tools.get.genes import gene_network, gene_programs, knockout, knockout_effects
from scgpt_tools.get.screens import perturbation_de, perturbation_effects, perturbation_split

__all__ = [
    "annotation",
    "class_probabilities",
    "gene_network",
    "gene_programs",
    "knockout",
    "knockout_effects",
    "perturbation_de",
    "perturbation_effects",
    "perturbation_split",
    "provenance",
]


def __dir__() -> list[str]:
    return sorted(__all__)
