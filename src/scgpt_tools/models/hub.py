"""Checkpoints from a Hugging Face hub, with huggingface_hub's client and cache.

The client resumes interrupted transfers and checks sizes; here the content is compared with the checksum that the hub
announced, and every failure names what the user can do.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from scgpt_tools._files import as_path
from scgpt_tools._validate import check_text
from scgpt_tools.models.folders import FolderLayout, fault_of, incomplete
from scgpt_tools.models.hub_guard import HostileAnswerError, NoAnswerError, guarded, unreachable
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

logger = logging.getLogger(__name__)

# The client moved from requests to httpx to httpx2; its own error always derives from that library's.
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Largest answer where no weights are asked for.
_MOST_TEXT = 64 << 20
# Revisions in a message.
_SHOWN = 20
# The cache names a file by its checksum: SHA-256 of a large file, git's SHA-1 of a small one.
_LARGE, _SMALL = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class _SilentError(ConnectionError):
    """The hub sends nothing, or hardly anything."""


class Repository:
    """One revision of a repository of models.

    Parameters
    ----------
    name
        ``"organisation/name"``.
    revision
        Branch, tag or commit; ``None`` takes ``main``.
    cache_dir
        Folder of the cache; ``None`` takes :attr:`~scgpt_tools.settings.Settings.cache_dir`, then the client's own.
    token
        Access token; ``None`` takes the one of ``hf auth login`` if there is one, ``False`` sends none.
    local_files_only
        Ask the cache only; so do ``settings.offline`` and the environment variable ``HF_HUB_OFFLINE``.
    endpoint
        Address of the hub; ``None`` takes the client's.
    origin
        Where else the files are published, for messages.
    force_download
        Download what is in the cache too.
    layouts
        Kinds of checkpoints that it may hold, the one to prefer first.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        endpoint: str | None = None,
        origin: str | None = None,
        force_download: bool = False,
        layouts: Sequence[FolderLayout],
    ) -> None:
        self.name, self.layouts = name, layouts
        self.revision = constants.DEFAULT_REVISION if revision is None else check_text("revision", revision)
        if {"", ".", ".."} & set(self.revision.split("/")):
            raise ValueError(f"Expected `revision` to be a branch, a tag or a commit, found {revision!r}.")
        self.cache_dir = as_path("cache_dir", cache_dir or settings.cache_dir or constants.HF_HUB_CACHE)
        self._folder = self.cache_dir / f"models--{name.replace('/', '--')}"
        self.token = token
        self.force = force_download
        self.offline = local_files_only or settings.offline or constants.HF_HUB_OFFLINE
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._otherwise = "" if origin is None else f" The files are also published at {origin}; download them there."
        # Once known, all files are of this commit, and those in the cache cost no request.
        self._commit = self.revision if _COMMIT.fullmatch(self.revision) else None

    def checkpoint(self, *, vocabulary: bool = True, settings: bool = True) -> Path:
        """Download the files of a checkpoint that are not in the cache."""
        found = (layout.weights_in(self.get, vocabulary=vocabulary, settings=settings) for layout in self.layouts)
        weights = next((path for path in found if path is not None), None)
        if weights is None:
            raise FileNotFoundError(self._incomplete())
        fault = fault_of(weights)
        if fault is not None:
            self._refuse(weights, f"to hold the weights of a model, found {fault}")
        return weights.parent

    def vocabulary(self) -> Path:
        """Download the vocabulary alone."""
        names = dict.fromkeys(layout.vocabulary for layout in self.layouts)
        found = next((path for name in names if (path := self.get(name)) is not None), None)
        if found is None:
            raise FileNotFoundError(self._incomplete())
        return found

    def get(self, name: str) -> Path | None:
        """Download one file.

        Returns where it is in the cache, or ``None`` if the repository (offline: the cache) has no such file.
        """
        revision = self._commit or self.revision
        cached = try_to_load_from_cache(self.name, name, cache_dir=self.cache_dir, revision=revision)
        if self.force and not self.offline:
            cached = None
        if self.offline or self._commit is not None:
            # Not through the client's download function: that may ask the hub for other things even then.
            if isinstance(cached, str):
                return Path(cached)
            if self.offline or cached is not None:  # the cache marks the files that a repository lacks
                return None
        try:
            path = self._download(name, revision)
        except LocalEntryNotFoundError as error:
            raise self._no_answer(error) from error
        except _SilentError:
            if not isinstance(cached, str):
                raise
            # As the client does where nobody answers at all.
            logger.warning("%s does not answer; %s is taken from the cache.", self.endpoint, name)
            path = Path(cached)
        except EntryNotFoundError:
            return None
        self._commit = path.parent.name
        if str(path) != cached:
            self._verify(path, name)
        return path

    def __str__(self) -> str:
        return f"the repository {self.name!r} at {self.revision!r}"

    def _download(self, name: str, revision: str) -> Path:
        if self._commit is None and (fault := unreachable(self.endpoint)) is not None:
            # The client tries again for twenty seconds, and then says the same.
            cached = try_to_load_from_cache(self.name, name, cache_dir=self.cache_dir, revision=revision)
            if isinstance(cached, str) and not self.force:
                logger.warning("%s cannot be reached; %s is taken from the cache.", self.endpoint, name)
                return Path(cached)
            raise self._no_answer(fault) from fault
        with progress_bars(), self._explained(name):
            download = partial(
                hf_hub_download,
                self.name,
                name,
                revision=revision,
                cache_dir=self.cache_dir,
                token=self.token,
                endpoint=self.endpoint,
                force_download=self.force,
                library_name="scgpt-tools",
            )
            most = _MOST_TEXT if name.endswith(".json") else None
            return Path(guarded(download, growing=self._folder / "blobs", most=most))

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Say what a failure of the client means for the user."""
        try:
            yield
        except (EntryNotFoundError, LocalTokenNotFoundError):
            raise  # the first is an answer, the second says all there is to say
        except NoAnswerError as error:
            raise self._silent(error) from None
        except HostileAnswerError as error:
            raise ValueError(
                f"Expected {self.endpoint} to answer like a hub about {name} of {self}, found {error}. Nothing was "
                "kept. Use another hub or mirror, or pass a local folder."
            ) from None
        except GatedRepoError as error:
            raise PermissionError(
                f"The repository {self.name!r} is gated. Ask for access at {self.endpoint}/{self.name}, then log in "
                "with `hf auth login` or pass `token=`."
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"Found no repository {self.name!r} at {self.endpoint} that you may see. Check the spelling; if it is "
                f"private, log in with `hf auth login` or pass `token=`.{self._otherwise}"
            ) from error
        except RevisionNotFoundError as error:
            raise ValueError(self._no_revision()) from error
        except HfHubHTTPError as error:
            raise self._refused(error) from error
        except OSError as error:
            raise self._not_stored(name, error) from error
        except TRANSPORT_ERROR as error:
            raise ConnectionError(
                f"The connection to {self.endpoint} broke while {name} of {self} was on its way: {_first_line(error)} "
                "Call again; what arrived is not lost if the client can go on where it stopped."
            ) from error

    def _no_revision(self) -> str:
        api = HfApi(endpoint=self.endpoint, token=self.token)
        try:
            refs = guarded(lambda: api.list_repo_refs(self.name), most=_MOST_TEXT, short=True)
        except Exception:  # noqa: BLE001  # the list only helps; the message is about the revision
            names = ["(no list came)"]
        else:
            names = [repr(ref.name) for ref in (*refs.branches, *refs.tags)]
        listing = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        return f"Found no revision {self.revision!r} of {self.name!r}. Available: {listing}, or the hash of a commit."

    def _silent(self, error: NoAnswerError) -> ConnectionError:
        return _SilentError(
            f"Could not fetch {self} from {self.endpoint}, which sent {str(error) or 'too little'}. Check the connection "
            f"and the proxy, try again later, or pass a local folder.{self._otherwise}"
        )

    def _no_answer(self, error: Exception) -> Exception:
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            return self._refused(cause)
        return ConnectionError(
            f"Could not reach {self.endpoint} for {self}: {_first_line(cause)} The cache in {str(self.cache_dir)!r} "
            "lacks files too. Check the connection and the proxy, or copy the folder of the checkpoint from another "
            f"machine and pass its path.{self._otherwise}"
        )

    def _refused(self, error: HfHubHTTPError) -> Exception:
        status = error.response.status_code
        if status in (401, 403):
            return PermissionError(
                f"{self.endpoint} refused the request ({status}). Check the token in `token=` or of `hf auth login`; "
                "token=False sends none."
            )
        return ConnectionError(
            f"{self.endpoint} answered with an error, {status}. Try again later, or pass a local folder."
            + self._otherwise
        )

    def _not_stored(self, name: str, error: OSError) -> OSError:
        if error.errno == errno.ENOSPC:
            return OSError(
                errno.ENOSPC,
                f"No space left in {str(self.cache_dir)!r} for {name} of {self.name!r}. Free some, or pass "
                "`cache_dir=` a folder on another disk",
            )
        message = f"Could not fetch {name} of {self}: {_first_line(error)} No wrong file was kept; call again."
        return OSError(message) if error.errno is None else OSError(error.errno, message)

    def _incomplete(self) -> str:
        if not self.offline:
            with self._explained("the list of files"):
                api = HfApi(endpoint=self.endpoint, token=self.token)
                revision = self._commit or self.revision
                ask = partial(api.list_repo_files, self.name, revision=revision)
                names = guarded(ask, most=_MOST_TEXT, short=True)
                return incomplete(str(self), self.layouts, names)
        folders = sorted((self._folder / "snapshots").glob("*"))
        cached = [f"{folder.name[:8]}/{path.name}" for folder in folders for path in folder.iterdir()]
        cache = f"the cache in {str(self.cache_dir)!r}"
        return (
            (
                incomplete(f"{cache}, for {self},", self.layouts, cached)
                if cached
                else f"Expected {cache} to hold {self}, found no files."
            )
            + " Nothing is downloaded, because `local_files_only`, `settings.offline` or HF_HUB_OFFLINE is on. Fetch "
            "the model once while online, into the same cache, or pass the folder of a copy."
        )

    def _verify(self, path: Path, name: str) -> None:
        """Compare content and checksum; a proxy or a broken mirror can send other bytes of the right length."""
        expected = path.resolve().name
        if not self._is_checksum(expected):  # where the file system has no links
            url = hf_hub_url(self.name, name, revision=self._commit, endpoint=self.endpoint)
            ask = partial(get_hf_file_metadata, url, token=self.token, endpoint=self.endpoint)
            with self._explained(name):
                expected = guarded(ask, short=True).etag or ""
        if not self._is_checksum(expected):
            logger.debug("No checksum is known for %s of %s.", name, self)
            return
        found = _checksum(path, large=_LARGE.fullmatch(expected) is not None)
        if found != expected:
            self._refuse(path, f"with checksum {expected}, found {found}")

    @staticmethod
    def _is_checksum(name: str) -> bool:
        return bool(_LARGE.fullmatch(name) or _SMALL.fullmatch(name))

    def _refuse(self, path: Path, finding: str) -> None:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ValueError(
            f"Expected {path.name} of {self} {finding}. It was removed from the cache. Call again; if it happens "
            f"again, something between you and {self.endpoint} changes files, or the repository is damaged."
        )


def _checksum(path: Path, *, large: bool) -> str:
    digest = (
        hashlib.sha256() if large else hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    )
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0][:300].rstrip()
    return line if line.endswith(".") else f"{line}."


@contextmanager
def progress_bars() -> Iterator[None]:
    """Follow our settings, where the client's environment variable does not decide."""
    free = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if settings.show_progress or not free:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
