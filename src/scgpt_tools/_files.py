"""Paths that users give, and files that are whole or not there.

Whatever is written goes aside first, is flushed to the disk and takes its place in one step, so that a reader, a kill or
a full disk meets the old file or the new one and nothing between.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def as_path(name: str, value: Any) -> Path:
    """A path from a text or a path, with ``~`` as the home folder.

    Parameters
    ----------
    name
        Name of the argument, for messages.
    value
        What the user gave.

    Returns
    -------
    The path.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"Expected `{name}` to be a path, found {type(value).__name__}.")
    text = os.fspath(value)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"Expected `{name}` to be the path of a file or folder, found {value!r}.")
    return Path(text).expanduser()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a place beside a file to write to; what was written there becomes the file if the block ends well.

    Parameters
    ----------
    path
        Where the file shall be; its folder must exist.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # Some writers make files for the owner only; who may read is up to the user's own settings.
        aside.touch()
        mode = aside.stat().st_mode
        yield aside
        aside.chmod(mode)
        flush(aside)
        aside.replace(path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file through a function of a path, by way of :func:`written_aside`."""
    with written_aside(path) as aside:
        write(aside)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems flush no folders.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def checksum_of(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
