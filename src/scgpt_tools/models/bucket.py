"""Files of a public bucket, which anyone can list and download over HTTPS."""

from __future__ import annotations

import logging
import re
from html import unescape
from pathlib import Path, PurePosixPath
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
_ENTRY = re.compile(r"<Contents>.*?<Key>(.*?)</Key>.*?<Size>(\d+)</Size>.*?</Contents>", flags=re.DOTALL)
_NEXT = re.compile(r"<NextContinuationToken>(.*?)</NextContinuationToken>")
_MOST_PAGES = 100


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

    def entries(self, prefix: str) -> list[Entry]:
        """List the files whose keys begin with something; offline, those that were downloaded.

        Raises
        ------
        ConnectionError
            If the bucket does not answer as one.
        """
        if self.offline:
            place = self.folder / prefix
            files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else []
            return [Entry(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in files]
        found: list[Entry] = []
        after = ""
        for _ in range(_MOST_PAGES):
            page = self._read(f"?list-type=2&prefix={quote(prefix, safe='')}{after}")
            found += [Entry(unescape(key), int(size)) for key, size in _ENTRY.findall(page)]
            following = _NEXT.search(page)
            if following is None:
                break
            after = f"&continuation-token={quote(unescape(following[1]), safe='')}"
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
                lambda files: files.get_file(f"{self.url}/{quote(entry.key)}", str(aside), callback=_shown_by(bar)),
                f"{self.url} did not send {entry.key}",
            )
            if (size := aside.stat().st_size) != entry.size:
                raise ConnectionError(
                    f"Expected {entry.size:,} bytes of {entry.key} from {self.url}, received {size:,}. Try again."
                )
        return place

    def _read(self, query: str) -> str:
        content = self._ask(lambda files: files.cat_file(f"{self.url}/{query}"), f"{self.url} did not list its files")
        text: str = content.decode("utf-8", errors="replace")
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


def _shown_by(bar: tqdm[Any]) -> Any:
    """What moves a bar while a file comes."""
    # With the rest of it.
    from fsspec.callbacks import Callback

    return Callback(hooks={"bar": lambda size, value, **_: bar.update(value - bar.n)})


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
        raise FileNotFoundError(f"Expected one file of weights (.pt) in {bucket.url}/{folder}, found {there}.")
    name = PurePosixPath(vocabulary).name
    beside = [entry for entry in entries if entry.name == name] if bucket.offline else bucket.entries(vocabulary)
    if not beside:
        raise FileNotFoundError(f"Expected the vocabulary {vocabulary} in {bucket.url}, found none.")
    bucket.get(beside[0], folder)
    return bucket.get(weights[0])
