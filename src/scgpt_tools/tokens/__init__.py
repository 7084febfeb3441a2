"""What a model eats: features, values, orders, the tokenizer and its batches."""

from __future__ import annotations

from scgpt_tools.tokens import gene_lists, joint, joint_features, orthologs  # noqa: F401  attributes of the API page
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.corruptions import GenerateValues, MaskValues
from scgpt_tools.tokens.coverage import Coverage
from scgpt_tools.tokens.depth import DEPTH_TOKENS
from scgpt_tools.tokens.downsampling import MaskDownsampled
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.gene_masking import MaskGenes, NextTokens
from scgpt_tools.tokens.modalities import ModalityConfig
from scgpt_tools.tokens.modality_masks import HideModalities
from scgpt_tools.tokens.selection import select_genes
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig

__all__ = [
    "DEPTH_TOKENS",
    "Coverage",
    "FeatureTable",
    "GenerateValues",
    "HideModalities",
    "MaskDownsampled",
    "MaskGenes",
    "MaskValues",
    "ModalityConfig",
    "NextTokens",
    "TokenBatch",
    "Tokenizer",
    "TokenizerConfig",
    "select_genes",
]


def __dir__() -> list[str]:
    return sorted(__all__)
