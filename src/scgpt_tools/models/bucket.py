"""Files of a public bucket, which anyone can list and download over HTTPS."""

from __future__ import annotations

import logging
from html import unescape
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from scgpt_tools._files import as_path, written_aside
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SCGENEPT_BUCKET = "https://czi-scgenept-public.s3.amazonaws.com"
"""Where scGenePT is published."""

# Of silence, after which a bucket is given up; a large file may take as long as it needs.
_SECONDS = 60
# What a list of files may take in all, and bytes of it that are read at once.
_LIST_BYTES, _LIST_SECONDS, _PIECE = 1 << 26, 120.0, 1 << 16


class Entry(NamedTuple):
    """A file of a bucket."""

    key: str
    size: int

    @property
    def name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self.key).name


class Bucket:
    """A public bucket and the files of it that were downloaded.

    Parameters
    ----------
    url
        Its address.
    cache_dir
        Where downloads are kept; ``None`` takes :attr:`~scgpt_tools.settings.Settings.cache_dir`, then ``~/.cache/scgpt_tools``.
    local_files_only
        Never use the network; so does ``settings.offline``.
    """

    def __init__(
        self, url: str, *, cache_dir: str | PathLike[str] | None = None, local_files_only: bool = False
    ) -> None:
        self.url = url.rstrip("/")
        place = cache_dir or settings.cache_dir or Path.home() / ".cache" / "scgpt_tools"
        self.folder = as_path("cache_dir", place) / "scgenept"
        self.offline = local_files_only or settings.offline

    @property
    def place(self) -> str:
        """Where :meth:`entries` looks, for messages."""
        if not self.offline:
            return self.url
        return f"what was downloaded to {str(self.folder)!r}, since `local_files_only` or `settings.offline` is on"

    def entries(self, prefix: str) -> list[Entry]:
        """List the files whose keys begin with something; offline, those that were downloaded.

        Raises
        ------
        ConnectionError
            If the bucket does not answer as one, or its list does not end within two minutes and 64 MB.
        """
        if self.offline:
            place = self.folder / prefix
            files = sorted(path for path in (place, *place.rglob("*")) if path.is_file())
            return [Entry(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in files]
        found: list[Entry] = []
        after: str | None = ""
        left, ends = _LIST_BYTES, monotonic() + _LIST_SECONDS
        while after is not None:
            page = self._page(f"?list-type=2&prefix={quote(prefix, safe='')}{after}", left, ends)
            left -= len(page)
            found += _entries_of(page)
            following = unescape(_between(page, "NextContinuationToken"))
            after = f"&continuation-token={quote(following, safe='')}" if following else None
        return [entry for entry in found if entry.key.startswith(prefix) and ".." not in entry.key.split("/")]

    def get(self, entry: Entry, folder: str | None = None) -> Path:
        """Download a file, unless it is in the cache in its size.

        Parameters
        ----------
        entry
            From :meth:`entries`.
        folder
            Folder of the cache to keep it in; ``None`` takes that of its key.

        Returns
        -------
        Where it is.
        """
        parent = self.folder / (str(PurePosixPath(entry.key).parent) if folder is None else folder)
        place = parent / entry.name
        if place.is_file() and place.stat().st_size == entry.size:
            return place
        if self.offline:
            raise FileNotFoundError(
                f"Expected {str(place)!r}, since `local_files_only` or `settings.offline` is on, found none. Fetch it once "
                "while online."
            )
        parent.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading %s (%.0f MB) from %s.", entry.key, entry.size / 1e6, self.url)
        with written_aside(place) as aside, settings.progress((), total=entry.size, unit="B") as bar:
            self._ask(
                lambda files: files.get_file(
                    f"{self.url}/{quote(entry.key)}", str(aside), callback=_watching(bar, entry.size)
                ),
                f"{self.url} did not send {entry.key}",
            )
            if (size := aside.stat().st_size) != entry.size:
                raise ConnectionError(
                    f"Expected {entry.size:,} bytes of {entry.key} from {self.url}, received {size:,}. Try again."
                )
        return place

    def _page(self, query: str, most: int, ends: float) -> str:
        """A page of a list, of so many bytes at most and until a time of the monotonic clock."""

        def read(files: Any) -> bytes:
            content = bytearray()
            # Of a size that nobody asks for, and in pieces as they come.
            with files.open(f"{self.url}/{query}", block_size=0, size=1) as file:
                while piece := file.read(_PIECE):
                    content += piece
                    if len(content) > most or monotonic() > ends:
                        raise OSError(f"no end after {_LIST_BYTES:,} bytes or {_LIST_SECONDS:g} seconds of it")
            return bytes(content)

        text: str = self._ask(read, f"{self.url} did not list its files").decode("utf-8", errors="replace")
        if "ListBucketResult" not in text[:2000]:
            raise ConnectionError(f"Expected a list of files from {self.url}, found {text[:60]!r}.")
        return text

    def _ask(self, act: Callable[[Any], Any], failed: str) -> Any:
        # They take a moment to import, and few need them.
        from aiohttp import ClientError, ClientTimeout
        from fsspec import filesystem  # this too

        timeout = ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
        # Keys are quoted here, and proxies are those of the environment.
        files = filesystem("http", encoded=True, client_kwargs={"trust_env": True, "timeout": timeout})
        try:
            return act(files)
        except (ClientError, OSError) as error:
            raise ConnectionError(
                f"{failed}: {type(error).__name__}: {error}. Pass the folder of a copy, or set `settings.offline` to use what "
                "was downloaded before."
            ) from error


def _entries_of(page: str) -> list[Entry]:
    """Files of a page of a list; nothing here looks at a character more than a few times, whatever a server sends."""
    entries = [part.partition("</Contents>")[0] for part in page.split("<Contents>")[1:]]
    found = [(unescape(_between(entry, "Key")), _between(entry, "Size")) for entry in entries]
    return [Entry(key, int(size)) for key, size in found if key and size.isdecimal() and len(size) < 20]


def _between(text: str, tag: str) -> str:
    """What the first tag of a name holds, or nothing."""
    return text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]


def _watching(bar: tqdm[Any], size: int) -> Any:
    """What moves a bar while a file comes, and ends what is longer than the file."""
    # With the rest of it.
    from fsspec.callbacks import Callback

    def look(_: Any, value: int, **__: Any) -> None:
        if value > size:
            raise OSError(f"more than the {size:,} bytes that it listed")
        bar.update(value - bar.n)

    return Callback(hooks={"bar": look})


def fetch_checkpoint(bucket: Bucket, folder: str, vocabulary: str) -> Path:
    """Download the one file of weights in a folder of a bucket, and the vocabulary beside it.

    Parameters
    ----------
    bucket
        The bucket.
    folder
        Prefix of the weights, whose file is called differently from folder to folder.
    vocabulary
        Key of the vocabulary.

    Returns
    -------
    The file of weights.

    Raises
    ------
    FileNotFoundError
        If there is no file of weights, or more than one; the message lists what was found.
    """
    entries = bucket.entries(f"{folder}/")
    weights = [entry for entry in entries if entry.name.endswith(".pt")]
    if len(weights) != 1:
        there = ", ".join(entry.key for entry in entries[:8]) or "nothing"
        raise FileNotFoundError(f"Expected one file of weights (.pt) in {folder} of {bucket.place}; found {there}.")
    name = PurePosixPath(vocabulary).name
    beside = [entry for entry in entries if entry.name == name] if bucket.offline else bucket.entries(vocabulary)
    if not beside:
        raise FileNotFoundError(f"Expected the vocabulary {vocabulary} of {bucket.place}; found none.")
    bucket.get(beside[0], folder)
    return bucket.get(weights[0])
