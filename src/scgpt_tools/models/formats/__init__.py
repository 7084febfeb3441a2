"""Checkpoint folders of every dialect: recognise, read, write."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from scgpt_tools._files import as_path, read_steadily, settle
from scgpt_tools._lookup import lookup
from scgpt_tools._warnings import warn_user
from scgpt_tools.models.formats.base import Checkpoint, Format, check_weights
from scgpt_tools.models.formats.native import NATIVE
from scgpt_tools.models.formats.scgpt import SCGPT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.vocabulary import Vocabulary

__all__ = ["FORMATS", "Checkpoint", "Format", "check_target", "read", "write"]

FORMATS: dict[str, Format] = {"native": NATIVE, "scgpt": SCGPT}


def read(folder: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint folder of any known format.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or none of the formats recognises it; the message lists what was found.
    """
    folder = as_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder with a checkpoint at {str(folder)!r}, found none.")
    return read_steadily(folder, _NAMES, partial(_read, folder))


def _read(folder: Path) -> Checkpoint:
    for kind in FORMATS.values():
        if kind.recognise(folder):
            return kind.read(folder)
    expected = "; or ".join(kind.files for kind in FORMATS.values())
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise FileNotFoundError(f"Expected {str(folder)!r} to hold {expected}. Found {found}.")


def write(
    folder: str | PathLike[str],
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    format: str = "native",
    **options: Any,
) -> Path:
    """Write a checkpoint folder; returns it.

    All files take their place in one step; one process that is killed, or several that save to one folder at once,
    leave the files of one model.

    Raises
    ------
    ValueError
        If the folder holds a checkpoint of another format.
    FileExistsError
        If the folder holds files of these names that this package did not write.

    Warns
    -----
    UserWarning
        If weights are not finite, which are refused when they are loaded.
    """
    place = check_target(folder, format)
    try:
        check_weights(weights, f"the model to write to {str(place)!r}")
    except ValueError as error:
        warn_user(f"{error} Nothing will load what is written.")
    FORMATS[format].write(place, config, vocabulary, weights, **options)
    return place


def check_target(folder: str | PathLike[str], format: str = "native") -> Path:
    """Refuse a folder that :func:`write` would refuse, before any work begins; returns it."""
    folder, kind = as_path("folder", folder), lookup(FORMATS, format, "checkpoint format")
    if folder.is_dir():
        settle(folder)
        before = True
        for rival in FORMATS.values():
            if rival is kind:
                before = False
            elif rival.recognise(folder):
                why = "which would be read first" if before else "whose vocabulary would be replaced"
                raise ValueError(
                    f"Expected a folder for {kind.files} alone, found {rival.files} in {str(folder)!r}, {why}. Choose "
                    "another folder, or remove those."
                )
        if not kind.ours(folder):
            there = ", ".join(name for name in kind.names if (folder / name).exists())
            raise FileExistsError(
                f"Expected a folder for {kind.files}, found {there} of something else in {str(folder)!r}, which saving "
                "would replace. Choose another folder, or remove those."
            )
    return folder


_NAMES = tuple(dict.fromkeys(name for kind in FORMATS.values() for name in kind.names))
