"""Checkpoint folders of every dialect: recognise, read, write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tools._lookup import lookup
from scgpt_tools.models.formats.base import Checkpoint, Format
from scgpt_tools.models.formats.native import NATIVE
from scgpt_tools.models.formats.scgpt import SCGPT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.vocabulary import Vocabulary

__all__ = ["FORMATS", "Checkpoint", "Format", "read", "write"]

FORMATS: dict[str, Format] = {"native": NATIVE, "scgpt": SCGPT}


def read(folder: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint folder of any known format.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or none of the formats recognises it; the message lists what was found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder with a checkpoint at {folder}, found none.")
    for kind in FORMATS.values():
        if kind.recognise(folder):
            return kind.read(folder)
    expected = "; or ".join(kind.files for kind in FORMATS.values())
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise FileNotFoundError(f"Expected {folder} to hold {expected}. Found {found}.")


def write(
    folder: str | PathLike[str],
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    format: str = "native",
    **options: Any,
) -> Path:
    """Write a checkpoint folder; returns it.

    Raises
    ------
    ValueError
        If the folder holds a checkpoint of another format, which would be read in place of this one.
    """
    folder, kind = Path(folder), lookup(FORMATS, format, "checkpoint format")
    before = list(FORMATS.values())[: list(FORMATS).index(format)]
    if rivals := [rival.files for rival in before if rival.recognise(folder)]:
        raise ValueError(
            f"Expected a folder where {kind.files} would be read, found {rivals[0]} in {folder}, which would be read "
            "first. Choose another folder, or remove those."
        )
    kind.write(folder, config, vocabulary, weights, **options)
    return folder
