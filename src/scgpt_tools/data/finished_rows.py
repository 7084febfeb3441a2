"""Results that are computed one row at a time and kept on disk, so that work that was interrupted goes on.

A file for each row begins with a checksum of the request, the name of the row and its values, so that one that is damaged,
or of something else, is known and computed again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._files import as_path, remove_left_behind, replace_file
from scgpt_tools._outputs import check_place, check_room

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Bytes of a checksum.
_CHECKSUM = 32


@dataclass(frozen=True)
class FinishedRows:
    """Rows by their names; without a folder nothing is kept."""

    folder: Path | None
    width: int
    """Numbers of a row."""
    request: str = ""

    @classmethod
    def open(
        cls, folder: str | PathLike[str] | None, request: Mapping[str, str], *, width: int, what: str
    ) -> FinishedRows:
        """Open a folder, or make it.

        ``request``: what has to agree for finished rows to be of use; ``what``: what rows belong to, for messages.
        """
        if folder is None:
            return cls(None, width)
        path = as_path("store", folder)
        check_place(path)
        written = path / "request.json"
        before = _read_request(written) if written.is_file() else request
        if different := sorted(name for name in request if before.get(name) != request[name]):
            raise ValueError(
                f"Expected the store '{path}' to belong to {what}, found other {', '.join(different)}. Choose "
                "another folder, or delete this one."
            )
        path.mkdir(parents=True, exist_ok=True)
        remove_left_behind(path)
        text = json.dumps(dict(request), indent=1)
        if not written.is_file():
            replace_file(written, lambda aside: aside.write_text(text, encoding="utf-8"))
        return cls(path, width, sha256(text.encode()).hexdigest())

    def check_room(self, names: Iterable[str]) -> None:
        """Refuse to begin if the disk cannot take what is not finished."""
        if self.folder is not None:
            size = _CHECKSUM + 4 * self.width
            check_room(self.folder, size * sum(not path.is_file() for path in map(self._path, names) if path))

    def read(self, name: str) -> NDArray[np.float32] | None:
        """A finished row (width,); ``None`` for one that is not."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        content = path.read_bytes()
        values = content[_CHECKSUM:]
        if content[:_CHECKSUM] != self._checksum(name, values):
            logger.warning("Computing %s again: %s is damaged, or of something else.", name, path)
            return None
        return np.frombuffer(values, dtype="<f4")

    def write(self, name: str, row: NDArray[np.float32]) -> None:
        """Keep a row (width,)."""
        path, values = self._path(name), row.astype("<f4").tobytes()
        if path is not None:
            replace_file(path, lambda aside: aside.write_bytes(self._checksum(name, values) + values))

    def _checksum(self, name: str, values: bytes) -> bytes:
        return sha256("\n".join([self.request, name, ""]).encode() + values).digest()

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{sha256(name.encode()).hexdigest()[:32]}.f4"


def _read_request(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"Expected {path} to describe the store, found it damaged. Delete the store, or choose another."
        )
    return found
