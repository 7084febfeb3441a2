"""Checkpoints of every dialect: recognise, read, write."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from scgpt_tools._files import as_path, placed, read_steadily, settle
from scgpt_tools._lookup import lookup
from scgpt_tools._plugins import with_plugins
from scgpt_tools._warnings import warn_user
from scgpt_tools.models.folders import incomplete
from scgpt_tools.models.formats.base import check_weights
from scgpt_tools.models.formats.deepsc import DEEPSC
from scgpt_tools.models.formats.format import Checkpoint, Format, Source
from scgpt_tools.models.formats.native import NATIVE
from scgpt_tools.models.formats.scgenept import SCGENEPT
from scgpt_tools.models.formats.scgpt import SCGPT
from scgpt_tools.models.formats.scmodelforge import SCMODELFORGE
from scgpt_tools.models.formats.tensors import some_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.folders import FolderLayout
    from scgpt_tools.models.formats.tensors import Contents
    from scgpt_tools.vocabulary import Vocabulary

__all__ = ["FORMATS", "GROUP", "Checkpoint", "Format", "check_target", "layouts", "read", "read_vocabulary", "write"]

GROUP = "scgpt_tools.formats"
"""Entry points of other packages, each of which gives a :class:`Format` under its name."""

FORMATS: dict[str, Format] = {
    "native": NATIVE,
    "scgpt": SCGPT,
    "scgenept": SCGENEPT,
    "deepsc": DEEPSC,
    "scmodelforge": SCMODELFORGE,
}


def known() -> dict[str, Format]:
    """The formats by name, those of other packages included."""
    return with_plugins(FORMATS, GROUP, Format)


def layouts() -> tuple[FolderLayout, ...]:
    """Names of the files of every format, the one to prefer first."""
    return tuple(kind.layout for kind in known().values())


def read(
    place: str | PathLike[str],
    *,
    vocabulary: Vocabulary | Path | None = None,
    settings: Mapping[str, Any] | Path | None = None,
) -> Checkpoint:
    """Read a checkpoint of any known format, which is recognised by its files and the names of its tensors.

    ``vocabulary``: genes and their ids, or a file that holds them; ``None`` for the one beside the weights;
    ``settings``: what the file of settings would hold, or another file; ``None`` for the one beside the weights.
    """
    place = as_path("place", place)
    if not place.exists():
        raise FileNotFoundError(
            f"Expected a folder with a checkpoint or a file of weights at {str(place)!r}, found none."
        )
    folder, file = (place, None) if place.is_dir() else (place.parent, place)
    names = [name for layout in layouts() for name in layout.names]
    content = partial(_read, folder, file, vocabulary, settings)
    return read_steadily(folder, tuple(dict.fromkeys([*names, *([file.name] if file else [])])), content)


def _read(
    folder: Path,
    file: Path | None,
    vocabulary: Vocabulary | Path | None,
    settings: Mapping[str, Any] | Path | None,
) -> Checkpoint:
    formats = known().values()
    opened: dict[Path, Contents] = {}
    sources = [(kind, Source(folder, kind.layout, file, vocabulary, settings, opened)) for kind in formats]
    sources = [(kind, source) for kind, source in sources if source.weights is not None]
    if not sources:
        names = (path.name for path in folder.iterdir())
        raise FileNotFoundError(incomplete(f"the folder {str(folder)!r}", layouts(), names))
    best, share = sources[0], 0.0
    for kind, source in sources:
        if (known_to := kind.recognise(source)) > share:
            best, share = (kind, source), known_to
        if share == 1:
            break
    kind, source = best
    if share < _LEAST_KNOWN:
        _refuse_without_settings(folder, opened)
        looked_for = "; ".join(f"{kind.example} ({kind.layout.owner})" for kind in formats)
        tensors = source.contents.weights
        raise ValueError(
            f"Expected {str(source.weights)!r} to be of a known format: {looked_for}. Found {len(tensors)} tensors: "
            f"{some_names(tensors) or 'none'}. A package can add a format by an entry point of the group {GROUP!r}."
        )
    return kind.read(source)


def _refuse_without_settings(folder: Path, opened: dict[Path, Contents]) -> None:
    """Name the file that is missing where the tensors are of a format whose settings are not there."""
    for kind in known().values():
        settings = kind.layout.settings
        if settings is None or placed(folder, settings) is not None:
            continue
        for file in opened:
            if kind.recognise(Source(folder, kind.layout, file, opened=opened)) >= _LEAST_KNOWN:
                raise FileNotFoundError(
                    f"Expected {settings} beside {str(file)!r}, whose tensors are of {kind.layout.owner}, found none. Get it "
                    "from where the weights came from, or pass what it would hold as `settings`."
                )


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary of a checkpoint, by the format whose files of that name are."""
    kinds = (kind for kind in known().values() if kind.layout.vocabulary == path.name)
    return next(kinds, NATIVE).read_vocabulary(path)


def write(
    folder: str | PathLike[str],
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, Tensor],
    format: str = "native",
    **options: Any,
) -> Path:
    """Write a checkpoint folder; returns it.

    All files take their place in one step; one process that is killed, or several that save to one folder at once,
    leave the files of one model.
    """
    place = check_target(folder, format)
    try:
        check_weights(weights, f"the model to write to {str(place)!r}")
    except ValueError as error:
        warn_user(f"{error} Nothing will load what is written.")
    writer = known()[format].write
    if writer is None:
        raise ValueError(f"Expected a format that can be written, found {format!r}, which is only read.")
    writer(place, config, vocabulary, weights, **options)
    return place


def check_target(folder: str | PathLike[str], format: str = "native") -> Path:
    """Refuse a folder that :func:`write` would refuse, before any work begins; returns it."""
    folder, kind = as_path("folder", folder), lookup(known(), format, "checkpoint format")
    if folder.is_dir():
        settle(folder)
        before = True
        for rival in known().values():
            if rival is kind:
                before = False
            # Of formats that call their settings alike, the content of these decides.
            elif rival.layout.settings != kind.layout.settings and rival.layout.weights_in(partial(placed, folder)):
                why = "which would be read first" if before else "whose vocabulary would be replaced"
                raise ValueError(
                    f"Expected a folder for {kind.layout} alone, found {rival.layout} in {str(folder)!r}, {why}. Choose "
                    "another folder, or remove those."
                )
        if not kind.ours(folder):
            there = ", ".join(name for name in kind.layout.names if (folder / name).exists())
            raise FileExistsError(
                f"Expected a folder for {kind.layout}, found {there} of something else in {str(folder)!r}, which saving "
                "would replace. Choose another folder, or remove those."
            )
    return folder


# A format that has words for fewer of the tensors is not theirs.
_LEAST_KNOWN = 0.5
