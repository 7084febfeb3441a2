"""Our own format: ``config.json``, ``vocab.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scgpt_tools._files import replace_file
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models.config import ModelConfig
from scgpt_tools.models.folders import OURS, VOCABULARY
from scgpt_tools.models.formats.base import Checkpoint, Format, as_float, read_settings
from scgpt_tools.models.formats.rename import LoadReport
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

CONFIG, (WEIGHTS,) = OURS.config, OURS.weights
VERSION = 1


def recognise(folder: Path) -> bool:
    """Tell by the names of the files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Checkpoint:
    """Read a folder that :func:`write` wrote."""
    content = read_settings(folder / CONFIG)
    if content.get("format") != "scgpt-tools" or "version" not in content:
        raise ValueError(f"Expected {folder / CONFIG} to be written by scgpt-tools, found another file of that name.")
    if content["version"] > VERSION:
        raise ValueError(
            f"Expected format version {VERSION} or older in {folder}, found {content['version']}; update scgpt-tools."
        )
    vocabulary = Vocabulary.from_file(folder / VOCABULARY, **content.get("special_tokens", {}))
    try:
        weights = as_float(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"Expected {folder / WEIGHTS} to be a whole safetensors file: {error}.") from error
    report = LoadReport(renamed={key: (key,) for key in weights})
    return Checkpoint(from_dict(ModelConfig, content["model"]), vocabulary, weights, report)


def write(folder: Path, config: ModelConfig, vocabulary: Vocabulary, weights: Mapping[str, Tensor]) -> None:
    """Write configuration, vocabulary and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = {"pad": vocabulary.pad, "cls": vocabulary.cls}
    content = {"format": "scgpt-tools", "version": VERSION, "special_tokens": specials, "model": to_dict(config)}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    replace_file(folder / WEIGHTS, lambda path: save_file(tensors, path))
    replace_file(folder / VOCABULARY, vocabulary.save)
    replace_file(folder / CONFIG, lambda path: path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))


NATIVE = Format(recognise, read, write, f"{CONFIG}, {VOCABULARY} and {WEIGHTS}")
