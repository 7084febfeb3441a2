"""What a hub may answer: names that stay names when they become paths, sizes that fit, and bytes that keep coming.

The client of the Hugging Face hub makes paths in its cache of what the server says, and waits as long as a byte comes
now and then.  A call of it runs here in a thread of its own whose answers are looked at as they arrive.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub.utils import get_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Result = TypeVar("Result")

PATIENCE = 60.0
"""Seconds in which a call has to end, or to bring :data:`LEAST` bytes."""
LEAST = 1 << 16

# Seconds to open a connection in, and before each try: a name server may be busy, and a laptop between two networks.
_CONNECT, _PAUSES = 3.0, (0.0, 1.0)
_PORTS = {"http": 80, "https": 443}

# Of an answer about a file, what becomes the name of a file or folder in the cache.
_COMMIT, _ETAGS = "X-Repo-Commit", ("X-Linked-Etag", "ETag")
_SIZES = ("X-Linked-Size", "Content-Length")
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")


class NoAnswerError(Exception):
    """The server sends nothing, or hardly anything."""


class HostileAnswerError(ValueError):
    """The server sends what no hub would."""


def guarded(
    call: Callable[[], Result], *, growing: Path | None = None, most: int | None = None, short: bool = False
) -> Result:
    """Call the client of the hub, with an eye on what the server answers.

    ``most``: largest number of bytes of one answer as announced, and of all answers as sent; ``short``: the call has to
    end within :data:`PATIENCE`, however much comes; a list can go on for ever.
    """
    guard = _Guard(call, growing, most, short=short)
    guard.thread.start()
    try:
        guard.watch()
    except BaseException:
        guard.abandon()
        raise
    if guard.error is not None:
        raise guard.error
    return guard.result


class _Guard:
    def __init__(self, call: Callable[[], Any], growing: Path | None, most: int | None, *, short: bool) -> None:
        self.call, self.growing, self.most, self.short = call, growing, most, short
        self.result: Any = None
        self.error: BaseException | None = None
        self.abandoned = False
        self.responses: list[Any] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="download", daemon=True)

    def watch(self) -> None:
        """Wait for the call, while it makes progress."""
        start, before = time.monotonic(), self._progress()
        while not self.done.wait(min(1.0, PATIENCE / 10)):
            if self.most is not None and sum(map(_received, self.responses)) > self.most:
                raise HostileAnswerError(f"more than the {self.most:,} bytes that such a file may have")
            if time.monotonic() - start < PATIENCE:
                continue
            now = self._progress()
            if self.short or now - before < LEAST:
                raise NoAnswerError(f"{now - before:,} bytes in {PATIENCE:g} seconds")
            start, before = time.monotonic(), now

    def abandon(self) -> None:
        """End the call as far as possible from outside, so that it leaves no half of a file."""
        self.abandoned = True
        for response in self.responses:
            with suppress(Exception):
                response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self.done.wait(2.0)

    def _run(self) -> None:
        try:
            with self._hooked():
                self.result = self.call()
        except BaseException as error:  # noqa: BLE001  # raised again where the call is waited for
            self.error = error
        finally:
            self.done.set()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """See all answers to this thread."""
        session: Any = get_session()
        # The client moved from requests to httpx; both keep their hooks in lists by name.
        hooks = getattr(session, "event_hooks", None) or session.hooks
        here = threading.get_ident()

        def look(response: Any, *_: Any, **__: Any) -> None:
            if threading.get_ident() == here:
                self._look(response)

        hooks.setdefault("response", []).append(look)
        try:
            yield
        finally:
            with suppress(ValueError):
                hooks["response"].remove(look)
            if not hasattr(session, "event_hooks"):  # that of requests belongs to this thread
                session.close()

    def _look(self, response: Any) -> None:
        self.responses.append(response)
        try:
            self._check(response)
        except Exception:
            response.close()
            raise

    def _check(self, response: Any) -> None:
        if self.abandoned:
            raise NoAnswerError
        check_names(response.headers)
        sizes = [int(size) for name in _SIZES if (size := response.headers.get(name, "")).isdecimal()]
        if self.most is not None and sizes and max(sizes) > self.most:
            raise HostileAnswerError(f"{max(sizes):,} bytes, more than the {self.most:,} that such a file may have")

    def _progress(self) -> int:
        total = sum(map(_received, self.responses))
        if self.growing is not None:
            for path in self.growing.glob("*.incomplete"):
                with suppress(OSError):
                    total += path.stat().st_size
        return total


def check_names(headers: Mapping[str, str]) -> None:
    """Refuse names that would lead out of the cache as part of a path."""
    commit = headers.get(_COMMIT)
    if commit is None:  # no answer about a file, and the client takes no name from it
        return
    etag = next((headers[name] for name in _ETAGS if headers.get(name) is not None), None)
    names = {_COMMIT: commit, "ETag": None if etag is None else etag.removeprefix("W/").strip('"')}
    for what, name in names.items():
        if name is not None and (not _NAME.fullmatch(name) or set(name) <= {"."}):
            raise HostileAnswerError(f"{name[:80]!r} as {what}, which would be a path out of the cache")


def _received(response: Any) -> int:
    """Bytes of an answer's content that have come."""
    try:
        counted = getattr(response, "num_bytes_downloaded", None)
        return response.raw.tell() if counted is None else counted
    except (AttributeError, ValueError, OSError):
        return 0


def unreachable(url: str) -> OSError | None:
    """Why no connection to a server, or to the proxy that leads to it, can be opened; ``None`` where one can, or may."""
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)
    if proxy is not None:
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if address.hostname is None or address.scheme not in _PORTS:
        return None
    fault: OSError | None = None
    for wait in _PAUSES:
        time.sleep(wait)
        try:
            port = address.port or _PORTS[address.scheme]
            socket.create_connection((address.hostname, port), timeout=_CONNECT).close()
        except TimeoutError:
            return None
        except (OSError, ValueError) as error:
            fault = OSError(str(error))
        else:
            return None
    return fault
