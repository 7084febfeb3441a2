"""The families of models by name; a package from outside adds rows to the table, or an entry point of the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tools._lookup import lookup
from scgpt_tools._plugins import with_plugins
from scgpt_tools.models.families.base import Family, Pretraining
from scgpt_tools.models.families.deepsc import DEEPSC, DEEPSC_PERTURBATION
from scgpt_tools.models.families.scgenept import SCGENEPT
from scgpt_tools.models.families.scgpt import SCGPT, SCGPT_MULTIOMIC, SCGPT_PERTURBATION
from scgpt_tools.models.families.scmodelforge import SCMODELFORGE, SCMODELFORGE_AUTOENCODER, SCMODELFORGE_CAUSAL

if TYPE_CHECKING:
    from scgpt_tools.models.config import ModelConfig

__all__ = [
    "FAMILIES",
    "GROUP",
    "Family",
    "Pretraining",
    "embedding_key",
    "family_named",
    "find_family",
    "gene_embedding_key",
    "original_format",
]

GROUP = "scgpt_tools.families"
"""Entry points of other packages, each of which gives a :class:`Family` under its name."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        SCGPT,
        SCGPT_PERTURBATION,
        SCGPT_MULTIOMIC,
        SCGENEPT,
        DEEPSC,
        DEEPSC_PERTURBATION,
        SCMODELFORGE,
        SCMODELFORGE_CAUSAL,
        SCMODELFORGE_AUTOENCODER,
    )
}


def family_named(name: str) -> Family:
    """Look up a family, those of other packages included."""
    return lookup(with_plugins(FAMILIES, GROUP, Family), name, "family of models")


def load_families() -> None:
    """Import families of other packages, whose modules may add parts, encoders and heads to the tables of these."""
    with_plugins(FAMILIES, GROUP, Family)


def find_family(config: ModelConfig) -> Family | None:
    """The family of a model; ``None`` if it is of a package that is not installed."""
    return with_plugins(FAMILIES, GROUP, Family).get(config.family)


def embedding_key(config: ModelConfig) -> str:
    """Key of ``obsm`` for embeddings of a model, whose family need not be installed."""
    family = find_family(config)
    return f"X_{config.family}" if family is None else family.key


def original_format(config: ModelConfig) -> str:
    """Format of the original's checkpoints, scGPT's for a family that is not installed."""
    family = find_family(config)
    return "scgpt" if family is None else family.original


def gene_embedding_key(config: ModelConfig, stream: str = "genes") -> str:
    """Key of ``varm`` for gene embeddings of a model."""
    return f"{embedding_key(config)}_{stream}"
