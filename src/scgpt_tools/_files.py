"""Paths that users give, and files and folders that are whole or not there.

Whatever is written goes aside first, is flushed to the disk and takes its place in one step, so that a reader, a kill or
a full disk meets the old content or the new one and nothing between.

Files that belong together (weights, vocabulary and settings of a model) are one thing in the same way: they are written
to a folder aside, which is renamed to ``.committed`` in one step and whose files are moved into place then.  Whoever
comes next, reader or writer, moves what a killed process left there.  Nothing but renaming within one folder is asked
of the file system, so that it works on network file systems too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Content = TypeVar("Content")

COMMITTED = ".committed"
"""Folder of files that were saved together and are not in their place yet."""

# Folder within it whose entries are named by files to remove in the same step.
_REMOVED = "removed"
_ASIDE = re.compile(r"\..*\.(?P<host>[^.]+)\.(?P<process>\d{1,9})\.[0-9a-f]{8}\.partial")
# The name of this machine, as far as file names go.
_HOST = "".join(letter if letter.isalnum() else "-" for letter in platform.node())[:40] or "host"
# What a killed process of another machine left is taken for left behind after a day.
_LEFT_BEHIND = 24 * 3600.0
_TRIES = 40
_MEGABYTE = 1 << 20


def as_path(name: str, value: Any) -> Path:
    """A path from a text or a path, with ``~`` as the home folder."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"Expected `{name}` to be a path, found {type(value).__name__}.")
    text = os.fspath(value)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ValueError(f"Expected `{name}` to be the path of a file or folder, found {value!r}.")
    return Path(text).expanduser()


def as_folder(name: str, value: Any) -> Path:
    """A folder to write to, which is made; a file in its place is refused."""
    folder = as_path(name, value)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"Expected `{name}` to be a folder, found the file {str(folder)!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# One file -------------------------------------------------------------------------------------------------------------


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a place beside a file to write to; what was written there becomes the file if the block ends well.

    ``path``: where the file shall be; its folder must exist.
    """
    aside = _aside(path.parent, path.name)
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
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # not every system opens folders
            return
        raise
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


# Files that belong together -------------------------------------------------------------------------------------------


@contextmanager
def written_together(folder: Path, *, instead_of: Collection[str] = ()) -> Iterator[Path]:
    """Give a place to write several files to, which all take their place in a folder in one step if the block ends well.

    A kill or a full disk at any moment leaves the files that were there or the new ones; what is in the folder under
    other names stays.  Processes that write to one folder at once do not disturb each other: the last one counts.

    ``folder``: where the files shall be; it is made if there is none; ``instead_of``: names of files that shall be gone
    in the same step, unless they are written.
    """
    folder = as_folder("folder", folder)
    remove_left_behind(folder)
    aside = _aside(folder, "files")
    try:
        aside.mkdir()
        yield aside
        mode = aside.stat().st_mode & 0o666
        for path in aside.iterdir():
            if path.is_file():
                path.chmod(mode)
                flush(path)
        for name in set(instead_of) - set(_names(aside)):
            (aside / _REMOVED / name).mkdir(parents=True)
        flush(aside)
        _commit(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    settle(folder)


def settle(folder: Path) -> None:
    """Move files that were saved together and did not get there into their place.

    Any number of processes may do so at once.  Each move is one step, which fails without harm where another process
    was first.
    """
    committed = folder / COMMITTED
    if not committed.is_dir():
        return
    for name in _names(committed):
        if name != _REMOVED:
            with suppress(FileNotFoundError):
                (committed / name).replace(folder / name)
    for name in _names(committed / _REMOVED):
        _remove(folder / name, committed / _REMOVED / name)
    for emptied in (committed / _REMOVED, committed):
        with suppress(OSError):  # another process may have removed it, or saved the next files
            emptied.rmdir()
    flush(folder)


def placed(folder: Path, name: str) -> Path | None:
    """Where a file of a folder is, files that wait to be moved into place included; ``None`` if there is none."""
    committed = folder / COMMITTED
    if (committed / _REMOVED / name).is_dir():
        return None
    return next((path for path in (committed / name, folder / name) if path.is_file()), None)


def read_steadily(folder: Path, names: Collection[str], read: Callable[[], Content]) -> Content:
    """Read files that belong together, again if one of them was replaced meanwhile."""
    for _ in range(_TRIES):
        with suppress(OSError):  # who may only read, reads them where they wait
            settle(folder)
        before = _state(folder, names)
        try:
            content = read()
        except Exception:
            if _state(folder, names) == before:
                raise
            continue
        if _state(folder, names) == before:
            return content
    raise OSError(
        f"Expected the files in {str(folder)!r} to rest while they are read, found that other processes replace them "
        "again and again. Call again when those are done."
    )


def remove_left_behind(folder: Path) -> None:
    """Remove what killed processes left beside the files that they were writing."""
    for path in folder.glob(".*.partial"):
        writer = _ASIDE.fullmatch(path.name)
        if writer is None:
            continue
        with suppress(OSError):
            here = writer["host"] == _HOST and os.name == "posix"
            if _is_dead(int(writer["process"])) if here else time.time() - path.stat().st_mtime > _LEFT_BEHIND:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _aside(folder: Path, name: str) -> Path:
    """A name that no other process or thread, on any machine, uses."""
    return folder / f".{name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.partial"


def _commit(aside: Path, folder: Path) -> None:
    for _ in range(_TRIES):
        settle(folder)
        try:
            aside.rename(folder / COMMITTED)
        except OSError as error:
            # Another process was first; what it left there may be gone again by now.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not (folder / COMMITTED).exists():
                raise
            time.sleep(0.01)
            continue
        flush(folder)
        return
    raise OSError(f"Expected to save in {str(folder)!r}, found that other processes save there without a pause.")


def _remove(path: Path, marker: Path) -> None:
    """Remove a file, in a step that fails where the folder that asks for it is gone because another process did so."""
    with suppress(FileNotFoundError):
        path.replace(marker / "gone")
    with suppress(FileNotFoundError):
        (marker / "gone").unlink()
    with suppress(OSError):
        marker.rmdir()


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []


def _state(folder: Path, names: Collection[str]) -> list[tuple[int, int, int] | None]:
    state: list[tuple[int, int, int] | None] = []
    for where in (folder / COMMITTED, folder):
        for name in names:
            try:
                about = (where / name).stat()
            except OSError:
                state.append(None)
            else:
                state.append((about.st_ino, about.st_size, about.st_mtime_ns))
    return state


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


# JSON -----------------------------------------------------------------------------------------------------------------


def read_json(path: Path, *, what: str = "one object", megabytes: int = 64) -> dict[str, Any]:
    """Read a JSON file that holds one object, in bounded time and memory."""
    expected = f"Expected {path} to hold JSON, {what}, found"
    if (size := path.stat().st_size) > megabytes * _MEGABYTE:
        raise ValueError(f"{expected} {size:,} bytes, more than the {megabytes} megabytes that such a file may have.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise ValueError(f"{expected} bytes that are no text in UTF-8. {_AGAIN}") from None
    except json.JSONDecodeError as error:
        fault = "an empty file" if not text.strip() else f"no JSON from line {error.lineno}, column {error.colno} on"
        raise ValueError(f"{expected} {fault}. {_AGAIN}") from None
    except RecursionError:
        raise ValueError(f"{expected} lists or objects that are nested too deeply.") from None
    except _Refused as error:
        raise ValueError(f"{expected} {error}.") from None
    except ValueError:
        raise ValueError(f"{expected} a number of too many digits.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{expected} a {type(content).__name__}.")
    return content


_AGAIN = "If it was cut short, copy it again from where it came from."


class _Refused(ValueError):
    """A value that JSON has no place for."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"{name!r} twice")
    return content


def _no_number(name: str) -> float:
    raise _Refused(f"the number {name}, which JSON does not have")
