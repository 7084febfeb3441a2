"""Models as a composition of parts, and the formats of their checkpoints."""

from __future__ import annotations

from scgpt_tools.models.atlas import AtlasIndex
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import ModelConfig
from scgpt_tools.models.deepsc import (
    DataCollator,
    DeepSCClassifier,
    DeepSCModel,
    InferenceCollator,
    build_gene_ids_for_dataset,
    build_vocab_from_csv,
)
from scgpt_tools.models.families import FAMILIES
from scgpt_tools.models.gene_classifier import GeneClassifier
from scgpt_tools.models.reference import ReferenceIndex
from scgpt_tools.models.scgenept.names import ModelType, parse_model_type
from scgpt_tools.models.scgenept.start import to_scgenept
from scgpt_tools.models.scgpt import (
    MultiOmicTransformerModel,
    TransformerGenerator,
    TransformerModel,
    load_pretrained,
)
from scgpt_tools.models.zoo import available

__all__ = [
    "FAMILIES",
    "AtlasIndex",
    "CellModel",
    "DataCollator",
    "DeepSCClassifier",
    "DeepSCModel",
    "GeneClassifier",
    "InferenceCollator",
    "ModelConfig",
    "ModelType",
    "MultiOmicTransformerModel",
    "ReferenceIndex",
    "TransformerGenerator",
    "TransformerModel",
    "available",
    "build_gene_ids_for_dataset",
    "build_vocab_from_csv",
    "load_pretrained",
    "parse_model_type",
    "to_scgenept",
]


def __dir__() -> list[str]:
    return sorted(__all__)
