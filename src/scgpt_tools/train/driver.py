"""The way through every fine-tuning: checks, model, table, parts, run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scgpt_tools._optional import optional
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.epochs import this_process
from scgpt_tools.train.fit import check_watchers, first_device, fit
from scgpt_tools.train.freezing import Freeze, check_freezing, frozen, release_of
from scgpt_tools.train.lora import adapters
from scgpt_tools.train.once import by_first_process
from scgpt_tools.train.pacing import paced
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.train.starting import (
    authors_of,
    check_model_and_cells,
    fit_fields,
    fit_settings,
    low_rank,
    of_family,
    open_model,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools._types import Training
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.train.fit import FitConfig
    from scgpt_tools.train.lora import LoraConfig
    from scgpt_tools.train.tasks.base import Opened, Task

logger = logging.getLogger(__name__)


def learn(
    task: Task[Any],
    adata: AnnData | MuData,
    model: CellModel | str | PathLike[str],
    *,
    freeze: Freeze,
    unfreeze_every: int | None,
    unfreeze_after: int | None,
    lora: LoraConfig | int | None,
    recipe: Training,
    config: FitConfig | None,
    changes: Mapping[str, Any],
    callbacks: Sequence[Any],
    loggers: Sequence[Any],
) -> CellModel:
    """A new model that has learnt a task; :func:`scgpt_tools.train.finetune` describes the arguments."""
    optional("lightning", extra="train")
    # It defines a class of Lightning, so it can be imported only where Lightning is.
    from scgpt_tools.train.callbacks import History

    check_model_and_cells(model, adata)
    check_watchers(callbacks, loggers)
    adapted = low_rank(lora)
    check_freezing(freeze, adapted, unfreeze_every, unfreeze_after)
    settings = fit_settings(task.fit, config, changes, function="`finetune`")
    if (late := release_of(unfreeze_every, unfreeze_after)) is not None and settings.strategy == "fsdp":
        raise ValueError(f"Expected `{late}` to be None with strategy='fsdp', which settles what is trained once.")
    loaded = open_model(model, settings)
    usual = of_family(loaded, task.name)
    defaults = {**task.fit, **fit_fields(usual)}
    if recipe == "authors":
        defaults |= authors_of(loaded, task)
    if "monitor" in changes:
        defaults.pop("mode", None)  # which is that of the task's own metric
    settings = fit_settings(defaults, config, changes, function="`finetune`")
    opened = task.open(adata, loaded, seed=settings.seed)
    if config is None:
        if task.until_converged and recipe != "authors":
            n_train, n_validation = len(opened.train), len(opened.validation)
            said = {*changes, *fit_fields(usual)}
            settings = paced(settings, said, width=loaded.dim, n_train=n_train, n_validation=n_validation)
        own = (defaults.keys() & {"monitor", "mode", "patience"}) - changes.keys()
        settings = _watching(settings, task, opened, own)
    description = {
        "task": task.name,
        "base": settings.folder and loaded.checksum,
        "freeze": freeze,
        "unfreeze_every": unfreeze_every,
        **({} if unfreeze_after is None else {"unfreeze_after": unfreeze_after}),
        "lora": adapted,
        **task.describe(opened),
    }
    with own_random_numbers(settings.seed):
        tuned = task.adapt(loaded, opened)
        data = task.batches(tuned, opened)
        logger.info("Fine-tuning on %d cells, validating on %d.", len(data.train), len(data.validation))
        history = History(None if settings.folder is None else settings.folder / "history.csv")
        watchers = [history, *_unfreezing(tuned, unfreeze_every, unfreeze_after), *callbacks]
        # What is released later has to be in the optimiser, and is frozen by a callback.
        with frozen(tuned, "nothing" if late else freeze), adapters(tuned, adapted):
            fit(tuned, data, opened.terms, settings, callbacks=watchers, loggers=loggers, description=description)
    tuned.config = replace(tuned.config, **task.remembers(opened))
    tuned.name, tuned.history = f"{loaded.name} ({task.name})", history.table
    # What had to be cut into pieces may not fit a device as a whole.
    place = loaded.device if settings.strategy == "fsdp" else first_device(settings)
    try:
        with own_random_numbers(settings.seed):
            found = by_first_process(lambda: task.look(tuned.to(place), data, opened, seed=settings.seed))
        task.finish(tuned, found)
    except Warning:  # where who calls has them raised
        raise
    except Exception as error:  # noqa: BLE001 - a trained model is worth more than what it is given beside its weights
        if this_process()[0] == 0:
            warn_user(
                f"The model is trained, but looking at its cells once more ended with {type(error).__name__}: {error} It is "
                "returned without what that gives, such as a comparison with plain methods."
            )
    return tuned.to(loaded.device)


def _watching(settings: FitConfig, task: Task[Any], opened: Opened, own: set[str]) -> FitConfig:
    """Settings whose own defaults of the task watch what there is."""
    if "monitor" in own:
        names = {name for term in opened.terms if term.weight > 0 for name in (term.name, *term.reports)}
        if not opened.validation.size or settings.monitor not in {f"validation_{name}" for name in names}:
            settings = replace(settings, monitor=None, mode="min" if "mode" in own else settings.mode)
    if "patience" in own and settings.monitor is None and not opened.validation.size:
        if isinstance(task.validation, str):
            warn_user(
                f"Expected {task.validates_on} of the part 'val' in obs[{task.validation!r}] to stop early and to choose the "
                f"best epoch by, found none: all {settings.epochs} epochs are trained and the last weights are kept. Hold "
                "some out to validate on, or pass patience=None."
            )
        settings = replace(settings, patience=None)
    return settings


def _unfreezing(model: CellModel, every: int | None, after: int | None) -> list[Any]:
    if every is None and after is None:
        return []
    # They define classes of Lightning, so they can be imported only where Lightning is.
    from scgpt_tools.train.unfreezing import GradualUnfreezing, LateUnfreezing

    return [GradualUnfreezing(model, every)] if every is not None else [LateUnfreezing(model, after or 0)]
