"""PerturbLab's arguments of training as settings of the one loop, and its history as lists."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from scgpt_tools._files import as_path
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_integer
from scgpt_tools.data.epochs import this_process
from scgpt_tools.train.fit import fit
from scgpt_tools.train.starting import fit_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from scgpt_tools.data.module import CellDataModule
    from scgpt_tools.objectives import Objective
    from scgpt_tools.train.fit import FitConfig, Precision
    from scgpt_tools.wrappers.base import Wrapper


class History(TypedDict):
    """What training returns: one number an epoch in each list."""

    train_loss: list[float]
    valid_loss: list[float]
    """Empty without validation."""
    epoch_times: list[float]
    """Seconds of training."""


def run(
    wrapper: Wrapper,
    data: CellDataModule,
    objectives: Sequence[Objective],
    options: Mapping[str, Any],
    *,
    use_amp: bool,
    folder: str | PathLike[str] | None,
    log_interval: int,
    save_interval: int | None,
) -> History:
    """Train the network of a wrapper in place.

    ``folder``: where to keep checkpoints; ``None`` keeps nothing.
    """
    optional("lightning", extra="train")
    # These define classes of Lightning, so they can be imported only where Lightning is.
    from scgpt_tools.train.callbacks import History as Watcher
    from scgpt_tools.wrappers.watching import Folders  # another such class

    check_integer("log_interval", log_interval)
    if save_interval is not None:
        check_integer("save_interval", save_interval)
        if folder is None:
            raise ValueError(f"Expected `save_dir` for save_interval={save_interval}, found None.")
    device, root = wrapper.device, None if folder is None else as_path("save_dir", folder)
    config = _settings(options, device, use_amp=use_amp)
    if config.folder is None and root is not None:
        config = replace(config, folder=root / "run")
    watcher = Watcher(None if config.folder is None else config.folder / "history.csv")
    folders = Folders(wrapper.save, root, log_interval=log_interval, save_interval=save_interval)
    try:
        known = {"class names": wrapper.config.known_classes, "batch names": wrapper.config.known_batches}
        fit(wrapper.cell_model, data, objectives, config, callbacks=[watcher, folders], description=known)
    finally:
        # Lightning may have moved it, and an interrupted run leaves a usable model too.
        wrapper.model.to(device)
        wrapper.eval()
    wrapper.cell_model.history = watcher.table
    if root is not None and this_process()[0] == 0:
        wrapper.save(root / "best")
    return _as_lists(watcher.rows)


def _settings(options: Mapping[str, Any], device: torch.device, *, use_amp: bool) -> FitConfig:
    precision: Precision = "fp32"
    if use_amp and device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    accelerator = "gpu" if device.type == "cuda" else device.type
    # One number names how many devices, a list which; the first one needs no list.
    where = f"{device.index}," if device.index else 1
    defaults = {"precision": precision, "accelerator": accelerator, "devices": where}
    return fit_settings(defaults, None, options, function="`train_model`")


def _as_lists(rows: Sequence[Mapping[str, float]]) -> History:
    def column(name: str) -> list[float]:
        return [row[name] for row in rows if name in row]

    return {
        "train_loss": column("train_loss"),
        "valid_loss": column("validation_loss"),
        "epoch_times": column("seconds"),
    }
