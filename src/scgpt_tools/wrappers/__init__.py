"""The names that PerturbLab users know: models as objects with the data in their methods.

No logic of its own: networks are those of :mod:`scgpt_tools.models`, minibatches those of :mod:`scgpt_tools.data`, loss
terms those of :mod:`scgpt_tools.objectives`, and training is :func:`scgpt_tools.train.fit.fit`.
"""

from __future__ import annotations

from scgpt_tools.screens.perturbation_data import PerturbationData
from scgpt_tools.wrappers.cells import scGPTModel
from scgpt_tools.wrappers.config import scGPTConfig
from scgpt_tools.wrappers.perturbation import scGPTPerturbationModel

__all__ = ["PerturbationData", "scGPTConfig", "scGPTModel", "scGPTPerturbationModel"]
