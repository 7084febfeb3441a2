"""Tools: functions that write their result to AnnData or MuData."""

from __future__ import annotations

from scgpt_tools.tl.annotate import annotate
from scgpt_tools.tl.embed import embed
from scgpt_tools.tl.embed_genes import embed_genes
from scgpt_tools.tl.evaluate_perturbation import evaluate_perturbation
from scgpt_tools.tl.map_reference import index_reference, map_reference
from scgpt_tools.tl.predict_perturbation import predict_perturbation
from scgpt_tools.tl.rank_perturbations import rank_perturbations
from scgpt_tools.tl.score_embedding import score_embedding
from scgpt_tools.tl.screen import screen

__all__ = [
    "annotate",
    "embed",
    "embed_genes",
    "evaluate_perturbation",
    "index_reference",
    "map_reference",
    "predict_perturbation",
    "rank_perturbations",
    "score_embedding",
    "screen",
]
