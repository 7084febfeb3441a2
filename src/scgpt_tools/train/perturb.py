"""Fine-tuning a generator: expression after a perturbation from expression before it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from scgpt_tools._arguments import check_arguments
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import RowSource
from scgpt_tools.models.config import ExpressionConfig
from scgpt_tools.objectives import check_objectives
from scgpt_tools.objectives.recipes import PERTURB
from scgpt_tools.screens.batches import (
    PerturbationBatches,
    check_log_values,
    paired_controls,
    screen_parts,
    without_unmapped,
)
from scgpt_tools.screens.conditions import read_conditions, read_direction
from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import flag_of
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.train.fit import check_watchers, fit
from scgpt_tools.train.freezing import Freeze, check_freezing, frozen
from scgpt_tools.train.lora import adapters
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.train.starting import (
    check_model_and_cells,
    check_validation,
    fit_settings,
    low_rank,
    open_model,
    perturbation_config,
    perturbation_model,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData

    from scgpt_tools._types import GeneSampling, Include, Unknown
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.objectives.base import Objective
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.tokens.names import NameTable
    from scgpt_tools.tokens.perturbations import Direction
    from scgpt_tools.train.fit import FitConfig
    from scgpt_tools.train.lora import LoraConfig

logger = logging.getLogger(__name__)

_FIT: dict[str, Any] = {"epochs": 15, "batch_size": 64, "lr": 1e-4, "patience": 10}
"""Of scGPT's tutorial, whose early stopping watched a correlation on the validation conditions."""


def finetune_perturbation(
    model: CellModel | str | PathLike[str],
    adata: AnnData,
    *,
    key: str = "condition",
    within: str | Sequence[str] | None = None,
    pairs: str | None = None,
    layer: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    validation: float | str = "split",
    controls: bool = True,
    include: Include = "all",
    unknown: Unknown = "drop",
    unmeasured: Literal["error", "token", "drop"] = "error",
    length: int | None = 1536,
    gene_sampling: GeneSampling = "keep_perturbed",
    direction: Direction | None = None,
    objectives: Sequence[Objective] | None = None,
    dropout: float | None = 0.0,
    adaptive_offset: bool = False,
    activation: str | None = None,
    freeze: Freeze = "nothing",
    lora: LoraConfig | int | None = None,
    config: FitConfig | None = None,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
    **changes: Any,
) -> CellModel:
    """Fine-tune a model to predict expression after a perturbation :cite:p:`Cui2024`.

    What :func:`scgpt_tools.train.finetune` does for ``task="perturb"``.  Gene table, value embedding and transformer
    are taken over, the flags and the affine head start from scratch, as in the original; both are logged.

    Parameters
    ----------
    model
        A loaded model, which stays as it is, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    adata
        Log-normalised cells of a screen; may be backed.  Never changed.
    key
        Column of ``obs`` with conditions as :func:`scgpt_tools.pp.parse_conditions` writes them.
    within
        Columns of ``obs`` that a cell and its control share; only if controls are to be drawn here.
    pairs
        Key of ``obsm`` with paired controls; ``None`` takes ``"ctrl_indices"`` if it is there and ``within`` is not
        given, and else draws one control a cell.
    layer
        Key of ``layers`` to read; ``None`` takes ``X``.
    genes, symbols, aliases, ignore_case, duplicates
        How to match names to the vocabulary, as in :func:`scgpt_tools.tl.embed`.
    validation
        Column of ``obs`` as :func:`scgpt_tools.pp.perturbation_split` and :func:`scgpt_tools.pp.cell_split` write it:
        ``"train"`` cells are trained on, perturbed ``"val"`` cells validate, others are not touched.  Or a share of
        the conditions to hold out.
    controls
        Train on controls too, each paired with itself, as GEARS and scGPT do.
    include
        ``"all"`` genes, or ``"batch-wise"`` those that some control of the minibatch expresses.
    unknown
        Columns without a token: ``"drop"`` them, or let them take part under the token of padding (``"pad"``), as in
        the original.
    unmeasured
        Perturbed genes without a column: refuse them, add their ``"token"`` to the cells that they are perturbed in, or
        ``"drop"`` these cells.
    length
        Most genes of a cell; of more, some are drawn for each cell and epoch.
    gene_sampling
        ``"keep_perturbed"`` never loses a perturbed gene; ``"original"`` draws as scGPT does, where a minibatch may
        lose what was perturbed.
    direction
        What the perturbations do, ``"up"`` (flag 1) or ``"down"`` (flag 2); ``None`` takes what
        :func:`scgpt_tools.pp.parse_conditions` was told, and else flags by 1 as the originals do.  The model keeps
        which flags it was shown.
    objectives
        Loss terms instead of the squared error at every gene.
    dropout
        Probability in the encoder; ``None`` keeps the model's.
    adaptive_offset, activation
        Of the affine head, see :class:`~scgpt_tools.models.config.ExpressionConfig`.
    freeze
        Parts that keep their weights: ``"nothing"``, ``"embedder"`` or ``"backbone"``.
    lora
        Train low-rank adapters in the encoder instead of its weights: their settings or rank.
    config
        How to train, instead of scGPT's settings (15 epochs of 64 cells at 1e-4, a factor 0.9 each epoch).
    callbacks, loggers
        Callbacks and loggers of Lightning.
    **changes
        Fields of :class:`~scgpt_tools.train.FitConfig` to change.

    Returns
    -------
    A new model with the best weights by ``"validation_profile_error"``, the squared error of mean profiles of
    validation conditions, or by ``monitor``.  Its ``history`` is a table with one row per epoch.

    Raises
    ------
    ImportError
        If Lightning, or peft for ``lora``, is not installed.
    KeyError
        If a column, layer or key is absent; the message lists what is there.
    ValueError
        If values look like counts, a cell has no label, there are no controls, a perturbed gene has no column or no
        token, or arguments do not go together.
    """
    check_model_and_cells(model, adata)
    check_arguments(finetune_perturbation, locals())
    optional("lightning", extra="train")
    # It defines a class of Lightning, so it can be imported only where Lightning is.
    from scgpt_tools.train.callbacks import History

    check_watchers(callbacks, loggers)
    check_choice("unmeasured", unmeasured, ("error", "token", "drop"))
    check_validation(validation)
    adapted = low_rank(lora)
    check_freezing(freeze, adapted)
    terms = check_objectives(PERTURB.objectives if objectives is None else objectives)
    settings = fit_settings(_FIT, config, changes, function="`finetune` with task='perturb'")
    source = RowSource(adata, layer=layer)
    check_log_values(source)
    conditions = read_conditions(source.adata, key)
    loaded = open_model(model, settings)
    plain = perturbation_config(loaded)
    reading = replace(
        plain.tokenizer,
        genes=include,
        unknown=unknown,
        unmeasured="token" if unmeasured == "token" else "error",
        length=length,
        overflow="shared" if gene_sampling == "original" else "sample",
    )
    flag = flag_of(
        read_direction(source.adata, key) if direction is None else direction,
        rows=plain.embedder.perturbation_rows,
        pad=plain.embedder.perturbation_pad,
        training=True,
    )
    features = FeatureTable.from_var(
        source.var,
        loaded.vocabulary,
        column=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        totals=source.totals,
    )
    tokens = ScreenTokens.match(
        features, column_names(source.var, genes), Tokenizer(reading, loaded.vocabulary), flag=flag
    )
    paired = paired_controls(source.adata, conditions, pairs=pairs, within=within, seed=settings.seed)
    train, held_out = screen_parts(source.adata, conditions, validation, controls=controls, seed=settings.seed)
    if unmeasured == "drop":
        train, held_out = (without_unmapped(tokens, conditions, part) for part in (train, held_out))
    if config is None and objectives is None and "monitor" not in changes and held_out.size:
        # scGPT's choice of the best epoch looks at mean profiles too, by their correlation.
        settings = replace(settings, monitor="validation_profile_error")
    if config is None and "patience" not in changes and settings.monitor is None and not held_out.size:
        if isinstance(validation, str):
            warn_user(
                f"Expected perturbed cells of the part 'val' in obs[{validation!r}] to stop early and to choose the best epoch "
                f"by, found none: all {settings.epochs} epochs are trained and the last weights are kept. Hold conditions "
                "out to validate on, or pass patience=None."
            )
        settings = replace(settings, patience=None)
    head = ExpressionConfig(style="affine", adaptive_offset=adaptive_offset, activation=activation)
    asked = {
        "task": "perturb",
        "base": settings.folder and loaded.checksum,
        "freeze": freeze,
        "lora": adapted,
        "flag": flag,
    }
    with own_random_numbers(settings.seed):
        tuned = perturbation_model(loaded, head=head, dropout=dropout, flag=flag, tokenizer=reading)
        data = PerturbationBatches(source, tokens, conditions, paired, train=train, validation=held_out)
        logger.info("Fine-tuning on %d cells, validating on %d.", len(data.train), len(data.validation))
        history = History(None if settings.folder is None else settings.folder / "history.csv")
        with frozen(tuned, freeze), adapters(tuned, adapted):
            fit(tuned, data, terms, settings, callbacks=[history, *callbacks], loggers=loggers, asked=asked)
    tuned.history = history.table
    return tuned.to(loaded.device)
