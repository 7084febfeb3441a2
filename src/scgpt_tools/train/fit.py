"""The only place that owns a training loop, and the only one that builds Lightning's Trainer."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args
from warnings import catch_warnings, filterwarnings
from weakref import WeakKeyDictionary

import numpy as np
import torch

from scgpt_tools._docs import described_fields
from scgpt_tools._files import as_folder
from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional
from scgpt_tools._threads import patient_products, training_threads
from scgpt_tools._validate import as_seed, check_choice, check_integer, check_number, check_text, check_type
from scgpt_tools.data.processes import launched
from scgpt_tools.models.formats.native import describe_checkpoints
from scgpt_tools.models.precision import Precision, resolve_precision
from scgpt_tools.nn.heads import AdversaryHead
from scgpt_tools.objectives import BatchAdversary, check_objectives
from scgpt_tools.train.checkpoints import Fields, read_state, run_folder, whole_files
from scgpt_tools.train.diagnosis import LossNotFiniteError, not_finite
from scgpt_tools.train.known_cells import forget_cells
from scgpt_tools.train.loggers import LoggerConfig, built
from scgpt_tools.train.optim import (
    Decayed,  # noqa: F401 - a field of the base names it
    OptimizerConfig,
    Schedule,  # noqa: F401 - a field of the base names it
)
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.train.runs import (
    BEST,
    HISTORY,
    LAST,
    RUN,
    begin,
    check_free,
    check_same,
    describe_run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellDataModule, Part
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective

logger = logging.getLogger(__name__)

# Names of Lightning's for other ways to cut weights into pieces; what they write is not one file of whole tensors.
_OTHER_SHARDING = ("fsdp", "deepspeed", "model_parallel")

# Warnings that do not concern loaders and folders like ours.
_ADVICE = (
    r"The '\w+_dataloader' does not have many workers",
    r"Checkpoint directory .* exists and is not empty",
    r".*GPU available but not used",
    r"You defined a `validation_step` but have no `val_dataloader`",
    # The run may go on with other checkpoints or patience than before.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # A run cut short by its number of steps has no metric of validation; names of metrics are checked before.
    r"`ModelCheckpoint\(monitor=.*could not find the monitored key",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Nothing changes outputs in place; and what is to come in the place of all_gather is not in the torch of today.
    r"FSDP2-wrapped module \(\w+\) returned a view tensor",
    r"`?torch\.distributed\.nn\.functional\.all_gather`? is deprecated",
)

# How Lightning calls our number formats: the weights stay in float32.
_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
# What a checkpoint has to hold.
_OF_BEST: Fields = {"state_dict": dict, "run": (str, type(None))}
_OF_LAST: Fields = {
    **_OF_BEST,
    "epoch": int,
    "sharded": bool,
    "epoch_means": dict,
    "optimizer_states": list,
    "loops": dict,
}
# Models by the folder of the run that changed them last: with it they may go on, though their weights are others by now.
_TRAINED_IN: WeakKeyDictionary[CellModel, Path] = WeakKeyDictionary()

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@described_fields
@dataclass(frozen=True, kw_only=True)
class FitConfig(OptimizerConfig):
    """How long, how fast and on what to train.

    The user guide has a table of what each task of :func:`~scgpt_tools.train.finetune` takes instead.
    """

    epochs: int = 10
    """Visits of every training cell."""
    max_steps: int | None = None
    """Optimiser steps after which to stop before the epochs are over."""
    batch_size: int = 32
    """Cells of a minibatch on each device."""
    accumulate: int = 1
    """Minibatches whose gradients are added up for one optimiser step."""
    gradient_checkpointing: bool = False
    """Compute activations a second time for the gradients instead of keeping them: far less memory, a third slower,
    the same numbers."""
    clip: float | None = 1.0
    """Largest norm of all gradients together; ``None`` does not clip."""
    precision: Precision = "fp32"
    """Number format of matrix products, in the words of ``tl``; the weights stay in float32.  ``bf16`` needs
    no loss scaling, and ``auto`` takes it on CUDA devices that have it."""
    monitor: str | None = None
    """Metric that says which state is best: ``validation_loss``, ``validation_accuracy``, ``train_loss``, ...;
    ``None`` takes ``validation_loss`` where there are validation cells, else the last state."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger metric is better."""
    patience: int | None = None
    """Epochs without a better metric after which to stop; ``None`` never stops early.  Needs a metric to watch."""
    folder: Path | None = None
    """Where checkpoints and the history go; ``None`` keeps nothing."""
    resume: bool = False
    """Go on from ``last.ckpt`` of the folder, if it is there; else begin.  All nodes must see the same folder."""
    checkpoint_steps: int | None = None
    """Optimiser steps between two checkpoints; ``None`` writes one after each epoch."""
    rng: int | np.random.Generator | None = 0
    """For the order of cells, what is hidden and dropout: a whole number; a generator or ``None`` is replaced by the number
    that it gives, which the files of a run record.  Several devices need a number."""
    workers: int = 0
    """Threads that prepare minibatches ahead."""
    accelerator: str = "auto"
    """``auto``, ``cpu``, ``gpu`` or ``mps``."""
    devices: int | str = 1
    """How many devices of a node, ``auto`` for all, or which ones, as ``"0,2"``; on a CPU how many processes.  They share
    each minibatch evenly: where that does not divide, up to ``devices - 1`` cells are left out of it, which is said."""
    nodes: int = 1
    """How many machines take part."""
    strategy: str = "auto"
    """How several devices share the work: ``auto`` and ``ddp`` give each of them the whole model and a part of every
    minibatch; ``fsdp`` gives each a piece of the weights and of the optimiser's state as well, for models that do not
    fit one device.  It does not go with ``fp16``."""
    deterministic: bool = False
    """Refuse operations whose result differs from run to run on the same machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "accumulate", "nodes"):
            check_integer(name, getattr(self, name))
        for name in ("max_steps", "patience", "checkpoint_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        check_integer("workers", self.workers, least=0)
        drawn = not isinstance(self.rng, int)
        if drawn and (self.devices != 1 or self.nodes != 1 or launched()[1] > 1):
            raise ValueError(
                f"Expected a whole number for `rng` with several devices, each of which draws for itself, found {self.rng!r}."
            )
        object.__setattr__(self, "rng", as_seed(self.rng))
        if self.clip is not None:
            check_number("clip", self.clip, above=0)
        if self.monitor is not None:
            check_text("monitor", self.monitor)
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("mode", self.mode, ("min", "max"))
        _check_devices(self.devices)
        check_text("strategy", self.strategy)
        if self.strategy != "fsdp" and self.strategy.lower().startswith(_OTHER_SHARDING):
            raise ValueError(
                f"Expected `strategy` to be one of ours or of Lightning's that keeps the model whole, found "
                f"{self.strategy!r}. Use 'fsdp' to cut the weights into pieces."
            )
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("Expected `precision` to be 'fp32' or 'bf16' with strategy='fsdp', found 'fp16'.")

    @property
    def seed(self) -> int:
        """The number that ``rng`` stands for."""
        return as_seed(self.rng)

    @property
    def place(self) -> str | None:
        """Device to load a model to: with ``fsdp``, which takes it to the devices piece by piece, the CPU."""
        return "cpu" if self.strategy == "fsdp" else None


def _device(config: FitConfig) -> torch.device:
    """Kind of device that a run computes on."""
    on_gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    on_mps = config.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
    return torch.device("cuda" if on_gpu else "mps" if on_mps else "cpu")


def first_device(config: FitConfig) -> torch.device:
    """Device of the first process of a run."""
    device = _device(config)
    listed = str(config.devices)
    return torch.device("cuda", int(listed.split(",")[0]) if "," in listed else 0) if device.type == "cuda" else device


def _check_devices(devices: int | str) -> None:
    if isinstance(devices, int):
        check_integer("devices", devices)
    elif devices != "auto" and re.fullmatch(r"\d+|\d+,|\d+(,\d+)+", devices) is None:
        raise ValueError(f"Expected `devices` to be a number, 'auto' or a list such as '0,2', found {devices!r}.")


def fit(
    model: CellModel,
    data: CellDataModule,
    objectives: Sequence[Objective],
    config: FitConfig | None = None,
    *,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
    description: Mapping[str, Any] | None = None,
) -> CellModel:
    """Train a model in place.

    With a ``folder`` the run is written down there as ``run.json``: classes, batches, cells, genes, loss terms, starting
    weights and settings.  With ``resume=True`` it goes on only if all of them are the same; epochs, steps, patience,
    devices, precision, workers and intervals of checkpoints may differ.  Without, a new run replaces the one in the folder.

    Parameters
    ----------
    model
        The model; its parameters change.
    data
        Training and validation cells.
    objectives
        Weighted loss terms.
    config
        How to train; ``None`` takes the defaults.
    callbacks
        More callbacks of Lightning, such as a :class:`~scgpt_tools.train.callbacks.History` to look at afterwards.  What
        they keep in checkpoints has to be tensors, numbers and text, or the run cannot be resumed.
    loggers
        Where to log beside the history, as :class:`~scgpt_tools.train.LoggerConfig`, which write to the folder of the run, or
        as loggers of Lightning; none by default.
    description
        What else a run that is resumed has to have in common with this call, as plain values by name.

    Returns
    -------
    The model with the best or, without a metric, the last weights, in eval mode.

    Raises
    ------
    ImportError
        If Lightning is not installed.
    FileExistsError
        If the folder holds checkpoints of others.
    FileNotFoundError
        If a run is to be resumed whose folder does not describe it.
    ValueError
        If the model lacks a head that an objective reads, the metric does not exist, there is none to be patient with,
        values of cells in memory are negative or not finite, a device is not there, or the run to be resumed was
        another one or its checkpoint is damaged.
    LossNotFiniteError
        If a loss, the gradients or the weights become NaN or infinite; checkpoints written before stay as they are.
    """
    lightning = optional("lightning", extra="train")
    # These define classes of Lightning's, so they can be imported only where it is.
    from scgpt_tools.train import callbacks as watching
    from scgpt_tools.train.module import CellModule  # another such class
    from scgpt_tools.train.sharding import ShardedCellModule, whole_weights  # and another

    config = check_type("config", config or FitConfig(), FitConfig)
    check_watchers(callbacks, loggers)
    if config.resume and config.folder is None:
        raise ValueError("Expected a `folder` to resume from, found None.")
    _check_places(config)
    objectives = check_objectives([objective for objective in check_objectives(objectives) if objective.weight > 0])
    _check_heads(model, objectives)
    forget_cells(model)
    monitor = _monitored(config, objectives, validates=bool(data.validation.size))
    described = None
    if config.folder is None:
        data.look()
    else:
        described = describe_run(model, data, objectives, config, monitor=monitor, more=description or {})
    loaders = {
        part: data.loader(part, batch_size=config.batch_size, rng=config.seed, workers=config.workers)
        for part in ("train", "validation")
    }
    with _folder(config) as folder, _quiet(), own_random_numbers(config.seed), patient_products(), training_threads():
        checkpoint = run = None
        if config.resume and (folder / LAST).is_file():
            began_here = _TRAINED_IN.get(model) == folder.resolve()
            run = check_same(folder, described or {}, usual=FitConfig(), began_here=began_here)
            checkpoint = _checkpoint_to_resume(model, config, folder, run)
        elif config.folder is not None:
            check_free(folder)
        watchers = [watching.Progress(), watching.DataPlace(loaders["train"]), *callbacks]
        if not any(isinstance(callback, watching.History) for callback in callbacks):
            watchers.append(watching.History(folder / HISTORY))
        if monitor is not None and config.patience is not None:
            watchers.append(watching.stop_early(monitor, mode=config.mode, patience=config.patience))
        last, best = watching.best_and_last(folder, monitor=monitor, mode=config.mode, every=config.checkpoint_steps)
        # The last state tells which one is best so far, so it is written after it; nobody can go on from a folder that is gone.
        watchers += [*best, *(last if config.folder is not None else [])]
        trainer = lightning.Trainer(
            **_trainer_options(config, len(loaders["train"])),
            callbacks=watchers,
            logger=built(loggers, config.folder) or False,
        )
        _check_shares(data, config, trainer.num_devices * trainer.num_nodes, says=trainer.is_global_zero)
        if described is not None and run is None and trainer.is_global_zero:
            run = begin(folder, described)
            describe_checkpoints(folder, model.config, model.vocabulary)
        _TRAINED_IN[model] = folder.resolve()
        validation = loaders["validation"] if data.validation.size else None
        with _recomputing(model, on=config.gradient_checkpointing), _reversing(model, objectives):
            kind = ShardedCellModule if config.strategy == "fsdp" else CellModule
            module = kind(model.train(), objectives, config, seed=config.seed)
            module.run = run
            trainer.fit(module, loaders["train"], validation, ckpt_path=checkpoint)
        last_state = whole_weights(trainer) if config.strategy == "fsdp" else None
        # A file that an earlier run left in the folder is not of this one.
        written = any(callback.best_model_path for callback in best)
        best_path = folder / BEST if written else None
        _take_weights(model, best_path, run, last_state, trainer)
    return model.eval()


def _check_shares(data: CellDataModule, config: FitConfig, processes: int, *, says: bool) -> None:
    """Say which cells processes leave out that share minibatches evenly, and refuse parts with too few for all."""
    if processes == 1:
        return
    left_out = {}
    parts: tuple[tuple[Part, NDArray[np.int64]], ...] = (("train", data.train), ("validation", data.validation))
    for part, cells in parts:
        batches = data.epoch(part, 0, batch_size=config.batch_size * processes, seed=config.seed)
        sizes = [len(batch) for batch in batches]
        if sizes and max(sizes) < processes:
            raise ValueError(
                f"Expected at least {processes} cells to {part.replace('validation', 'validate')} on, one for each process, "
                f"found {cells.size}{' in every minibatch' if cells.size >= processes else ''}."
            )
        left_out[part] = sum(size % processes for size in sizes)
    if says and any(left_out.values()):
        logger.warning(
            "%d processes share each minibatch evenly: %d of %d cells are left out of an epoch of training, others in each, and "
            "%d of %d, the same always, of its validation.",
            processes,
            left_out["train"],
            data.train.size,
            left_out["validation"],
            data.validation.size,
        )


def _trainer_options(config: FitConfig, n_batches: int) -> dict[str, Any]:
    several = config.devices not in (1, "1") or config.nodes > 1
    # Heads that no objective reads get no gradient, which plain DDP takes for an error.
    shared = "ddp_find_unused_parameters_true"
    strategy: Any = shared if config.strategy == "ddp" or (several and config.strategy == "auto") else config.strategy
    if strategy == "fsdp":
        # It defines a class of Lightning's, so it can be imported only where Lightning is.
        from scgpt_tools.train.sharding import sharding

        strategy = sharding()
    return {
        "plugins": [whole_files()],
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.nodes,
        "strategy": strategy,
        "precision": _PRECISIONS[resolve_precision(config.precision, _device(config))],
        "max_epochs": config.epochs,
        "max_steps": -1 if config.max_steps is None else config.max_steps,
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip,
        "deterministic": config.deterministic,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": min(50, n_batches),
        # Our loader knows which part of a minibatch is whose.
        "use_distributed_sampler": False,
    }


def _check_heads(model: CellModel, objectives: Sequence[Objective]) -> None:
    for objective in objectives:
        objective.check()
        for head in objective.heads:
            if head not in model.heads:
                raise ValueError(
                    f"Expected a model with the head {head!r}, which the objective {objective.name!r} reads, found only "
                    f"{list(model.heads)}. Add it with `model.adapt(heads=...)`."
                )


def _monitored(config: FitConfig, objectives: Sequence[Objective], *, validates: bool) -> str | None:
    """Name of the metric, after a look at what there will be."""
    if config.monitor is None:
        if config.patience is not None and not validates:
            raise ValueError(
                f"Expected validation cells, or another metric as `monitor`, for patience={config.patience}, found none."
            )
        return "validation_loss" if validates else None
    parts = ("train", "validation") if validates else ("train",)
    names = ["loss", *(objective.name for objective in objectives)]
    known = {f"{part}_{name}" for part in parts for name in names}
    known |= {f"validation_{name}" for objective in objectives for name in objective.reports} if validates else set()
    return lookup({name: name for name in sorted(known)}, config.monitor, "metric")


@contextmanager
def _folder(config: FitConfig) -> Iterator[Path]:
    """The given folder, or one for the time of the run, which the best weights are kept in."""
    if config.folder is not None:
        with run_folder(as_folder("folder", config.folder)) as folder:
            yield folder
        return
    with TemporaryDirectory(prefix="scgpt-tools-") as folder:
        yield Path(folder)


@contextmanager
def _recomputing(model: CellModel, *, on: bool) -> Iterator[None]:
    """Switch gradient checkpointing for the time of a run."""
    before, model.encoder.gradient_checkpointing = model.encoder.gradient_checkpointing, on
    try:
        yield
    finally:
        model.encoder.gradient_checkpointing = before


@contextmanager
def _reversing(model: CellModel, objectives: Sequence[Objective]) -> Iterator[None]:
    """Scale the reversed gradient for the time of a run."""
    factors = [term.reversal for term in objectives if isinstance(term, BatchAdversary)]
    if not factors:
        yield
        return
    (name,) = BatchAdversary.heads
    head = model.heads[name]
    if not isinstance(head, AdversaryHead):
        raise ValueError(
            f"Expected the head {name!r} to be an adversary, whose gradient is reversed, found {type(head).__name__}. Give "
            "the model an `AdversaryConfig` of that name."
        )
    before, head.reversal = head.reversal, factors[0]
    try:
        yield
    finally:
        head.reversal = before


def _checkpoint_to_resume(model: CellModel, config: FitConfig, folder: Path, run: str) -> Path:
    last = folder / LAST
    written = read_state(last, _OF_LAST)
    sharded = written["sharded"]
    # Both number the states of the optimiser, but not in the same order.
    if sharded != (config.strategy == "fsdp"):
        found, expected = ("with", "'fsdp'") if sharded else ("without", "'ddp' or 'auto'")
        raise ValueError(
            f"Expected to go on with the strategy that {last} was written with, {expected}, found {config.strategy!r}; "
            f"it comes from a run {found} sharding."
        )
    _check_run(last, written, run)
    differing = {f"model.{name}" for name in model.state_dict()} ^ set(written["state_dict"])
    if differing:
        raise ValueError(
            f"Expected {last} to hold the weights of this model, found {len(differing)} that only one of them has, such as "
            f"{min(differing)!r}. Begin in another folder, or train the same model with the same objectives."
        )
    done = int(written["epoch"]) + 1
    if config.epochs < int(written["epoch"]):
        raise ValueError(
            f"Expected `epochs` to be at least the {done} that the run in {folder} has made, found {config.epochs}."
        )
    logger.info("Going on from %s.", last)
    return last


def _check_run(path: Path, written: Mapping[str, Any], run: str | None) -> None:
    if written["run"] != run:
        raise ValueError(
            f"Expected {path} to be a checkpoint of the run that the {RUN} beside it describes, found one of another run. Put "
            "the files of one run together again, or begin in another folder."
        )


def _take_weights(
    model: CellModel, best: Path | None, run: str | None, last: dict[str, Any] | None, trainer: Any
) -> None:
    """Give the model the weights of the best state, which the first process has written, in every process.

    Without one, the last weights, where those are not in the model itself.
    """
    state = last
    if best is not None and trainer.is_global_zero:
        written = read_state(best, _OF_BEST)
        _check_run(best, written, run)
        state = written["state_dict"]
    state = trainer.strategy.broadcast(state)
    if state is not None:
        model.load_state_dict({key.removeprefix("model."): tensor for key, tensor in state.items()})
    if bad := not_finite(model.state_dict().items()):
        raise LossNotFiniteError(
            f"Expected finite weights after training, found NaN or infinity in {len(bad)} tensors, the first being "
            f"{bad[0]!r}. Lower the learning rate, or warm up longer."
        )
    # Nobody leaves, and takes a temporary folder away, before all have the weights.
    trainer.strategy.barrier()


def check_watchers(callbacks: Any, loggers: Any) -> None:
    """Refuse what are no lists of Lightning's callbacks and loggers."""
    lightning = optional("lightning", extra="train")
    kinds: dict[str, tuple[Any, Any]] = {
        "callbacks": (callbacks, lightning.Callback),
        "loggers": (loggers, (LoggerConfig, lightning.pytorch.loggers.Logger)),
    }
    for name, (given, kind) in kinds.items():
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"Expected `{name}` to be a list, found {type(given).__name__}.")
        for place, entry in enumerate(given):
            check_type(f"{name}[{place}]", entry, kind)


def _check_places(config: FitConfig) -> None:
    """Refuse devices that are not there, before Lightning does in its words, and processes that would not train together."""
    processes = launched({name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ})[1]
    if processes > 1 and str(config.devices) == "1" and config.nodes == 1:
        raise ValueError(
            f"Expected `devices` and `strategy` for the {processes} processes that torchrun has started, found devices=1, with which "
            f"each would train all by itself and write the same files. Pass devices={processes}, strategy='ddp' (with several "
            "machines `nodes`, and as many devices as each has)."
        )
    there = {
        "gpu": torch.cuda.is_available() or torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(config.accelerator, True):
        kind = {"gpu": "a GPU", "cuda": "a CUDA device", "mps": "a GPU of Apple"}[config.accelerator]
        raise ValueError(
            f"Expected {kind} for accelerator={config.accelerator!r}, found none that torch can use. Pass "
            "accelerator='cpu', or 'auto' to take what there is."
        )
    if config.accelerator == "cpu" or not torch.cuda.is_available():
        return
    n_devices, wanted = torch.cuda.device_count(), str(config.devices)
    most = (
        int(wanted)
        if wanted.isdigit()
        else max((int(part) + 1 for part in wanted.split(",") if part.isdigit()), default=0)
    )
    if most > n_devices:
        raise ValueError(
            f"Expected `devices` among the {n_devices} CUDA devices that there are, found {config.devices!r}."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice of Lightning that is about its own loaders and products, and put back what it sets globally."""
    strict, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    chatter = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = chatter.level
    chatter.setLevel(max(level, logging.WARNING))
    try:
        with catch_warnings():
            for message in _ADVICE:
                filterwarnings("ignore", message=message)
            yield
    finally:
        chatter.setLevel(level)
        torch.use_deterministic_algorithms(strict, warn_only=only_warns)
