"""Outputs that one process at a time writes: claimed before work begins, looked at for room, exchanged in one step.

What goes aside lies in a hidden folder beside the output, ``.<name>.partial``, which its process holds a lock on.  A
killed process loses the lock, so whoever comes next knows that what lies there is of nobody and clears it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from scgpt_tools._files import flush

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OWNER, _PREVIOUS = "owner", "previous"
# What Linux calls the exchange of two names, and the working folder as the start of relative paths.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


@contextmanager
def claimed(final: Path) -> Iterator[Path]:
    """Claim an output for this process and give a folder beside it to write to.

    What a killed process left there is cleared first, and an output that it had moved away comes back.

    ``final``: where the output shall be; its folder must exist.
    """
    folder = aside_of(final)
    descriptor = hold(folder / _OWNER, f"'{final}'")
    try:
        _restore(folder, final)
        _clear(folder)
        yield folder
    finally:
        _restore(folder, final)
        _clear(folder)
        (folder / _OWNER).unlink(missing_ok=True)
        let_go(descriptor)
        # Not empty if another process has claimed the output in this moment.
        with suppress(OSError):
            folder.rmdir()


def aside_of(final: Path) -> Path:
    """The folder in which an output is prepared."""
    return final.with_name(f".{final.name}.partial")


def recover(final: Path) -> None:
    """Bring back an output that a killed process had moved away, where the system cannot exchange two folders."""
    if not final.exists() and (aside_of(final) / _PREVIOUS).exists():
        with claimed(final):
            pass


def put_in_place(new: Path, final: Path) -> None:
    """Give a file or folder, made in the folder of :func:`claimed`, the name of the output.

    At every moment the old output or the new one is found under the name; only where a system cannot exchange two
    folders there is an instant with neither, after which :func:`recover` brings the old one back.
    """
    if not new.is_dir():
        flush(new)
        new.replace(final)
    else:
        # There may be very many files, and a flush of each would wait for the disk as often.
        os.sync()
        if not final.exists():
            new.rename(final)
        elif not _exchange(new, final):
            previous = aside_of(final) / _PREVIOUS
            final.rename(previous)
            new.rename(final)
            remove(previous)
    flush(final.parent)


def check_place(final: Path) -> None:
    """Refuse a place that cannot be written to; folders that are not there yet may be made."""
    there = next(place for place in (final, *final.parents) if place.exists())
    if there != final and not there.is_dir():
        raise NotADirectoryError(f"Expected the folder of the output at '{there}', found a file.")
    if not os.access(there, os.W_OK) or (there.is_dir() and not os.access(there, os.X_OK)):
        raise PermissionError(f"Expected an output that may be written, found '{there}', which may not.")


def check_room(place: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for."""
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"Expected room for {needed / 1e9:,.2f} GB at '{there}', found {free / 1e9:,.2f} GB. Free some, or choose "
            "another output.",
        )


def hold(lock: Path, what: str) -> int:
    """Take a lock that goes away with the process, however that ends.

    ``lock``: a file for the lock, made with its folder if it is not there; it tells who holds it.
    """
    while True:
        lock.parent.mkdir(exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            # Its last owner has just cleared it away.
            continue
        if not _locked(descriptor):
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise FileExistsError(
                f"Expected an output that no other process is writing, but {owner} is writing {what}. Wait for it, or "
                "choose another output."
            )
        try:
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def let_go(descriptor: int) -> None:
    """Give a lock back."""
    os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _locked(descriptor: int) -> bool:
    try:
        import fcntl  # Unix only
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; there nobody keeps two processes from one output.
        return True
    return True


def _restore(folder: Path, final: Path) -> None:
    previous = folder / _PREVIOUS
    if previous.exists() and not final.exists():
        previous.rename(final)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _OWNER:
            remove(path)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, where the system and the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0
