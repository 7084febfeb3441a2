"""Our own format: ``config.json``, ``vocab.json`` and ``model.safetensors``.

``config.json`` holds the checksums of the two others, so that files of different models never load together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scgpt_tools._files import placed, written_together
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import ModelConfig
from scgpt_tools.models.folders import OURS, VOCABULARY
from scgpt_tools.models.formats.base import (
    Checkpoint,
    Format,
    as_float,
    check_content,
    checksums,
    found,
    read_settings,
    save_tensors,
)
from scgpt_tools.models.formats.version_1 import in_todays_words
from scgpt_tools.models.transfer import Transfer
from scgpt_tools.vocabulary import CLS, PAD, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

CONFIG, (WEIGHTS,) = OURS.config, OURS.weights
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


def recognise(folder: Path) -> bool:
    """Tell by the names of the files."""
    return placed(folder, CONFIG) is not None and placed(folder, WEIGHTS) is not None


def ours(folder: Path) -> bool:
    """Whether none of the files that :func:`write` replaces is somebody else's."""
    config = placed(folder, CONFIG)
    if config is None:
        return placed(folder, WEIGHTS) is None and placed(folder, VOCABULARY) is None
    try:
        return read_settings(config).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def read(folder: Path) -> Checkpoint:
    """Read a folder that :func:`write` wrote."""
    config, vocabulary, weights = (found(folder, name) for name in (CONFIG, VOCABULARY, WEIGHTS))
    content = _read_content(config)
    for path in (vocabulary, weights):
        check_content(path, content.checksums, CONFIG)
    tokens = Vocabulary.from_file(vocabulary, pad=content.special_tokens.pad, cls=content.special_tokens.cls)
    try:
        tensors = as_float(load_file(weights))
    except (SafetensorError, ValueError, RuntimeError):
        raise ValueError(
            f"Expected {str(weights)!r} to be a whole safetensors file, found a damaged one. Copy it again."
        ) from None
    return Checkpoint(content.model, tokens, tensors, Transfer(used={key: (key,) for key in tensors}))


def write(folder: Path, config: ModelConfig, vocabulary: Vocabulary, weights: Mapping[str, Tensor]) -> None:
    """Write configuration, vocabulary and weights."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    with written_together(folder) as aside:
        save_tensors(lambda: save_file(tensors, aside / WEIGHTS), aside / WEIGHTS)
        vocabulary.save(aside / VOCABULARY)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "special_tokens": {"pad": vocabulary.pad, "cls": vocabulary.cls},
            "model": to_dict(config),
            "checksums": checksums(aside, (VOCABULARY, WEIGHTS)),
        }
        (aside / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_content(path: Path) -> _Content:
    content: dict[str, Any] = read_settings(path)
    if content.get("format") != FORMAT or "version" not in content:
        raise ValueError(f"Expected {str(path)!r} to be written by scgpt-tools, found another file of that name.")
    version = content["version"]
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"Expected format version {VERSION} or older in {str(path)!r}, found {version}; update scgpt-tools."
        )
    if version == 1 and isinstance(content.get("model"), dict):
        content["model"] = in_todays_words(content["model"], where=f"{path.name}.model")
    return from_dict(_Content, content, where=path.name)


NATIVE = Format(recognise, read, write, ours, (CONFIG, VOCABULARY, WEIGHTS), f"{CONFIG}, {VOCABULARY} and {WEIGHTS}")
