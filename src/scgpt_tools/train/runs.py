"""What a run is, kept in its folder as a small file, so that no run goes on as another one.

A run is described by labels, cells, genes, starting weights, loss terms and the settings that change what is learnt.
How long it goes on (``epochs``, ``max_steps``, ``patience``), where (devices, precision, strategy, workers) and what it
keeps are left open, so that a run can be made longer or moved to another machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._files import replace_file
from scgpt_tools.config import Dataclass, from_dict, to_dict
from scgpt_tools.models.config import ClassifierConfig
from scgpt_tools.models.formats.native import WEIGHTS
from scgpt_tools.models.formats.version_1 import in_todays_words
from scgpt_tools.objectives import OBJECTIVES
from scgpt_tools.tokens.tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from pathlib import Path

    from scgpt_tools.data.module import CellDataModule
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective

logger = logging.getLogger(__name__)

RUN = "run.json"
LAST, BEST = "last.ckpt", "best.ckpt"
HISTORY = "history.csv"

# Fields of FitConfig that may change when a run goes on.
OPEN = (
    *("epochs", "max_steps", "patience", "folder", "resume", "checkpoint_steps", "workers", "accelerator", "devices"),
    *("nodes", "strategy", "precision", "gradient_checkpointing", "deterministic", "monitor"),
)
_SHOWN = 8
# What corruptions were called by the version before: by their class.
_CORRUPTIONS = {
    "MaskValues": "mask_values",
    "GenerateValues": "generate_values",
    "HideModalities": "hide_modalities",
    "GenerateExpression": "generate_expression",
}
_ADVICE = "Begin in another folder, repeat the settings of that run, or leave out `resume` to replace it."


def describe_run(
    model: CellModel,
    data: CellDataModule,
    objectives: Sequence[Objective],
    config: Dataclass,
    *,
    monitor: str | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Description of a run as plain values."""
    classifier = model.config.heads.find("cell_type", ClassifierConfig)
    network = to_dict(model.config)
    # Named for themselves.
    network.pop("batch_names")
    tokenizer = network.pop("tokenizer")
    return {
        **_plain(more),
        "classes": None if classifier is None else _plain(classifier.names),
        "batches": _plain(model.config.batch_names),
        "settings": _settings(config) | {"monitor": monitor},
        "objectives": {term.name: _plain(term) for term in objectives},
        "hidden": None if data.corruption is None else _plain(data.corruption),
        **data.describe(),
        "tokenizer": tokenizer,
        "trained parameters": _trained(model),
        "network": network,
        "starting weights": _weights(model),
    }


def begin(folder: Path, description: Mapping[str, Any]) -> str:
    """Begin a run: what an earlier one left in the folder is removed, and the description is written down.

    ``folder``: of the run; must exist.
    """
    check_free(folder)
    # Weights first: none may lie beside the settings of another model, whenever the run is cut off.
    earlier = [name for name in (WEIGHTS, LAST, BEST, HISTORY) if (folder / name).is_file()]
    if earlier:
        logger.warning("A new run begins in %s; %s of an earlier one are removed.", folder, ", ".join(earlier))
        for name in earlier:
            (folder / name).unlink()
    name = uuid.uuid4().hex
    text = json.dumps({"scgpt_tools_run": name, "description": description}, indent=1) + "\n"
    replace_file(folder / RUN, lambda path: path.write_text(text, encoding="utf-8"))
    return name


def check_free(folder: Path) -> None:
    """Refuse a folder with checkpoints or a model that no run has written there, or not with a description."""
    there = [name for name in (LAST, BEST, WEIGHTS) if (folder / name).is_file()]
    if there and not (folder / RUN).is_file():
        raise FileExistsError(
            f"Expected a folder without checkpoints and models, or with the {RUN} of an earlier run, found "
            f"{' and '.join(there)} alone in {folder}. Choose another folder, or remove them."
        )
    if (folder / RUN).is_file():
        _read(folder)


def check_same(folder: Path, description: Mapping[str, Any], *, usual: Dataclass, began_here: bool) -> str:
    """Refuse to go on with a run of another description.

    ``usual``: settings that stand for those that came later than the run; ``began_here``: whether this very model was trained by that run, so that its weights are no longer those that it
    began with.
    """
    if not (folder / RUN).is_file():
        raise FileNotFoundError(
            f"Expected {RUN} beside the checkpoints in {folder}, which describes their run, found none. It is of "
            "an older version of this package or incomplete: begin in another folder."
        )
    record = _read(folder)
    before, now = _flat(_current(record["description"], usual)), _flat(json.loads(json.dumps(description)))
    differing = [
        name for name in dict.fromkeys([*now, *before]) if not _alike(name, before, now, began_here=began_here)
    ]
    if differing:
        name, *others = differing
        also = f" ({len(others)} more differ: {_some(others)})" if others else ""
        raise ValueError(
            f"Expected to resume the run in {folder} as it began, with {name} {_short(before.get(name))}, found "
            f"{_short(now.get(name))}{also}. {_ADVICE}"
        )
    return str(record["scgpt_tools_run"])


def begun_with(folder: Path) -> dict[str, Any]:
    """Settings that the run in a folder began with, as it wrote them down; empty if there is none to go on with."""
    if not ((folder / RUN).is_file() and (folder / LAST).is_file()):
        return {}
    settings = _read(folder)["description"].get("settings")
    return settings if isinstance(settings, dict) else {}


def _read(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and "asked" in record:  # as the version before called it
        record["description"] = record.pop("asked")
    if not (isinstance(record, dict) and isinstance(record.get("description"), dict) and "scgpt_tools_run" in record):
        raise ValueError(
            f"Expected {folder / RUN} to describe a run of this package, found another or a damaged file. Begin in another "
            "folder."
        )
    return record


def _current(description: Mapping[str, Any], usual: Dataclass) -> dict[str, Any]:
    """The description of a run of the version before in the words of this one."""
    description = dict(description)
    if isinstance(settings := description.get("settings"), dict):
        description["settings"] = _settings(usual) | _renamed(settings, seed="rng")
    if isinstance(terms := description.get("objectives"), dict):
        description["objectives"] = {
            name: _usual_term(name) | _renamed(term, shown="visible") for name, term in terms.items()
        }
    if isinstance(hidden := description.get("hidden"), dict):
        hidden = _renamed(hidden, shown="visible", silent="unexpressed")
        description["hidden"] = hidden | {"name": _CORRUPTIONS.get(hidden.get("name", ""), hidden.get("name"))}
    network = description.get("network")
    if isinstance(network, dict) and "values" in network.get("embedder", {}):
        description["network"] = in_todays_words(network, where=f"{RUN}.network")
    if isinstance(tokenizer := description.get("tokenizer"), dict):
        # How a screen was read stood beside the tokenizer, with the flag that the task names itself.
        if isinstance(reading := description.pop("genes of a cell", None), dict):
            tokenizer |= {name: reading[name] for name in ("unknown", "unmeasured", "length") if name in reading}
            tokenizer["genes"] = reading.get("include")
            tokenizer["overflow"] = "shared" if reading.get("sampling") == "original" else "sample"
        description["tokenizer"] = to_dict(from_dict(TokenizerConfig, tokenizer, where=f"{RUN}.tokenizer"))
    return description


def _settings(config: Dataclass) -> dict[str, Any]:
    """Settings that change what is learnt."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config) if field.name not in OPEN}


def _usual_term(name: str) -> dict[str, Any]:
    """What fields of a loss term are where a description lacks them, as they came later."""
    term = OBJECTIVES.get(name)
    if term is None or not is_dataclass(term):
        return {}
    return {field.name: _plain(field.default) for field in fields(term) if field.init and field.default is not MISSING}


def _renamed(values: Any, **names: str) -> Any:
    return {names.get(name, name): value for name, value in values.items()} if isinstance(values, dict) else values


def _alike(name: str, before: Mapping[str, Any], now: Mapping[str, Any], *, began_here: bool) -> bool:
    if name == "starting weights" and began_here:
        return True
    if name == "values" and None in (before.get(name), now.get(name)):
        # The same cells may be on disk, where looking at all of them takes long.
        return True
    # What a description lacks is None, as it is for a setting that came later.
    return bool(before.get(name) == now.get(name))


def _flat(description: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in description.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        return _some(value)
    # A checksum as a whole tells nobody anything.
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def _some(values: Sequence[Any]) -> str:
    more = f", ... ({len(values)} in all)" if len(values) > _SHOWN else ""
    return f"[{', '.join(map(repr, values[:_SHOWN]))}{more}]"


def _plain(value: Any) -> Any:
    """A value as JSON can hold it, the same for equal values."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        kind = {"name": getattr(value, "name", None) or type(value).__name__}
        return kind | {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.init}
    return type(value).__name__


def _trained(model: CellModel) -> dict[str, Any]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {"number": len(names), "names": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def _weights(model: CellModel) -> str:
    """SHA-256 of names and values of all tensors but adapters, whose draw depends on the device."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if ".lora_" not in name:
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
