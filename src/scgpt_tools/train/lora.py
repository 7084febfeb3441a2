"""Low-rank adapters in the encoder, put in before training and merged into the weights after it.

The adapters are peft's; nothing of them is left in a model that was merged.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools._optional import optional
from scgpt_tools._validate import check_fraction, check_integer, check_number
from scgpt_tools.config import settle_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scgpt_tools.models.cell_model import CellModel


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    r"""Adapters :math:`W + \frac{\alpha}{r} B A` with :math:`B A` of rank r, beside frozen linear maps W.

    Used by :func:`scgpt_tools.train.finetune`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    """Probability on the input of the adapters."""
    targets: tuple[str, ...] | None = None
    """Which maps of each layer, by the encoder's names; ``None`` takes all.  Those of a transformer are ``"query"``,
    ``"key"``, ``"value"`` and ``"out"`` of attention, and ``"expand"`` and ``"contract"`` of the feed-forward part."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_integer("rank", self.rank)
        check_number("alpha", self.alpha, above=0)
        check_fraction("dropout", self.dropout, one=False)
        if self.targets is not None and not self.targets:
            raise ValueError("Expected `targets` to name at least one linear map, found none.")


def adapted_maps(model: CellModel, config: LoraConfig) -> list[str]:
    """Names of the linear maps that get adapters."""
    encoder = model.encoder
    return [f"encoder.{name}" for name in encoder.maps(encoder.adapted if config.targets is None else config.targets)]


@contextmanager
def adapters(model: CellModel, config: LoraConfig | None) -> Iterator[None]:
    """Train adapters in place of the encoder's maps for the length of a ``with`` block.

    Inside, the adapters, the heads and the context are trainable and everything else is frozen.  At the end the
    adapters are added to the maps, and the model is an ordinary one again; after an error it is of no use.

    ``model``: the model; changed in place; ``config``: size and place of the adapters; ``None`` does nothing.
    """
    if config is None:
        yield
        return
    peft = optional("peft", extra="peft")
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=adapted_maps(model, config)
    )
    tuner = peft.LoraModel(model, settings, "default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name
    for part in model.by_task:
        part.requires_grad_()
    yield
    tuner.merge_and_unload()
    # Some versions of peft leave their settings on the model.
    vars(model).pop("peft_config", None)
