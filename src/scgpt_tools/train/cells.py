"""Fine-tuning on annotated cells: to name their types, or to embed them without their technical batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.classes import UNKNOWN, Classes, read_classes
from scgpt_tools.data.epochs import check_sampling
from scgpt_tools.data.learning import open_to_learn
from scgpt_tools.data.modalities import has_modalities
from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.opening import Matching, warn_about_rows
from scgpt_tools.models.growing import keep_narrow_heads
from scgpt_tools.objectives import CellType, check_objectives
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.train.cell_parts import codes_of, read_batches, training_parts
from scgpt_tools.train.fit import check_watchers, fit
from scgpt_tools.train.freezing import Freeze, check_freezing, frozen
from scgpt_tools.train.lora import adapters
from scgpt_tools.train.multiomic import check_weights, for_modalities, hiding
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.train.starting import check_model_and_cells, check_validation, fit_settings, low_rank, open_model
from scgpt_tools.train.tasks import TASKS, Task, needs_hidden_values, parts_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import Layers
    from scgpt_tools.data.epochs import Sampling
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.corruptions import Corruption
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.modalities import Modalities
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.train.fit import FitConfig
    from scgpt_tools.train.lora import LoraConfig

logger = logging.getLogger(__name__)


def finetune_cells(
    model: CellModel | str | PathLike[str],
    adata: AnnData | MuData,
    *,
    task: str = "annotate",
    label: str | None = None,
    batch: str | None = None,
    layer: Layers = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    modality: str | None = None,
    modalities: Modalities = None,
    validation: float | str = 0.1,
    objectives: Sequence[Objective] | None = None,
    corruption: Corruption | None = None,
    sampling: Sampling | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    dropout: float | None = None,
    batch_parts: bool | None = None,
    freeze: Freeze = "nothing",
    unfreeze_every: int | None = None,
    lora: LoraConfig | int | None = None,
    config: FitConfig | None = None,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
    **changes: Any,
) -> CellModel:
    """Fine-tune a model on annotated cells with the recipe of its authors :cite:p:`Cui2024`.

    What :func:`scgpt_tools.train.finetune` does for ``task="annotate"`` and ``task="integrate"``.

    Parameters
    ----------
    model
        A loaded model, which stays as it is, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    adata
        Cells to learn from; may be backed, lazy or a view.  Never changed.
    task
        ``"annotate"`` learns the classes of ``label``: cross-entropy, on the genes that each cell expresses.
        ``"integrate"`` learns an embedding without the batches of ``batch``: masked expression from tokens and from the
        cell, zero likelihood, elastic similarity and a batch adversary, with a norm for each batch (DSBN), on all
        genes of the table whether expressed or not.  Choose some 1200 highly variable genes for it first, and embed
        the same genes afterwards.
        ``"multiomic"`` learns the modalities of a MuData together: masked expression from tokens, all expression from
        the cell, panels such as proteins weighing more than other modalities, a batch adversary if ``batch`` is named,
        and the classes of ``label`` if that is.  The heads are told the modality of a token and the batch.
    label
        Column of ``obs`` with classes.  Cells without one (NaN) are not trained on where classes are learnt.
    batch
        Column of ``obs`` with technical batches.
    layer
        Key of ``layers`` to read, of a MuData also one for each modality; ``None`` takes ``X``.
    genes, symbols, aliases, ignore_case, duplicates, modality
        How to match names to the vocabulary, as in :func:`scgpt_tools.tl.embed`.
    modalities
        Names of the modalities of a MuData to learn, or how to read each
        (:class:`~scgpt_tools.tokens.ModalityConfig`); ``None`` for all, by their names.  Features that the vocabulary
        lacks get new tokens; the new model keeps all of it.  Every task takes a MuData so; with ``modality``, it reads
        that one only.
    validation
        Share of the cells to validate on, drawn by seed within each class and batch; 0 for none.  Or a column of
        ``obs`` as :func:`scgpt_tools.pp.cell_split` writes it: ``"train"`` cells are trained on, ``"val"`` cells
        validate, others are not touched.
    objectives
        Loss terms instead of the recipe's; the heads that they read are added to the model.
    corruption
        What to hide from the network if a term asks for hidden values; ``None`` masks 40 %, as scGPT, and of several
        modalities whole panels in four cells of five.
    sampling
        ``"random"``; ``"balanced"``, each class as often; ``"one_batch"``, minibatches of one technical batch; or
        ``"blocks"`` for files that are read in pieces.  ``None`` takes the task's: ``"random"`` to annotate,
        ``"one_batch"`` to integrate.
    tokenizer
        Fields of the model's tokenizer to change, such as ``{"length": 600}``; the new model keeps them.
    dropout
        Probability in the encoder; ``None`` keeps the model's.  On CPUs, 0 trains several times faster.
    batch_parts
        Give each batch a norm of its own, and tell the expression heads the batch; ``None`` does so to integrate.  Such
        a model needs ``batch`` wherever it is used, and knows these batches only.
    freeze
        Parts that keep their weights: ``"nothing"``; ``"embedder"``, the gene and value embeddings; ``"backbone"``, all
        but the heads.
    unfreeze_every
        With ``freeze="backbone"``: release one part more every so many epochs, from the last layer to the embedder.
    lora
        Train low-rank adapters in the encoder (extra ``peft``) instead of its weights: their settings or rank.  They
        are merged at the end.
    config
        How to train, instead of the task's defaults.
    callbacks, loggers
        Callbacks and loggers of Lightning.
    **changes
        Fields of :class:`~scgpt_tools.train.FitConfig` to change.

    Returns
    -------
    A new model with the best weights by ``monitor`` on the validation cells.  Its ``history`` is a table with one row
    per epoch.

    Raises
    ------
    ImportError
        If Lightning, or peft for ``lora``, is not installed.
    KeyError
        If a column or layer is absent; the message lists what is there.
    TypeError
        For an argument that does not exist.
    ValueError
        If an argument that the task needs is missing, or arguments do not go together.
    """
    check_arguments(finetune_cells, locals())
    optional("lightning", extra="train")
    # It defines a class of Lightning, so it can be imported only where Lightning is.
    from scgpt_tools.train.callbacks import History

    check_model_and_cells(model, adata)
    check_watchers(callbacks, loggers)
    chosen = lookup(TASKS, task, "task")
    terms = check_objectives(_terms(chosen, label=label, batch=batch) if objectives is None else objectives)
    adapted = low_rank(lora)
    _check_arguments(chosen, task, label=label, batch=batch)
    check_freezing(freeze, adapted, unfreeze_every)
    check_validation(validation)
    if sampling is not None:
        check_sampling(sampling)
    if tokenizer is not None:
        check_type("tokenizer", tokenizer, Mapping)
    settings = fit_settings(chosen.fit, config, changes, function="`finetune`")
    if unfreeze_every is not None and settings.strategy == "fsdp":
        raise ValueError(
            "Expected `unfreeze_every` to be None with strategy='fsdp', which settles what is trained once."
        )
    loaded = open_model(model, settings)
    if chosen.modalities and not has_modalities(adata):
        raise TypeError(f"Expected a MuData for task={task!r}, found {type(adata).__name__}.")
    source, features, tokens = open_to_learn(
        adata,
        loaded.vocabulary,
        loaded.config.tokenizer,
        layer=layer,
        modality=modality,
        modalities=modalities,
        matching=Matching(
            genes=genes, symbols=symbols, aliases=aliases, ignore_case=ignore_case, duplicates=duplicates
        ),
        changes={**chosen.tokenizer, **(tokenizer or {})},
        seed=settings.seed,
    )
    warn_about_rows(source, tokens)
    if objectives is None and chosen.modalities:
        terms = for_modalities(terms, tokens)
    check_weights(terms, tokens)
    # A task that can do without batches has no parts for them then.
    add_parts = (
        (chosen.batch_parts and (batch is not None or "batch" in chosen.needs)) if batch_parts is None else batch_parts
    )
    labels = None if label is None else read_classes(source.obs, label, allow_unknown=True)
    batches = read_batches(source, loaded, batch, add_parts=add_parts)
    usable = np.ones(len(source), dtype=bool) if labels is None else labels.codes != UNKNOWN
    if "cell_type" not in {term.name for term in terms}:
        usable[:] = True
    train, held_out = training_parts(source, validation, usable, [labels, batches], seed=settings.seed)
    if task == "annotate" and labels is not None:
        _check_classes(label, labels, train)
    if not held_out.size and settings.monitor == chosen.fit.get("monitor"):
        settings = replace(settings, monitor=None)
    parts = parts_for(
        loaded.config,
        terms,
        classes=None if labels is None else labels.names,
        batches=None if batches is None else batches.names,
        batch_parts=add_parts,
        batch_norm=chosen.batch_norm,
        tokenizer=tokens,
        dropout=dropout,
    )
    asked = {
        "task": task,
        "base": settings.folder and loaded.checksum,
        "freeze": freeze,
        "unfreeze_every": unfreeze_every,
        "lora": adapted,
    }
    with own_random_numbers(settings.seed):
        tuned = loaded.adapt(features.vocabulary, **parts)
        keep_narrow_heads(loaded, tuned)
        data = CellDataModule(
            [CellTable(source, features, codes_of(batches), codes_of(labels))],
            tuned.tokenizer,
            corruption=_corruption(corruption, tuned, terms),
            train=train,
            validation=held_out,
            sampling=sampling or chosen.sampling,
        )
        _warn_about_length(tuned, features)
        logger.info("Fine-tuning on %d cells, validating on %d.", len(data.train), len(data.validation))
        history = History(None if settings.folder is None else settings.folder / "history.csv")
        watchers = [history, *_unfreezing(tuned, unfreeze_every), *callbacks]
        # Gradual unfreezing wants all parameters in the optimiser, and freezes them itself.
        with frozen(tuned, "nothing" if unfreeze_every else freeze), adapters(tuned, adapted):
            fit(tuned, data, terms, settings, callbacks=watchers, loggers=loggers, asked=asked)
    tuned.name, tuned.history = f"{loaded.name} ({task})", history.table
    return tuned.to(loaded.device)


def _terms(task: Task, *, label: str | None, batch: str | None) -> list[Objective]:
    """Loss terms of the recipe; where the task can do without a column, without the terms that need it."""
    terms = [term for term in task.recipe.objectives if "batch" not in term.heads or batch is not None or task.needs]
    if task.modalities and label is not None:
        terms.append(CellType())
    return terms


def _check_arguments(task: Task, name: str, **columns: str | None) -> None:
    for column in task.needs:
        if columns[column] is None:
            raise ValueError(f"Expected `{column}`, a column of `obs`, for task={name!r}, found None.")


def _check_classes(label: str | None, labels: Classes, train: NDArray[np.int64]) -> None:
    shown = sorted({labels.names[code] for code in labels.codes[train].tolist() if code != UNKNOWN})
    if len(shown) < 2:
        raise ValueError(f"Expected cells of two classes of {label!r} or more to train on, found only {shown}.")


def _corruption(given: Corruption | None, model: CellModel, objectives: Sequence[Objective]) -> Corruption | None:
    if given is not None or not needs_hidden_values(objectives):
        return given
    if model.config.tokenizer.parts:
        return hiding(model.config.tokenizer, generate=model.config.embedder.generation)
    # 0.4 as in scGPT's finetune_integration.py; its function default, 0.15, is not what they trained with there.
    return MaskValues(ratio=0.4, mask_value=model.config.tokenizer.mask_value)


def _unfreezing(model: CellModel, every: int | None) -> list[Any]:
    if every is None:
        return []
    # It defines a class of Lightning, so it can be imported only where Lightning is.
    from scgpt_tools.train.unfreezing import GradualUnfreezing

    return [GradualUnfreezing(model, every)]


def _warn_about_length(model: CellModel, features: FeatureTable) -> None:
    tokenizer = model.config.tokenizer
    if tokenizer.parts or tokenizer.genes != "all" or tokenizer.length is None:
        return
    room = tokenizer.length - tokenizer.cls
    if len(features) > room:
        warn_user(
            f"{len(features)} genes are known to the model and every cell shows {room} of them, drawn at random and "
            "mostly zero. Choose as many highly variable genes first (`scanpy.pp.highly_variable_genes`), or raise "
            "`tokenizer={'length': ...}`."
        )
