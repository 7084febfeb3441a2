"""What a format of checkpoints is, what it reads, and what reading gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from scgpt_tools._files import placed
from scgpt_tools._warnings import warn_user
from scgpt_tools.models.formats.base import check_content, found, read_settings
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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
        needed = self.given_settings is None
        return self.file or self.layout.weights_in(partial(placed, self.folder), settings=needed)

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
