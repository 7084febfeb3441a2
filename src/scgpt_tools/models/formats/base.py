"""What a format of checkpoints is, what it reads and what reading gives, and helpers that all formats share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from scgpt_tools._files import checksum_of, placed, read_json
from scgpt_tools._warnings import warn_user
from scgpt_tools.config import to_dict
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.folders import FolderLayout
    from scgpt_tools.models.formats.rename import Rule
    from scgpt_tools.models.formats.tensors import Contents
    from scgpt_tools.models.transfer import Transfer


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from files: everything that :class:`~scgpt_tools.models.CellModel` is made of."""

    config: ModelConfig
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    """Tensors by our names, often mapped from the file and not yet in memory."""
    transfer: Transfer
    """What became of the tensors of the file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Content of the file of settings, where it is not ours."""


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is, as one format looks at it, and what the caller adds to its files."""

    folder: Path
    layout: FolderLayout
    file: Path | None = None
    """The file of weights, where the caller named one."""
    given_vocabulary: Vocabulary | Path | None = None
    given_settings: Mapping[str, Any] | Path | None = None
    opened: dict[Path, Contents] = field(default_factory=dict)
    """Files of weights that a format has looked into, so that no other has to read them again."""

    @cached_property
    def weights(self) -> Path | None:
        """The file of weights; ``None`` if the folder lacks files that belong to a checkpoint."""
        return self.file or self.layout.weights_in(partial(placed, self.folder))

    @property
    def contents(self) -> Contents:
        """What that file holds."""
        if self._weights not in self.opened:
            self.opened[self._weights] = read_contents(self._weights)
        return self.opened[self._weights]

    @property
    def _weights(self) -> Path:
        return self.weights or found(self.folder, self.layout.weights[0])

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        """Settings that the caller named, or those beside the weights; ``None`` if there are none."""
        if self.given_settings is not None and not isinstance(self.given_settings, Mapping):
            return read_settings(self.given_settings)
        if self.given_settings is not None:
            return dict(self.given_settings)
        path = None if self.layout.settings is None else placed(self.folder, self.layout.settings)
        return None if path is None else read_settings(path)

    def settings_or(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """Settings, or the usual ones with a warning, since what tensors do not tell is then taken on trust."""
        if self.settings is not None:
            return self.settings
        said = ", ".join(f"{name} = {value!r}" for name, value in usual.items())
        warn_user(
            f"Expected {self.layout.settings or 'settings'} beside {str(self._weights)!r}, found none: {said} is taken, which "
            f"tensors do not tell. If the model was made otherwise its results are wrong; pass settings={dict(usual)!r} "
            "with its own values."
        )
        return dict(usual)

    def vocabulary(self, read: Callable[[Path], Vocabulary]) -> Vocabulary:
        """The vocabulary that the caller named, or the one beside the weights."""
        if isinstance(self.given_vocabulary, Vocabulary):
            return self.given_vocabulary
        return read(self.vocabulary_file)

    @property
    def vocabulary_file(self) -> Path:
        """The file of the vocabulary."""
        if self.given_vocabulary is not None and not isinstance(self.given_vocabulary, Vocabulary):
            return self.given_vocabulary
        path = placed(self.folder, self.layout.vocabulary)
        if path is None:
            raise FileNotFoundError(
                f"Expected {self.folder / self.layout.vocabulary}, which says which gene each row of the model belongs to; "
                "found none. Another vocabulary would give plausible but meaningless embeddings; get the file from where "
                "the weights came from, or pass it as `vocabulary`."
            )
        return path

    def check_content(self, expected: Mapping[str, str]) -> None:
        """Refuse files that are not those that were saved together, by their checksums; see :func:`check_content`."""
        paths = [self._weights] + ([self.vocabulary_file] if self.given_vocabulary is None else [])
        for path in paths:
            check_content(path, expected, self.layout.settings or "")


@dataclass(frozen=True, kw_only=True)
class Format:
    """A dialect of checkpoints."""

    layout: FolderLayout
    """Names of its files."""
    recognise: Callable[[Source], float]
    """How much of a source this format has words for, from 0 to 1; of several formats, the one with most reads it."""
    example: str
    """What it is recognised by, for messages."""
    read: Callable[[Source], Checkpoint]
    read_vocabulary: Callable[[Path], Vocabulary] = Vocabulary.from_file
    write: Callable[..., None] | None = None
    """Write a folder; ``None`` for a format that is only read."""
    ours: Callable[[Path], bool] = lambda _: False
    """Whether this package wrote the folder, so that saving there may replace what it holds."""


def share_known(source: Source, rules: Iterable[Rule]) -> float:
    """Share of the tensors of a source that rules have a name for, or drop by name."""
    names, rules = list(source.contents.weights), tuple(rules)
    return sum(any(rule.read(name) is not None for rule in rules) for name in names) / max(len(names), 1)


def found(folder: Path, name: str) -> Path:
    """A file of a checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = placed(folder, name)
    if path is None:
        raise FileNotFoundError(f"Expected {name} in the checkpoint {str(folder)!r}, found none.")
    return path


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; a setting of many megabytes is none.

    Raises
    ------
    ValueError
        If it holds anything else.
    """
    return read_json(path, megabytes=16)


def save_tensors(write: Callable[[], object], path: Path) -> None:
    """Write a file of tensors by a function whose library has errors of its own for a disk that is full."""
    try:
        write()
    except OSError:
        raise
    except (RuntimeError, SafetensorError) as error:
        found = path.stat().st_size if path.exists() else 0
        raise OSError(
            f"Could not write {path.name}, after {found:,} bytes. The disk may be full, or files of that size not be "
            "allowed; what was there before is unchanged."
        ) from error


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Checksums of files that belong together, by their names."""
    return {name: checksum_of(folder / name) for name in names}


def check_content(path: Path, expected: Mapping[str, str], settings: str) -> None:
    """Refuse a file whose content is not the one that was saved with the others.

    Reading 200 MB for their SHA-256 takes about 0.1 s on a processor with instructions for it, 0.5 s on others.

    Parameters
    ----------
    path
        A file of weights, or a vocabulary.
    expected
        Checksums by name; empty where the folder was written without.
    settings
        Name of the file that holds the checksums, for the message.
    """
    if path.name in expected and checksum_of(path) != expected[path.name]:
        raise ValueError(
            f"Expected {str(path)!r} to be the file that was saved together with {settings}, found another: its "
            "checksum differs. It was exchanged or damaged, and the model would not be the one that was saved. Copy the "
            f"whole folder again; if the change is meant, remove `checksums` from {settings}."
        )


def check_parts(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Refuse a description of more parts, or larger ones, than the tensors of a file can fill, before any is built."""
    said = to_dict(config)
    del said["tokenizer"]
    total = sum(tensor.numel() for tensor in weights.values())
    for place, number in _whole_numbers(said):
        counts = place.endswith(_COUNTS)
        most, what = (len(weights), "tensors") if counts else (total, "numbers")
        if number > most:
            raise ValueError(
                f"Expected `{place}` to be at most {most:,}, since the weights have so many {what}, found {number}."
            )


# Settings that say how many parts there are; other whole numbers say how large one is.
_COUNTS = ("layers", "domains", "experts")


def _whole_numbers(said: Any, place: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(said, dict):
        for name, value in said.items():
            yield from _whole_numbers(value, f"{place}.{name}" if place else name)
    elif isinstance(said, int) and not isinstance(said, bool):
        yield place, said


def own_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Copy tensors from a mapped file to memory of their own, so that nothing that happens to the file changes them.

    Parameters
    ----------
    weights
        Tensors by name.
    source
        What they are the weights of, for the message.

    Raises
    ------
    ValueError
        If one holds NaN or infinite numbers.
    """
    own = {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in weights.items()}
    check_weights(own, source)
    return own


def check_weights(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinite numbers, or nothing yet, by name; see :func:`own_weights`."""
    if absent := [key for key, tensor in weights.items() if tensor.is_meta]:
        raise ValueError(
            f"Expected the weights of {source} in memory, found {len(absent)} tensors on the device 'meta', which have no "
            "values. Load the model from its files."
        )
    bad = [key for key, tensor in weights.items() if not is_finite(tensor)]
    if bad:
        shown = ", ".join(bad[:8]) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"Expected the weights of {source} to be finite, found NaN or infinite numbers in {len(bad)} of "
            f"{len(weights)} tensors: {shown}. Every result would be NaN or meaningless; the training that made them "
            "failed, or the file is damaged."
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; whole numbers always are."""
    if not tensor.is_floating_point():
        return True
    # The sum is not finite if a number is not, and is some fifty times faster than looking at each; it may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def as_float(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Widen half-precision tensors to float32; leave the others as they are."""
    return {
        key: tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float32 else tensor
        for key, tensor in weights.items()
    }
