"""Checkpoints to a Hugging Face hub: one commit with the files of a model and a page about it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scgpt_tools._files import as_path, placed
from scgpt_tools._validate import check_flag, check_text
from scgpt_tools.models import formats
from scgpt_tools.models.folders import FolderLayout, check_folder
from scgpt_tools.models.hub import TRANSPORT_ERROR, progress_bars
from scgpt_tools.models.zoo import REPOSITORY
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

logger = logging.getLogger(__name__)

CARD = "README.md"


def push_folder(
    folder: str | PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload the folder of a checkpoint, of any format, to a repository, which is made if there is none.

    The checkpoint's files go there, and its ``README.md``; one is written if neither the folder nor the repository has
    any.  Files of another checkpoint, which would be read in their place, are deleted in the same commit; all others stay.

    ``repository``: ``"organisation/name"``; ``private``: of a new repository, whether others see it; ``revision``:
    branch, which must exist unless it is ``main``; ``token``: access token with the right to write; ``None`` takes the one
    of ``hf auth login``.  Returns the address of the commit.
    """
    place = check_folder(as_path("folder", folder), formats.layouts())
    name = check_text("repository", repository)
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"Expected `repository` to be 'organisation/name', found {repository!r}.")
    check_flag("private", private)
    check_text("message", message)
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if settings.offline or constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"Expected to be online to upload to {endpoint}, found that this session is set offline.")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        files, there = _files(place), _names(api, name, revision)
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path.name, str(path)) for path in files
        ]
        if not (place / CARD).is_file() and CARD not in there:
            changes.append(CommitOperationAdd(CARD, _card(place, name).encode()))
        stale = sorted(there & _read_first(place) - {path.name for path in files})
        if stale:
            logger.warning(
                "Deleting %s of another checkpoint from %s; earlier commits keep them.", ", ".join(stale), name
            )
        changes += [CommitOperationDelete(other) for other in stale]
        with progress_bars():
            commit = api.create_commit(name, changes, commit_message=message, revision=revision)
    except LocalTokenNotFoundError:
        raise
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise PermissionError(_refused(name, endpoint)) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"Expected `revision` to be a branch of {name!r}, found none named {revision!r}. Make it first, or leave it out for "
            "main."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(_refused(name, endpoint)) from error
        raise ConnectionError(
            f"{endpoint} answered with an error, {status}, to the upload of {str(place)!r}. Try again later."
        ) from error
    except (TRANSPORT_ERROR, RuntimeError) as error:
        # The client raises the second for each file that it could not send.
        cause = error.__cause__ or error
        raise ConnectionError(
            f"The connection to {endpoint} broke while {str(place)!r} was on its way: "
            f"{str(cause).partition(chr(10))[0]} Nothing was committed; call again."
        ) from error
    logger.info("Uploaded %s to %s.", place, commit.commit_url)
    return str(commit.commit_url)


def _names(api: HfApi, repository: str, revision: str | None) -> set[str]:
    """Names of the files of a repository; none where it is new."""
    try:
        return {*api.list_repo_files(repository, revision=revision)}
    except RevisionNotFoundError:
        return set()


def _layout(folder: Path) -> FolderLayout:
    """Names of the files of the checkpoint that is read of a folder."""
    get = lambda name: placed(folder, name)
    return next(layout for layout in formats.layouts() if layout.weights_in(get, vocabulary=True) is not None)


def _read_first(folder: Path) -> set[str]:
    """Names of files that would be read rather than those of a checkpoint, or with them."""
    layouts = formats.layouts()
    return {name for layout in layouts[: layouts.index(_layout(folder)) + 1] for name in layout.names}


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, the preferred file of weights alone, and its page."""
    get = lambda name: placed(folder, name)
    layout = _layout(folder)
    names = [layout.settings, layout.vocabulary, CARD]
    found = [path for name in names if name is not None and (path := get(name)) is not None]
    weights = layout.weights_in(get)
    return [*found, *([] if weights is None else [weights])]


def _card(folder: Path, name: str) -> str:
    """A page about a model: what it is and how to load it."""
    checkpoint = formats.read(folder)
    config, genes = (
        checkpoint.config,
        sum(not checkpoint.vocabulary.is_special(token) for token in checkpoint.vocabulary),
    )
    encoder = config.encoder
    size = sum(tensor.numel() for tensor in checkpoint.weights.values())
    return (
        "---\nlibrary_name: scgpt-tools\ntags: [biology, single-cell]\n---\n\n"
        f"# {name.partition('/')[2]}\n\n"
        f"A single-cell model of the family `{config.family}`: {encoder.layers} layers, {config.dim} dimensions, "
        f"{size:,} parameters, {genes:,} genes.\n\n"
        "```python\n"
        "import scgpt_tools as sct\n\n"
        f'sct.tl.embed(adata, "{name}")\n'
        "```\n"
    )


def _refused(name: str, endpoint: str) -> str:
    return (
        f"Expected {endpoint} to let you write to {name!r}, found that it refuses. Check the name, and the token in `token=` "
        "or of `hf auth login`, which needs the right to write."
    )
