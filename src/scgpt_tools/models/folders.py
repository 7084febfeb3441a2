"""Which files make a checkpoint, and whether they are what they are called.

Only names and first bytes are looked at here; :mod:`scgpt_tools.models.formats` reads the content.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from scgpt_tools._files import placed, read_steadily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

VOCABULARY = "vocab.json"
# A tensor takes some hundred bytes of the header of a safetensors file.
_MOST_HEADER = 10 << 20


@dataclass(frozen=True)
class Layout:
    """File names of one kind of checkpoint, beside ``vocab.json``."""

    owner: str
    """Whose format it is, for messages."""
    config: str
    """File with the settings of the model."""
    weights: tuple[str, ...]
    """Files that may hold the weights, the one to prefer first."""


OURS = Layout("this package's format", "config.json", ("model.safetensors",))
SCGPTS = Layout("scGPT's format", "args.json", ("best_model.pt", "model.pt"))
LAYOUTS = (OURS, SCGPTS)
"""In the order of preference: safetensors can hold nothing but tensors."""


class CheckpointFiles(NamedTuple):
    """The three files of a checkpoint."""

    config: Path
    weights: Path
    vocabulary: Path


def collect(get: Callable[[str], Path | None]) -> CheckpointFiles | None:
    """Find the files of a checkpoint of any layout.

    Parameters
    ----------
    get
        Gives the file of a name, or ``None`` if there is none.  It is asked for the vocabulary first and for weights
        only when their settings are there, so that it may as well download.

    Returns
    -------
    The files, or ``None`` if no layout is complete.
    """
    vocabulary = get(VOCABULARY)
    if vocabulary is None:
        return None
    for layout in LAYOUTS:
        config = get(layout.config)
        if config is None:
            continue
        for name in layout.weights:
            weights = get(name)
            if weights is not None:
                return CheckpointFiles(config, weights, vocabulary)
    return None


def incomplete(where: str, found: Iterable[str]) -> str:
    """Message for a place that holds no complete checkpoint."""
    layouts = ", or ".join(f"{layout.config} with {' or '.join(layout.weights)} ({layout.owner})" for layout in LAYOUTS)
    names = sorted(found)
    listing = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no files"
    return f"Expected {where} to hold {VOCABULARY}, and {layouts}; found {listing}."


def check_folder(folder: Path) -> Path:
    """Refuse a folder that is no complete checkpoint.

    Parameters
    ----------
    folder
        Where the files are.

    Returns
    -------
    The folder.

    Raises
    ------
    FileNotFoundError
        If files are missing.
    ValueError
        If the file of the weights is something else.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder with a checkpoint at {str(folder)!r}, found none.")

    read_steadily(folder, _NAMES, partial(_check, folder))
    return folder


def _check(folder: Path) -> None:
    checkpoint = collect(partial(placed, folder))
    if checkpoint is None:
        raise FileNotFoundError(incomplete(f"the folder {str(folder)!r}", (path.name for path in folder.iterdir())))
    fault = fault_of(checkpoint.weights)
    if fault is not None:
        raise ValueError(f"Expected {str(checkpoint.weights)!r} to hold the weights of a model, found {fault}.")


_NAMES = tuple(dict.fromkeys((VOCABULARY, *(name for each in LAYOUTS for name in (each.config, *each.weights)))))


def fault_of(path: Path) -> str | None:
    """What a file of weights is instead, judged by its name, size and first bytes.

    Parameters
    ----------
    path
        A file called ``*.safetensors`` or ``*.pt``.

    Returns
    -------
    The end of a sentence that begins with "found", or ``None`` if nothing is wrong.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "the pointer that Git LFS keeps in its place; `git lfs pull` brings the file"
    if head.lstrip().startswith(b"<"):
        return "an HTML or XML page, such as a proxy or a login page sends"
    return _safetensors_fault(path) if path.suffix == ".safetensors" else _torch_fault(path, head)


def _torch_fault(path: Path, head: bytes) -> str | None:
    if zipfile.is_zipfile(path) or head.startswith(b"\x80"):  # since torch 1.6 an archive, before it a bare pickle
        return None
    if head.startswith(b"PK"):
        return f"an archive that ends too early, after {path.stat().st_size:,} bytes; copy it again"
    return "a file that torch.save did not write"


def _safetensors_fault(path: Path) -> str | None:
    """A safetensors file is the length of its header, the header (JSON) and the tensors that it lists."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if _MOST_HEADER < length <= size - 8:
            return f"a header of {length:,} bytes, more than that of any model"
        header = file.read(length) if length <= size - 8 else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        return None if size == expected else f"{size:,} bytes instead of {expected:,}; copy it again"
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return "no safetensors header"
