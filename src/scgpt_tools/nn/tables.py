"""What the sockets of a model take, by the names that files have for it."""

from __future__ import annotations

from scgpt_tools.nn.bin_values import BinAndNumberConfig
from scgpt_tools.nn.decoder import DecoderConfig
from scgpt_tools.nn.dual_stream import DualStreamConfig
from scgpt_tools.nn.embedders import (
    ContinuousConfig,
    GenerationConfig,
    GenesConfig,
    LinearConfig,
    PerturbationConfig,
    ScaleConfig,
    TableConfig,
)
from scgpt_tools.nn.heads import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    ExpressionConfig,
    FromCellConfig,
    RegressorConfig,
)
from scgpt_tools.nn.language import LanguageConfig
from scgpt_tools.nn.mixture import MixtureRegressorConfig
from scgpt_tools.nn.reference_cells import ReferenceCellsConfig
from scgpt_tools.nn.signed_gates import EarlierStreamConfig
from scgpt_tools.nn.sockets import EncoderConfig, HeadConfig, PartConfig
from scgpt_tools.nn.soft_bins import SoftBinsConfig
from scgpt_tools.nn.stream_heads import BinsConfig, DeepRegressorConfig
from scgpt_tools.nn.token_classes import TokenClassesConfig
from scgpt_tools.nn.transformer import TransformerConfig

PARTS: dict[str, type[PartConfig]] = {
    "genes": GenesConfig,
    "continuous": ContinuousConfig,
    "linear": LinearConfig,
    "table": TableConfig,
    "scale": ScaleConfig,
    "soft_bins": SoftBinsConfig,
    "bin_and_number": BinAndNumberConfig,
    "perturbation": PerturbationConfig,
    "generation": GenerationConfig,
    "language": LanguageConfig,
}
"""Parts of the embedder."""

ENCODERS: dict[str, type[EncoderConfig]] = {
    "transformer": TransformerConfig,
    "dual_stream": DualStreamConfig,
    "earlier_stream": EarlierStreamConfig,
}
"""Encoders."""

HEADS: dict[str, type[HeadConfig]] = {
    "expression": ExpressionConfig,
    "affine": AffineConfig,
    "from_cell": FromCellConfig,
    "classifier": ClassifierConfig,
    "regressor": RegressorConfig,
    "adversary": AdversaryConfig,
    "bins": BinsConfig,
    "mixture_regressor": MixtureRegressorConfig,
    "deep_regressor": DeepRegressorConfig,
    "token_classes": TokenClassesConfig,
    "decoder": DecoderConfig,
    "reference_cells": ReferenceCellsConfig,
}
"""Heads."""

PartConfig.kinds, EncoderConfig.kinds, HeadConfig.kinds = PARTS, ENCODERS, HEADS
