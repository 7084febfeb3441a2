"""Our own format: ``config.json``, ``vocab.json`` and ``model.safetensors``.

``config.json`` holds the checksums of the two others, so that files of different models never load together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from scgpt_tools._files import placed, written_together
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import ModelConfig
from scgpt_tools.models.families import load_families
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.base import (
    as_float,
    checksums,
    read_settings,
    save_tensors,
)
from scgpt_tools.models.formats.format import Checkpoint, Format, Source
from scgpt_tools.models.formats.version_1 import in_todays_words
from scgpt_tools.models.transfer import Transfer
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS
from scgpt_tools.vocabulary import CLS, PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

CONFIG, VOCABULARY, WEIGHTS = "config.json", "vocab.json", "model.safetensors"
LAYOUT = FolderLayout("this package's format", CONFIG, (WEIGHTS,), VOCABULARY)
_PARTS = ("embedder.", "encoder.", "context.", "heads.")
FORMAT, VERSION = "scgpt-tools", 2


@dataclass(frozen=True, kw_only=True)
class _SpecialTokens:
    """Names of the padding and of the cell token."""

    pad: str = PAD
    cls: str = CLS


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What ``config.json`` holds."""

    format: str
    version: int
    special_tokens: _SpecialTokens = field(default_factory=_SpecialTokens)
    model: ModelConfig
    checksums: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Further names of genes, each with the token that it stands for."""


def recognise(source: Source) -> float:
    """Tell by what the settings say, and else by the names of the tensors."""
    if source.settings is not None and source.settings.get("format") == FORMAT:
        return 1.0
    names = list(source.contents.weights)
    return sum(name.startswith(_PARTS) for name in names) / max(len(names), 1)


def ours(folder: Path) -> bool:
    """Whether none of the files that :func:`write` replaces is somebody else's."""
    config = placed(folder, CONFIG)
    if config is None:
        return placed(folder, WEIGHTS) is None and placed(folder, VOCABULARY) is None
    try:
        return read_settings(config).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def read(source: Source) -> Checkpoint:
    """Read what :func:`write` wrote."""
    content = _read_content(source)
    source.check_content(content.checksums)
    named = partial(Vocabulary.from_file, pad=content.special_tokens.pad, cls=content.special_tokens.cls)
    vocabulary = source.vocabulary(named)
    if content.aliases and source.given_vocabulary is None:
        vocabulary = Vocabulary(vocabulary.tokens, vocabulary.pad, vocabulary.cls, aliases=content.aliases)
    tensors, config = as_float(source.contents.weights), content.model
    # A model gets the cells of its training when that is over; states of the run beside it have none.
    if REFERENCE_CELLS in config.heads and not any(key.startswith(f"heads.{REFERENCE_CELLS}.") for key in tensors):
        config = replace(config, heads=config.heads.replace(**{REFERENCE_CELLS: None}))
    return Checkpoint(config, vocabulary, tensors, Transfer(used={key: (key,) for key in tensors}))


def write(folder: Path, config: ModelConfig, vocabulary: Vocabulary, weights: Mapping[str, Tensor]) -> None:
    """Write configuration, vocabulary and weights."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    with written_together(folder) as aside:
        save_tensors(lambda: save_file(tensors, aside / WEIGHTS), aside / WEIGHTS)
        _write_about(aside, config, vocabulary, (VOCABULARY, WEIGHTS))


def describe_checkpoints(folder: Path, config: ModelConfig, vocabulary: Vocabulary) -> None:
    """Write what checkpoints of a training are weights of beside them, so that each of them can be loaded.

    Files of somebody else stay as they are.
    """
    if ours(folder):
        with written_together(folder) as aside:
            _write_about(aside, config, vocabulary, (VOCABULARY,))


def _write_about(folder: Path, config: ModelConfig, vocabulary: Vocabulary, names: tuple[str, ...]) -> None:
    """Write vocabulary and configuration, with the checksums of some files."""
    vocabulary.save(folder / VOCABULARY)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "special_tokens": {"pad": vocabulary.pad, "cls": vocabulary.cls},
        "model": to_dict(config),
        **({"aliases": dict(vocabulary.aliases)} if vocabulary.aliases else {}),
        "checksums": checksums(folder, names),
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_content(source: Source) -> _Content:
    where = str(source.given_settings if isinstance(source.given_settings, Path) else source.folder / CONFIG)
    if source.settings is None:
        raise FileNotFoundError(
            f"Expected {where!r}, which says what the tensors are parts of, found none. Copy it from the folder that the "
            "model was saved to, or pass its path as `settings`."
        )
    content = dict(source.settings)
    if content.get("format") != FORMAT or "version" not in content:
        raise ValueError(f"Expected {where!r} to be written by scgpt-tools, found another file of that name.")
    version = content["version"]
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"Expected format version {VERSION} or older in {where!r}, found {version}; update scgpt-tools."
        )
    if version == 1 and isinstance(content.get("model"), dict):
        content["model"] = in_todays_words(content["model"], where=f"{CONFIG}.model")
    load_families()
    return from_dict(_Content, content, where=CONFIG)


NATIVE = Format(
    layout=LAYOUT,
    recognise=recognise,
    example=f'{CONFIG} with "format": "{FORMAT}", and tensors such as embedder.genes.table.weight',
    read=read,
    write=write,
    ours=ours,
)
