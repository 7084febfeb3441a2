"""The names that DeepSC users know, with the originals' arguments, results and tensor names; the network is ours."""

from __future__ import annotations

from scgpt_tools.models.deepsc.collators import DataCollator, InferenceCollator
from scgpt_tools.models.deepsc.model import DeepSCClassifier, DeepSCModel
from scgpt_tools.models.deepsc.vocabulary import build_gene_ids_for_dataset, build_vocab_from_csv

__all__ = [
    "DataCollator",
    "DeepSCClassifier",
    "DeepSCModel",
    "InferenceCollator",
    "build_gene_ids_for_dataset",
    "build_vocab_from_csv",
]
