"""Scores as pure functions on arrays."""

from __future__ import annotations

from scgpt_tools.metrics.annotation import AnnotationScores, class_scores, confusion_table, score_annotation
from scgpt_tools.metrics.baselines import linear, no_change, perturbed_mean, predict_baselines
from scgpt_tools.metrics.benchmark import BenchmarkScores
from scgpt_tools.metrics.bins import BinScores, bin_scores
from scgpt_tools.metrics.calibration import calibrated_confidence, conformal_p_values
from scgpt_tools.metrics.combining import additive, matching_mean, scaled_additive
from scgpt_tools.metrics.decoding import DecodingScores, decode_changes, gene_vectors, mean_changes, most_changed
from scgpt_tools.metrics.differential import de_agreement, differential_expression
from scgpt_tools.metrics.discrimination import centroid_accuracy, discrimination_score, pairwise, prediction_rank
from scgpt_tools.metrics.distribution import energy_distance, mmd, wasserstein
from scgpt_tools.metrics.effects import TrainingEffects
from scgpt_tools.metrics.embedding import ClusterScores, score_clusters
from scgpt_tools.metrics.evaluation import (
    compare_methods,
    dynamic_ranges,
    evaluation_table,
    summarise_scores,
    verdict,
)
from scgpt_tools.metrics.interactions import genetic_interactions
from scgpt_tools.metrics.kernel_ridge import KernelModel, kernel
from scgpt_tools.metrics.mapping import Ballot, vote
from scgpt_tools.metrics.matched_null import MatchedNull, matched_null
from scgpt_tools.metrics.networks import EdgeScores, score_edges
from scgpt_tools.metrics.panel import Truth
from scgpt_tools.metrics.perturbation import (
    cosine,
    de_weights,
    direction_match,
    l2,
    mae,
    mse,
    pearson,
    r2,
    rmse,
    spread_ratio,
)
from scgpt_tools.metrics.perturbation_scgenept import scgenept_scores
from scgpt_tools.metrics.perturbation_scgpt import scgpt_metrics
from scgpt_tools.metrics.probe import ProbeScores, linear_probe, probe_split
from scgpt_tools.metrics.retrieval import top_k_accuracy
from scgpt_tools.metrics.scores import PerturbationScores
from scgpt_tools.metrics.shrinkage import shrink_effects, shrunken_mean
from scgpt_tools.metrics.uncertainty import bootstrap_interval, dynamic_range, paired_difference, t_interval

__all__ = [
    "AnnotationScores",
    "Ballot",
    "BenchmarkScores",
    "BinScores",
    "ClusterScores",
    "DecodingScores",
    "EdgeScores",
    "KernelModel",
    "MatchedNull",
    "PerturbationScores",
    "ProbeScores",
    "TrainingEffects",
    "Truth",
    "additive",
    "bin_scores",
    "bootstrap_interval",
    "calibrated_confidence",
    "centroid_accuracy",
    "class_scores",
    "compare_methods",
    "conformal_p_values",
    "confusion_table",
    "cosine",
    "de_agreement",
    "de_weights",
    "decode_changes",
    "differential_expression",
    "direction_match",
    "discrimination_score",
    "dynamic_range",
    "dynamic_ranges",
    "energy_distance",
    "evaluation_table",
    "gene_vectors",
    "genetic_interactions",
    "kernel",
    "l2",
    "linear",
    "linear_probe",
    "mae",
    "matched_null",
    "matching_mean",
    "mean_changes",
    "mmd",
    "most_changed",
    "mse",
    "no_change",
    "paired_difference",
    "pairwise",
    "pearson",
    "perturbed_mean",
    "predict_baselines",
    "prediction_rank",
    "probe_split",
    "r2",
    "rmse",
    "scaled_additive",
    "scgenept_scores",
    "scgpt_metrics",
    "score_annotation",
    "score_clusters",
    "score_edges",
    "shrink_effects",
    "shrunken_mean",
    "spread_ratio",
    "summarise_scores",
    "t_interval",
    "top_k_accuracy",
    "verdict",
    "vote",
    "wasserstein",
]


def __dir__() -> list[str]:
    return sorted(__all__)
