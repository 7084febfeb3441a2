"""The door to fine-tuning for every task."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, get_args

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._types import Training
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.train.driver import learn
from scgpt_tools.train.fit import FitConfig
from scgpt_tools.train.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike

    from scgpt_tools._types import Extend, GeneSampling, Include, Layers, PairMethod, RngLike, Unknown, Unmeasured
    from scgpt_tools.data.epochs import Sampling
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.corruptions import Corruption
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.modalities import Modalities
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.perturbations import Direction
    from scgpt_tools.train.fit import Precision
    from scgpt_tools.train.freezing import Freeze
    from scgpt_tools.train.lora import LoraConfig
    from scgpt_tools.train.optim import Decayed, Schedule


class _Default:
    """Stands for what ``config`` says, and else the task."""

    def __repr__(self) -> str:
        return "<default of the task>"


OF_TASK: Final[Any] = _Default()

_FORMER = {"label": "label_key", "batch": "batch_key", "key": "condition_key", "seed": "rng"}
_FIT = {field.name for field in fields(FitConfig)}
_OF_EVERY_TASK = {
    "adata",
    "model",
    "task",
    "freeze",
    "unfreeze_every",
    "unfreeze_after",
    "lora",
    "recipe",
    "config",
    "callbacks",
    "loggers",
}

Given = ParamSpec("Given")


def _checked(function: Callable[Given, CellModel]) -> Callable[Given, CellModel]:
    """Take the model before the cells, with the keywords of then, and refuse keywords that do not exist."""
    known = list(inspect.signature(function).parameters)
    former: Callable[..., CellModel] = renamed(**_FORMER)(function)

    @wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> CellModel:
        if len(args) == 2 and hasattr(args[1], "obs_names") and not hasattr(args[0], "obs_names"):
            warn_user(
                "Expected the cells first, finetune(adata, model, ...), found the model first. Put them the other way round.",
                FutureWarning,
            )
            return former(args[1], args[0], **kwargs)
        if len(args) > 2:
            more = ", ".join(repr(value) if isinstance(value, str) else type(value).__name__ for value in args[2:])
            raise TypeError(
                f"Expected the cells, the model and all else by name, finetune(adata, model, task=...), found {more} without "
                "a name."
            )
        for name in kwargs:
            if name in _FORMER:
                of = ", a column of the AnnData's obs" if _FORMER[name].endswith("_key") else ""
                raise TypeError(f"Expected `{_FORMER[name]}`{of}, found its former name `{name}`.")
            if name not in known:
                raise TypeError(absent(name, known, "argument of `finetune` named"))
        return function(*args, **kwargs)

    return call


@_checked
@shared_docs
def finetune(
    adata: AnnData | MuData,
    model: CellModel | str | PathLike[str],
    *,
    task: str = "annotate",
    label_key: str | None = None,
    batch_key: str | None = None,
    target_keys: str | Sequence[str] | None = None,
    condition_key: str = "condition",
    layer: Layers = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    mask_var: ArrayLike | str | None = None,
    modality: str | None = None,
    modalities: Modalities = None,
    validation: float | str | None = None,
    within: str | Sequence[str] | None = None,
    pairs: str | None = None,
    pairing: PairMethod | None = None,
    controls: bool = True,
    direction: Direction | None = None,
    include: Include = "all",
    unknown: Unknown = "drop",
    unmeasured: Unmeasured = "error",
    extend: Extend = "auto",
    length: int | None = 1536,
    gene_sampling: GeneSampling = "keep_perturbed",
    cells_per_mean: int | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
    corruption: Corruption | None = None,
    objectives: Sequence[Objective] | None = None,
    compare: bool = True,
    dropout: float | None = None,
    batch_parts: bool | None = None,
    adaptive_offset: bool = False,
    activation: str | None = None,
    freeze: Freeze = "nothing",
    unfreeze_every: int | None = None,
    unfreeze_after: int | None = None,
    lora: LoraConfig | int | None = None,
    recipe: Training = "package",
    config: FitConfig | None = None,
    rng: RngLike = OF_TASK,
    epochs: int = OF_TASK,
    max_steps: int | None = OF_TASK,
    batch_size: int = OF_TASK,
    accumulate: int = OF_TASK,
    lr: float = OF_TASK,
    head_lr: float | None = OF_TASK,
    layer_decay: float = OF_TASK,
    weight_decay: float = OF_TASK,
    decayed: Decayed = OF_TASK,
    decoupled: bool = OF_TASK,
    betas: tuple[float, float] = OF_TASK,
    eps: float = OF_TASK,
    schedule: Schedule = OF_TASK,
    warmup: float = OF_TASK,
    end: float = OF_TASK,
    step_factor: float = OF_TASK,
    step_epochs: int = OF_TASK,
    clip: float | None = OF_TASK,
    gradient_checkpointing: bool = OF_TASK,
    precision: Precision = OF_TASK,
    monitor: str | None = OF_TASK,
    mode: Literal["min", "max"] = OF_TASK,
    patience: int | None = OF_TASK,
    folder: str | PathLike[str] | None = OF_TASK,
    resume: bool = OF_TASK,
    checkpoint_steps: int | None = OF_TASK,
    workers: int = OF_TASK,
    accelerator: str = OF_TASK,
    devices: int | str = OF_TASK,
    nodes: int = OF_TASK,
    strategy: str = OF_TASK,
    deterministic: bool = OF_TASK,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
) -> CellModel:
    """Fine-tune a model for a task :cite:p:`Cui2024`.

    The returned model holds all that the task needs: weights, vocabulary, tokenizer and the names of classes and
    batches; its ``save`` keeps them together.  To annotate and to perturb, models of scGPT learn longer than their authors
    had them learn, and to perturb from means of cells; ``recipe="authors"`` does as they did.  An argument that the task does not take is refused.

    Parameters
    ----------
    adata
        Cells to learn from; may be backed, lazy or a view.  Never changed.
    model
        A loaded model, which stays as it is, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    task
        ``"annotate"`` learns the classes of ``label_key``, for :func:`scgpt_tools.tl.annotate`: cross-entropy, on the
        genes that each cell expresses.
        ``"regress"`` learns the numbers of ``target_keys``, such as an age or a score, for :func:`scgpt_tools.tl.predict`:
        squared error in standard deviations of the training cells, on the genes that each cell expresses.
        ``"integrate"`` learns an embedding without the batches of ``batch_key``, for :func:`scgpt_tools.tl.embed`:
        masked expression from tokens and from the cell, zero likelihood, elastic similarity and a batch adversary, with
        a norm for each batch (DSBN), on all genes of the table whether expressed or not.  Choose some 1200 highly
        variable genes for it first, and embed the same genes afterwards.
        ``"multiomic"`` learns the modalities of a MuData together, for :func:`scgpt_tools.tl.embed` and
        :func:`scgpt_tools.tl.impute`: masked expression from tokens, all expression from the cell, panels such as
        proteins weighing more than other modalities, a batch adversary if ``batch_key`` is named, and the classes of
        ``label_key`` if that is.  The heads read the modality of a token and the batch.
        ``"perturb"`` learns expression after a perturbation, for :func:`scgpt_tools.tl.predict_perturbation`, from
        log-normalised cells of a screen.  Gene table, value embedding and transformer are taken over, the flags and the
        affine head start from scratch, as in the original; both are logged.
    label_key
        Column of ``obs`` with classes.  Cells without one (NaN) are not trained on where classes are learnt.
        Not for ``"perturb"``.
    batch_key
        Column of ``obs`` with technical batches.  Not for ``"perturb"``.
    target_keys
        One or several columns of ``obs`` with numbers.  A cell without a number (NaN) of a column is not trained on for it.
        For ``"regress"``.
    condition_key
        Column of ``obs`` with conditions as :func:`scgpt_tools.pp.parse_conditions` writes them.  For ``"perturb"``.
    layer
        Key of ``layers`` to read, of a MuData also one for each modality; ``None`` takes ``X``.
    {genes}
    {matching}
    mask_var
        Genes to read only, as the name of a boolean column of ``var``, or as an array; ``None`` for all.
    modality
        The only modality of a MuData to read.  Not for ``"perturb"``.
    modalities
        Names of the modalities of a MuData to learn, or how to read each
        (:class:`~scgpt_tools.tokens.ModalityConfig`); ``None`` for all, by their names.  Features that the vocabulary
        lacks get new tokens; the new model keeps all of it.  Not for ``"perturb"``.
    validation
        Share of the cells to validate on, drawn by seed within each class and batch, or of the conditions of a screen;
        0 for none.  Or a column of ``obs`` as :func:`scgpt_tools.pp.cell_split` and
        :func:`scgpt_tools.pp.perturbation_split` write it: ``"train"`` cells are trained on, ``"val"`` cells (perturbed
        ones of a screen) validate, others are not touched.  ``None`` takes 0.1, and the column ``"split"`` to perturb; to
        annotate with fewer than 500 cells as many as are 50, a quarter at most.  Of a class with four cells or more one is
        held out at least, of a smaller one perhaps none: to annotate, the log names these.
    within
        Columns of ``obs`` that a cell and its control share; only if controls are to be drawn here.  For ``"perturb"``.
    pairs
        Key of ``obsm`` with paired controls; ``None`` takes ``"ctrl_indices"`` if it is there and neither ``within`` nor
        ``pairing`` is given, and else pairs each cell with one control.  For ``"perturb"``.
    pairing
        Pair cells here, and how: with ``"random"`` controls, or by optimal ``"transport"``, as
        :func:`scgpt_tools.pp.pair_controls` does with that ``method``.  ``None`` draws controls where there are no pairs.  For
        ``"perturb"``.
    controls
        Train on controls too, each paired with itself, as GEARS and scGPT do.  For ``"perturb"``.
    direction
        What the perturbations do, ``"up"`` (flag 1) or ``"down"`` (flag 2); ``None`` takes what
        :func:`scgpt_tools.pp.parse_conditions` recorded, and else flags by 1 as the originals do.  The model keeps
        which flags it was trained with.  For ``"perturb"``.
    include
        ``"all"`` genes, or ``"batch-wise"`` those that some control of the minibatch expresses.  For ``"perturb"``.
    unknown
        Columns without a token: ``"drop"`` them, or let them take part under the token of padding (``"pad"``), as in
        the original.  For ``"perturb"``.
    unmeasured
        Perturbed genes without a column: refuse them, add their ``"token"`` to the cells that they are perturbed in, or
        ``"drop"`` these cells.  The model keeps it, and is used so.  For ``"perturb"``.
    extend
        Genes to add to the vocabulary, whose tokens start from scratch: ``"auto"``, perturbed genes that it lacks, which
        the model could not be told else; ``"all"`` columns that match no token; or ``"nothing"``.
    length
        Most genes of a cell; of more, some are drawn for each cell and epoch.  For ``"perturb"``; the other tasks have
        it among the fields of ``tokenizer``.
    gene_sampling
        ``"keep_perturbed"`` never loses a perturbed gene; ``"original"`` draws as scGPT does, where a minibatch may
        lose what was perturbed.  For ``"perturb"``.
    cells_per_mean
        Learn from means of so many cells of a condition, drawn anew every epoch, and of their controls, in place of single
        cells, most of whose differences no control tells; 1 takes single cells, as the originals do.  Cells of a mean share
        what pairs share.  Predictions then start from means of as many controls.  ``None`` takes 16, and 1 for scGenePT and
        DeepSC.  For ``"perturb"``.
    tokenizer
        Fields of the model's tokenizer to change, such as ``{"length": 600}``; the new model keeps them.  Not for
        ``"perturb"``.
    sampling
        ``"random"``; ``"balanced"``, each class (to perturb: condition) as often; ``"one_batch"``, minibatches of one
        technical batch; or ``"blocks"`` for files that are read in pieces.  ``None`` takes ``"one_batch"`` to integrate
        and else ``"random"``.
    corruption
        What to hide from the network if a term asks for hidden values; ``None`` masks 40 %, as scGPT, and of several
        modalities whole panels in four cells of five.  Not for ``"perturb"``.
    objectives
        Loss terms instead of the recipe's; the heads that they read are added to the model.
    compare
        Fit logistic regression on genes and nearest neighbours on principal components to the training cells, and
        score them beside the model on those that validate.  For ``"annotate"``.
    dropout
        Probability in the encoder; ``None`` keeps the model's, and to perturb takes 0, as scGPT, or 0.2 for scGenePT.
    batch_parts
        Give each batch a norm of its own, and tell the expression heads the batch; ``None`` does so to integrate.  Such
        a model needs ``batch_key`` wherever it is used, and knows these batches only.  Not for ``"perturb"``.
    adaptive_offset, activation
        Of the affine head, see :class:`~scgpt_tools.nn.heads.AffineConfig`.  For ``"perturb"``.
    freeze
        Parts that keep their weights: ``"nothing"``; ``"embedder"``, the gene and value embeddings; ``"backbone"``, all
        but what the task brings with it.
    unfreeze_every
        With ``freeze="backbone"``: release one part more every so many epochs, from the last layer to the embedder.
    unfreeze_after
        With ``freeze="backbone"``: train everything after so many epochs.
    lora
        Train low-rank adapters in the encoder (extra ``peft``) instead of its weights: their settings or rank.  They
        are merged at the end.
    recipe
        What stands for arguments that are not given.  ``"package"`` takes what the arguments say here.  ``"authors"`` trains as
        the authors of the model: of scGPT, to annotate 10 epochs of 32 cells, a tenth of them held out; to perturb 15 of 64
        single cells, until 10 bring no better correlation of mean profiles, by which the best is kept; to
        integrate what the package does, 15 of 64; for several modalities 25 of 16 with a rate of 1e-3 that falls by a
        twentieth.  Else the rate is 1e-4, whatever the width of the model, and falls by a tenth after each epoch.  DeepSC's to
        annotate and to perturb, and scGenePT's to perturb, are the package's too, and there is none for others.  What cells read stays: for
        scGPT's own ways add ``gene_sampling="original"`` and ``unknown="pad"`` to perturb, and ``tokenizer={"length": 3001}``
        to annotate.
    config
        How to train, instead of the task's defaults.
    rng
        Whole number or generator for the division, the order of cells, what is hidden and dropout; ``None`` draws anew at
        every call.  0 by default.  The run and its files have the number.
    epochs, max_steps, batch_size, accumulate, lr, head_lr, layer_decay, weight_decay, decayed, decoupled, betas, eps, \
schedule, warmup, end, step_factor, step_epochs, clip, gradient_checkpointing, precision, monitor, mode, patience, folder, resume, \
checkpoint_steps, workers, accelerator, devices, nodes, strategy, deterministic
        Fields of :class:`~scgpt_tools.train.FitConfig` to change, for example ``epochs=5``, ``head_lr=1e-3``,
        ``monitor="validation_accuracy", mode="max"`` or ``accelerator="cpu"``.  To annotate and to
        perturb, minibatches of 32 and 64 cells until the ``monitor`` has not got better for 100 steps (two and ten epochs
        at least), through 10 and 15 epochs or, where these are fewer, 2000 steps at most (without validation cells 300), with
        the rate of scGPT's authors, 1e-4, for models of their width, 512, and more in inverse proportion for narrower ones; ``epochs``,
        ``max_steps``, ``lr`` or ``config`` take the place of that.  To regress 10 epochs of 32 cells, to integrate 15 of
        64, for several modalities 20 of 32; scGenePT and DeepSC learn perturbations for the 20 and 10 epochs of their authors.
    callbacks
        Callbacks of Lightning.
    loggers
        Where to log beside the history: :class:`~scgpt_tools.train.LoggerConfig`, with a ``folder``, or loggers of
        Lightning.

    Returns
    -------
    A new model with the best weights by ``monitor`` on the validation cells: ``"validation_loss"``,
    ``"validation_masked_expression"`` to integrate and for several modalities, and ``"validation_profile_error"``, the
    squared error of mean profiles of conditions, to perturb.  Its ``history`` is a table with one row per epoch.  To
    annotate, its ``comparison`` has accuracy and macro F1 on the validation cells, of the model and of plain methods
    (``compare``).  The model's own are a little too good, for these cells have chosen its best weights.

    Raises
    ------
    ImportError
        If Lightning, or peft for ``lora``, is not installed.
    KeyError
        If a column, layer or key is absent; the message lists what is there.
    TypeError
        For an argument that does not exist or that the task does not take.
    ValueError
        For an unknown task, if an argument that the task needs is missing, or arguments do not go together; to perturb
        also if values look like counts, a cell has no label, there are no controls, or a perturbed gene has no column or
        no token.

    Warns
    -----
    NoBetterThanChanceWarning
        If a model that was to annotate is right no more often on the validation cells, or without any on those that it was
        trained on, than its answers would be if they were dealt out by chance (permutation test, 5 %).
    UserWarning
        If a model that is to annotate has no cells to validate on, though not by ``validation=0``, or some of a class that
        it never sees; and as :func:`scgpt_tools.tl.embed` does about genes and values.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(reference, "scgpt-demo", task="annotate", label_key="cell_type")  # doctest: +SKIP
    >>> model.comparison  # doctest: +SKIP
    >>> model.history[["train_loss", "validation_accuracy"]]  # doctest: +SKIP
    >>> model.save("annotator")  # doctest: +SKIP
    """
    given = locals()
    changes = {name: given.pop(name) for name in _FIT}
    changes = {name: value for name, value in changes.items() if value is not OF_TASK}
    check_arguments(finetune, given)
    chosen = lookup(TASKS, task, "task")
    _check_of_task(task, given)
    check_choice("recipe", recipe, get_args(Training))
    if recipe != "package" and config is not None:
        raise ValueError(
            f"Expected `recipe` or `config`, found recipe={recipe!r} with a `config`, which says how to train."
        )
    return learn(
        chosen.of(given, recipe=recipe),
        adata,
        model,
        freeze=freeze,
        unfreeze_every=unfreeze_every,
        unfreeze_after=unfreeze_after,
        lora=lora,
        recipe=recipe,
        config=config,
        changes=changes,
        callbacks=callbacks,
        loggers=loggers,
    )


def _check_of_task(task: str, given: Mapping[str, Any]) -> None:
    """Refuse arguments of other tasks."""
    defaults = {name: entry.default for name, entry in inspect.signature(finetune).parameters.items()}
    takes = {name: {field.name for field in fields(kind)} for name, kind in TASKS.items()}
    for name in given.keys() - _OF_EVERY_TASK - takes[task]:
        value, default = given[name], defaults[name]
        if value is not default and not (isinstance(value, str | int) and value == default):
            others = ", ".join(repr(other) for other, names in takes.items() if name in names)
            raise TypeError(
                f"Expected no `{name}` for task={task!r}, found {value!r}. It is an argument of task={others}."
            )
