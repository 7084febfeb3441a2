"""Several models that answer one question, whose answers are averaged."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

from scgpt_tools.inference.cells import load_model, open_cells
from scgpt_tools.models.cell_model import CellModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools.inference.cells import Cells, Request
    from scgpt_tools.models.gene_classifier import GeneClassifier

AnyModel: TypeAlias = CellModel | str | PathLike[str]
"""A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes."""


def load_models(given: AnyModel | Sequence[AnyModel], device: str | torch.device | None) -> list[CellModel]:
    """Load one model or several; at least one."""
    if isinstance(given, CellModel | str | PathLike):
        several = [given]
    elif isinstance(given, Iterable):
        several = list(given)
    else:
        raise TypeError(f"Expected `model` to be a model, its name or folder, or a list of them, found {given!r}.")
    if not several:
        raise ValueError("Expected one `model` or more, found an empty list.")
    return [load_model(one, device) for one in several]


def open_for_all(adata: AnnData | MuData, models: Sequence[CellModel], requests: Sequence[Request]) -> list[Cells]:
    """Open a table for several models, once where they read it alike."""
    opened: list[Cells] = []
    for model, request in zip(models, requests, strict=True):
        opened.append(open_cells(adata, model, request, opened=opened[-1].source if opened else None))
    return opened


def provenance_of_all(about: dict[str, Any], models: Sequence[CellModel | GeneClassifier]) -> dict[str, Any]:
    """The provenance of the first model with the names and checksums of all."""
    named = {
        "name": ", ".join(model.name for model in models),
        "checksum": ", ".join(model.checksum for model in models),
    }
    return about | {"model": about["model"] | named}
