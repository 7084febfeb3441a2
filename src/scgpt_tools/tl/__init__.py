"""Tools: functions that write their result to AnnData or MuData."""

from __future__ import annotations

from scgpt_tools.tl.ablate_texts import ablate_texts
from scgpt_tools.tl.annotate import annotate
from scgpt_tools.tl.attention import attention, attention_targets
from scgpt_tools.tl.benchmark import benchmark
from scgpt_tools.tl.challenge import predicted_counts, score_challenge, write_challenge
from scgpt_tools.tl.embed import embed
from scgpt_tools.tl.embed_genes import embed_genes
from scgpt_tools.tl.embed_store import embed_store
from scgpt_tools.tl.enrich_programs import enrich_programs
from scgpt_tools.tl.evaluate_perturbation import evaluate_perturbation
from scgpt_tools.tl.gene_network import gene_network, similar_genes
from scgpt_tools.tl.gene_programs import gene_programs, score_programs
from scgpt_tools.tl.genetic_interactions import genetic_interactions
from scgpt_tools.tl.impute import impute
from scgpt_tools.tl.index_reference import index_reference, index_store
from scgpt_tools.tl.knockout import knockout
from scgpt_tools.tl.map_reference import map_reference
from scgpt_tools.tl.modality_weights import modality_weights
from scgpt_tools.tl.predict import predict
from scgpt_tools.tl.predict_perturbation import predict_perturbation
from scgpt_tools.tl.rank_perturbations import rank_perturbations
from scgpt_tools.tl.score_embedding import score_embedding
from scgpt_tools.tl.score_network import compare_networks, score_network
from scgpt_tools.tl.screen import screen

__all__ = [
    "ablate_texts",
    "annotate",
    "attention",
    "attention_targets",
    "benchmark",
    "compare_networks",
    "embed",
    "embed_genes",
    "embed_store",
    "enrich_programs",
    "evaluate_perturbation",
    "gene_network",
    "gene_programs",
    "genetic_interactions",
    "impute",
    "index_reference",
    "index_store",
    "knockout",
    "map_reference",
    "modality_weights",
    "predict",
    "predict_perturbation",
    "predicted_counts",
    "rank_perturbations",
    "score_challenge",
    "score_embedding",
    "score_network",
    "score_programs",
    "screen",
    "similar_genes",
    "write_challenge",
]


def __dir__() -> list[str]:
    return sorted(__all__)
