"""Training: the one place that owns a loop."""

from __future__ import annotations

from scgpt_tools.train.finetune import finetune
from scgpt_tools.train.fit import FitConfig, fit
from scgpt_tools.train.gene_classifier import fit_gene_classifier
from scgpt_tools.train.loggers import LoggerConfig
from scgpt_tools.train.lora import LoraConfig
from scgpt_tools.train.optim import OptimizerConfig
from scgpt_tools.train.pretrain import PretrainConfig, pretrain

__all__ = [
    "FitConfig",
    "LoggerConfig",
    "LoraConfig",
    "OptimizerConfig",
    "PretrainConfig",
    "finetune",
    "fit",
    "fit_gene_classifier",
    "pretrain",
]


def __dir__() -> list[str]:
    return sorted(__all__)
