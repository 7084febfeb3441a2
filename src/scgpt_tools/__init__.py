"""Single-cell foundation models of the scGPT family for AnnData and MuData.

Importing the package only defines names; torch, scanpy and the rest are loaded when a sub-package is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# Eager, because the submodule `settings` would otherwise take the place of the object of the same name.
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from scgpt_tools import datasets, get, metrics, models, pl, pp, tl, tokens, train
    from scgpt_tools.deepsc import PerturbationPredictor
    from scgpt_tools.models import CellModel
    from scgpt_tools.vocabulary import Vocabulary
    from scgpt_tools.wrappers import PerturbationData, scGPTConfig, scGPTModel, scGPTPerturbationModel

__all__ = [
    "CellModel",
    "PerturbationData",
    "PerturbationPredictor",
    "Vocabulary",
    "__version__",
    "datasets",
    "get",
    "metrics",
    "models",
    "pl",
    "pp",
    "scGPTConfig",
    "scGPTModel",
    "scGPTPerturbationModel",
    "settings",
    "tl",
    "tokens",
    "train",
]

__version__ = version("scgpt-tools")

_HOMES = {
    "CellModel": "scgpt_tools.models",
    "PerturbationData": "scgpt_tools.screens.perturbation_data",
    "PerturbationPredictor": "scgpt_tools.deepsc",
    "Vocabulary": "scgpt_tools.vocabulary",
    "scGPTConfig": "scgpt_tools.wrappers",
    "scGPTModel": "scgpt_tools.wrappers",
    "scGPTPerturbationModel": "scgpt_tools.wrappers",
}
_PACKAGES = ("datasets", "get", "metrics", "models", "pl", "pp", "tl", "tokens", "train")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
