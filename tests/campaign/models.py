"""Damaged models in memory, for every function that takes one."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from campaign.subjects import SUBJECTS, Subject
from scgpt_tools.models import CellModel
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _weights(value: float) -> Callable[[CellModel], None]:
    def change(model: CellModel) -> None:
        with torch.no_grad():
            next(model.encoder.parameters()).flatten()[0] = value

    return change


def _training(model: CellModel) -> None:
    model.encoder.train()


def _genes(value: float) -> Callable[[CellModel], None]:
    """Damage the row of one gene, which not every cell expresses."""

    def change(model: CellModel) -> None:
        with torch.no_grad():
            model.embedder.genes.table.weight[5] = value

    return change


def _other_vocabulary(model: CellModel) -> CellModel:
    names = [token if model.vocabulary.is_special(token) else f"other-{token}" for token in model.vocabulary.tokens]
    return CellModel(model.config, Vocabulary(names), name=model.name).eval()


def _without_heads(model: CellModel) -> CellModel:
    empty = type(model.config.heads)()
    return CellModel(replace(model.config, heads=empty), model.vocabulary, name=model.name).eval()


MODELS: dict[str, tuple[Callable[[CellModel], Any], Literal["refuse", "same", "finite"]]] = {
    "a NaN weight": (_weights(float("nan")), "refuse"),
    "an infinite weight": (_weights(float("inf")), "refuse"),
    "a NaN gene": (_genes(float("nan")), "refuse"),
    "training mode": (lambda model: model.train(), "same"),
    "parts in training mode": (_training, "same"),
    "frozen weights": (lambda model: model.requires_grad_(requires_grad=False), "same"),
    "double precision": (lambda model: model.double(), "finite"),
    "half precision": (lambda model: model.half(), "finite"),
    "no weights in memory": (lambda model: model.to("meta"), "refuse"),
    "genes of nobody": (_other_vocabulary, "refuse"),
    "no heads": (_without_heads, "finite"),
    "no model but its weights": (lambda model: model.state_dict(), "refuse"),
    "no model but its settings": (lambda model: model.config, "refuse"),
    "another kind of network": (lambda model: torch.nn.Linear(2, 2), "refuse"),
}


@dataclass(frozen=True)
class DamagedModel:
    """A subject and what is wrong with its model."""

    subject: Subject
    damage: str

    def __str__(self) -> str:
        return f"{self.subject.name}-model-{self.damage}"

    @property
    def answer(self) -> str:
        """What has to happen."""
        trains = self.subject.name.startswith("train.")
        # Its weights are not looked at where only its settings are, and a trained model may start from anything finite.
        looks_at_settings_only = self.subject.name == "pp.tokenize"
        answer = MODELS[self.damage][1]
        if (looks_at_settings_only or trains) and self.damage in ("no heads", "frozen weights"):
            return "finite"
        if looks_at_settings_only and self.damage in (
            "a NaN weight",
            "an infinite weight",
            "a NaN gene",
            "no weights in memory",
        ):
            return "same"
        return answer

    def model(self) -> Any:
        """The damaged model."""
        model = deepcopy(self.subject.good()["model"])
        return model if (changed := MODELS[self.damage][0](model)) is None else changed


def damaged() -> Iterator[DamagedModel]:
    """Every damage of the model of every subject that takes one."""
    for subject in SUBJECTS.values():
        if "model" in subject.parameters() and subject.name not in WITHOUT_WEIGHTS:
            for damage in MODELS:
                yield DamagedModel(subject, damage)


WITHOUT_WEIGHTS = ("pp.match_genes", "tl.gene_network")
"""What is called with a vocabulary, or with vectors."""
