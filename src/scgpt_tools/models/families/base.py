"""What sets one family of models apart from another, beside the configuration of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scgpt_tools.vocabulary import SPECIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.tokens.tokenizer import TokenizerConfig
    from scgpt_tools.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a family can be pre-trained for: what is hidden, and what is asked for."""

    objectives: Sequence[Mapping[str, Any]]
    """Loss terms, each a ``name`` and its options, as a configuration file holds them."""
    corruption: Mapping[str, Any] = field(default_factory=lambda: {"name": "mask_values"})
    """What is hidden: a ``name`` and its options."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the family's description, such as which heads there are."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models: how it is described, and what functions that take any model have to ask it.

    Calling it describes a model, which is what :attr:`config` does.
    """

    name: str
    """``family`` of the configuration of its models."""
    config: Callable[..., ModelConfig]
    """Describe a model that starts from scratch, its tokenizer included.

    Takes a vocabulary and, by name, ``dim``, ``layers``, ``heads``, ``hidden`` and ``dropout``; for pre-training also
    ``tokenizer`` (``None`` for the family's own) and ``generation`` (whether values are to be generated).  Each has the
    default of the family, and further arguments are its own."""
    key: str
    """Key of its embeddings in ``obsm``, unless another is asked for."""
    specials: tuple[str, ...] = SPECIALS
    """Tokens that are no genes, which a vocabulary made for it begins with."""
    last: tuple[str, ...] = ()
    """Tokens that are no genes, which it ends with."""
    perturbation: Callable[..., ModelConfig] | None = None
    """Describe the model of perturbations that a model becomes; ``None`` for a family without.

    Takes the configuration and the vocabulary of the model and, by name, ``head`` (of expression), ``dropout`` and
    ``flag`` (of perturbed genes), each ``None`` for the family's own or the model's."""
    annotation: Callable[[ModelConfig], ModelConfig] | None = None
    """Describe the model that learns to name the types of cells, from that which it starts from; ``None`` for a family whose
    models need a head only."""
    modalities: Callable[[ModelConfig, TokenizerConfig], ModelConfig] | None = None
    """Describe the model of several modalities that a model becomes, from its configuration and the tokenizer of all of
    them; ``None`` for a family without."""
    original: str = "scgpt"
    """Format of the original's checkpoints, which :meth:`~scgpt_tools.models.CellModel.export` writes."""
    finetuning: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Defaults by task that differ from the task's own: fields of :class:`~scgpt_tools.train.FitConfig`, and
    ``dropout`` and ``cells_per_mean`` for ``"perturb"``."""
    objectives: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Loss terms by task of fine-tuning where they are not the usual ones (:data:`~scgpt_tools.objectives.RECIPES`), each a
    ``name`` and its options, as a configuration file holds them."""
    pretraining: Mapping[str, Pretraining] = field(default_factory=dict)
    """What it can be pre-trained for, by name; the first is the usual one.  Empty for a family that is never pre-trained."""

    def __call__(self, vocabulary: Vocabulary, **options: Any) -> ModelConfig:
        """Describe a model that starts from scratch."""
        return self.config(vocabulary, **options)
