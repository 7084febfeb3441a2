"""Which files make a checkpoint, and whether they are what they are called.

Only names and first bytes are looked at here; :mod:`scgpt_tools.models.formats` reads the content.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from scgpt_tools._files import placed, read_steadily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# A tensor takes some hundred bytes of the header of a safetensors file.
_MOST_HEADER = 10 << 20


@dataclass(frozen=True)
class FolderLayout:
    """File names of one kind of checkpoint."""

    owner: str
    """Whose format it is, for messages."""
    settings: str | None
    """File with the settings of the model; ``None`` where there is none."""
    weights: tuple[str, ...]
    """Files that may hold the weights, the one to prefer first."""
    vocabulary: str = "vocab.json"
    """File with the genes and their ids."""
    settings_needed: bool = True
    """Whether there is no checkpoint without the settings."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files that such a folder may have."""
        return (*((self.settings,) if self.settings else ()), self.vocabulary, *self.weights)

    def __str__(self) -> str:
        weights = " or ".join(self.weights)
        settings = f"{self.settings}, " if self.settings and self.settings_needed else ""
        return f"{settings}{self.vocabulary} and {weights}"

    def weights_in(
        self, get: Callable[[str], Path | None], *, vocabulary: bool = False, settings: bool = True
    ) -> Path | None:
        """Find the weights, if the files that belong to them are there too.

        Parameters
        ----------
        get
            Gives the file of a name, or ``None`` if there is none.  It is asked for weights last, so that it may as well
            download.
        vocabulary, settings
            Whether the vocabulary has to be there, and settings that the format needs.
        """
        if vocabulary and get(self.vocabulary) is None:
            return None
        there = self.settings is None or get(self.settings) is not None
        if settings and self.settings_needed and not there:
            return None
        return next((path for name in self.weights if (path := get(name)) is not None), None)


def incomplete(where: str, layouts: Iterable[FolderLayout], found: Iterable[str]) -> str:
    """Message for a place that holds no complete checkpoint."""
    kinds = "; or ".join(f"{layout} ({layout.owner})" for layout in layouts)
    names = sorted(found)
    listing = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no files"
    return f"Expected {where} to hold {kinds}; found {listing}."


def check_folder(
    folder: Path, layouts: Iterable[FolderLayout], *, vocabulary: bool = True, settings: bool = True
) -> Path:
    """Refuse a folder that is no complete checkpoint; returns it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder with a checkpoint at {str(folder)!r}, found none.")
    layouts = tuple(layouts)

    def check() -> None:
        found = (
            layout.weights_in(partial(placed, folder), vocabulary=vocabulary, settings=settings) for layout in layouts
        )
        weights = next((path for path in found if path is not None), None)
        if weights is None:
            names = (path.name for path in folder.iterdir())
            raise FileNotFoundError(incomplete(f"the folder {str(folder)!r}", layouts, names))
        check_weights_file(weights)

    read_steadily(folder, tuple(dict.fromkeys(name for layout in layouts for name in layout.names)), check)
    return folder


def check_weights_file(path: Path) -> Path:
    """Refuse a file that cannot hold weights; returns it."""
    fault = fault_of(path)
    if fault is not None:
        raise ValueError(f"Expected {str(path)!r} to hold the weights of a model, found {fault}.")
    return path


def fault_of(path: Path) -> str | None:
    """What a file of weights is instead, judged by its name, size and first bytes.

    ``path``: a file of tensors; one that is not called ``*.safetensors`` is of ``torch.save``.  Returns the end of a
    sentence that begins with "found", or ``None`` if nothing is wrong.
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
