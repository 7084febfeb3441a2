"""Pre-training from scratch: a configuration in, a model on disk out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tools._files import as_path, placed
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._optional import optional
from scgpt_tools._outputs import check_place, check_room
from scgpt_tools._validate import check_flag, check_fraction, check_integer, check_number
from scgpt_tools.config import from_dict, from_yaml, settle_fields
from scgpt_tools.data.epochs import this_process
from scgpt_tools.data.module import CellDataModule
from scgpt_tools.models import formats
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.families import family_named
from scgpt_tools.objectives import MaskedBins, Objective, check_objectives
from scgpt_tools.tokens.corruptions import Corruption, GenerateExpression, MaskBins
from scgpt_tools.tokens.depth import DEPTH_TOKENS
from scgpt_tools.tokens.gene_masking import NextTokens
from scgpt_tools.tokens.gene_tables import read_gene_table
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.units import warn_about_units
from scgpt_tools.train.collection import (
    Collection,
    DataConfig,
    VocabularyConfig,
    count_bins,
    expressed_genes,
    open_collection,
)
from scgpt_tools.train.fit import FitConfig, fit
from scgpt_tools.train.loggers import LoggerConfig
from scgpt_tools.train.parts import with_heads
from scgpt_tools.train.probing import ProbeConfig, probed_cells
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.train.runs import HISTORY
from scgpt_tools.train.statistics import StatisticsConfig, fitted, highly_variable, sampled
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import numpy as np
    import pandas as pd
    from lightning.pytorch.callbacks import Callback
    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellTable
    from scgpt_tools.models.config import ModelConfig
    from scgpt_tools.models.families import Pretraining

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """Family and size of the model; ``None`` takes the family's own size, of scGPT that of the released models."""

    name: str = "scgpt"
    dim: int | None = None
    layers: int | None = None
    heads: int | None = None
    hidden: int | None = None
    dropout: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the family's description."""
    gain: float = 1.0
    """Factor on the first weights of what attention passes on.  With much above 1 the cell token hears its genes from the
    start, which spares a small training set a long plateau; scGPT has 1."""
    pretraining_task: str | None = None
    """What to pre-train for, one of the family's, which says heads, what is hidden and loss terms; ``None`` takes the
    usual one.  The encoder ``scmodelforge`` knows ``masked_gene_prediction``, ``expression_reconstruction`` and ``dual``."""

    def __post_init__(self) -> None:
        settle_fields(self)
        for name in ("dim", "layers", "heads", "hidden"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        if self.dropout is not None:
            check_fraction("dropout", self.dropout, one=False)
        check_number("gain", self.gain, above=0)
        if not family_named(self.name).pretraining:
            raise ValueError(f"Expected a family with loss terms for pre-training, found {self.name!r}.")
        self.task  # noqa: B018 - an unknown one is refused here
        taken = signature(family_named(self.name).config).parameters
        for name in self.options:
            if name not in taken:
                raise ValueError(absent(name, taken, f"option of the family {self.name!r} named"))

    @property
    def task(self) -> Pretraining:
        """What it is pre-trained for."""
        tasks = family_named(self.name).pretraining
        name = next(iter(tasks)) if self.pretraining_task is None else self.pretraining_task
        return lookup(tasks, name, f"pre-training task of {self.name!r}")

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes that are not the family's own."""
        sizes = {name: getattr(self, name) for name in ("dim", "layers", "heads", "hidden", "dropout")}
        return {name: size for name, size in sizes.items() if size is not None}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that a pre-training run depends on, as its YAML file holds it."""

    data: DataConfig
    family: FamilyConfig = field(default_factory=FamilyConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    tokenizer: TokenizerConfig | None = None
    """How cells become tokens, which travels with the model; ``None`` takes the family's own way."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """What of the tokenizer is computed from training cells."""
    corruption: Corruption | None = None
    """What is hidden: a ``name`` and its options; ``None`` takes that of the family's pre-training task."""
    objectives: tuple[Objective, ...] | None = None
    """Loss terms: each a ``name``, a ``weight`` and its options; ``None`` takes those of the family's pre-training task."""
    train: FitConfig = field(default_factory=FitConfig)
    evaluate: ProbeConfig | None = None
    """Probe the embedding of held-out cells every few epochs; ``None`` does not."""
    loggers: tuple[LoggerConfig, ...] = ()
    """Where to log beside ``history.csv``: each a ``kind`` and its options."""
    output: Path = Path("model")
    """Folder to save the model to; checkpoints and the history go to its ``run`` unless ``train.folder`` says else."""

    def __post_init__(self) -> None:
        settle_fields(self)
        check_objectives(self.terms)
        if (reads := self.tokenizer) is not None and (
            reads.parts or reads.modalities or reads.unmeasured != "error" or reads.cells_per_mean != 1
        ):
            raise ValueError(
                "Expected a tokenizer of one modality for pre-training, without `unmeasured` and `cells_per_mean`, which "
                f"are for screens, found modalities={reads.modalities}, unmeasured={reads.unmeasured!r} and "
                f"cells_per_mean={reads.cells_per_mean}."
            )
        if self.evaluate is not None and not self.data.validation:
            raise ValueError("Expected `data.validation` above 0 for `evaluate`, which probes cells held out, found 0.")
        if self.evaluate is not None and self.train.strategy == "fsdp":
            raise ValueError("Expected no `evaluate` with strategy='fsdp', which keeps no model in one piece.")
        # Sizes that do not fit each other are refused here, before cells are counted.
        family = family_named(self.family.name)
        describe(self, Vocabulary.from_genes(["A gene"], family.specials).extended(family.last))

    @property
    def terms(self) -> tuple[Objective, ...]:
        """Loss terms, those of the family's task where none are named."""
        if self.objectives is not None:
            return self.objectives
        return check_objectives(self.family.task.objectives)

    @property
    def hides(self) -> Corruption:
        """What is hidden, what the family's task hides where nothing is named."""
        if self.corruption is not None:
            return self.corruption
        return from_dict(Corruption, self.family.task.corruption)  # type: ignore[type-abstract]


def pretrain(
    config: PretrainConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    data: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
) -> CellModel:
    """Train a model from scratch and save it :cite:p:`Cui2024`.

    Parameters
    ----------
    config
        A :class:`PretrainConfig`, a mapping like it, or a YAML file that holds one.  A key that does not exist is
        refused.
    data
        Folder that relative paths of data start from; ``None`` takes the working directory.
    output
        Folder to save the model to; ``None`` takes that of the configuration.
    overwrite
        Replace a model in that folder.  A run that goes on from its last checkpoint, with ``train.resume``, may replace
        its own.

    Returns
    -------
    The model in eval mode, with its ``history``.  Writes to the output folder ``config.json``, ``vocab.json`` and
    ``model.safetensors``, and to its ``run`` the checkpoints and ``history.csv``.  With ``train.resume`` a run that was
    cut off goes on from its last checkpoint and ends where it would have ended.

    Raises
    ------
    ImportError
        If Lightning is not installed.
    FileNotFoundError
        If a file of the data is absent.
    FileExistsError
        If the output folder holds a model that may not be replaced, or another process trains there.
    OSError
        If the output cannot be written, or the disk has no room for the checkpoints.
    ValueError
        If the configuration has an unknown key or a value that cannot be.
    LossNotFiniteError
        If the loss becomes NaN or infinite.
    """
    config = read_config(config)
    folder = as_path("data", "." if data is None else data)
    target = as_path("output", config.output if output is None else output)
    run = target / "run" if config.train.folder is None else config.train.folder.expanduser()
    _check_output(target, run, resume=config.train.resume, overwrite=check_flag("overwrite", overwrite))
    columns = () if config.evaluate is None else (config.evaluate.label_key,)
    with open_collection(config.data, folder, genes=config.vocabulary.name, columns=columns) as collection:
        counts = collection.count_cells()
        sample = sampled(collection.cells("train"), config.statistics.cells, config.data.rng)
        vocabulary = _vocabulary(config, collection, counts, folder, sample)
        if describe(config, vocabulary).tokenizer.depth:
            vocabulary = vocabulary.extended(DEPTH_TOKENS)
        tables = collection.tables(vocabulary, min_coverage=config.vocabulary.min_coverage)
        own = describe(config, vocabulary).tokenizer
        tokenizer = fitted(config.statistics, own, vocabulary, tables, sample)
        if tokenizer != own:
            config = replace(config, tokenizer=tokenizer)
        model = new_model(config, vocabulary)
        if isinstance(config.hides, NextTokens) and not model.encoder.ordered:
            raise ValueError(
                f"Expected a model that looks back only for the corruption 'next_tokens', found {config.family.name!r}, which "
                "would see what it is asked for. Take the family 'scmodelforge_causal', or another corruption."
            )
        for source in collection.sources:
            warn_about_units(source.units, model.config.tokenizer.expects)
        cells, terms = _cells(config, collection, tables, counts, model)
        optional("lightning", extra="train")
        # They are classes of Lightning's kind, so they can be imported only where Lightning is.
        from scgpt_tools.train.callbacks import History, Probe

        history = History(run / HISTORY)
        watchers: list[Callback] = []
        if config.evaluate is not None:
            probed = probed_cells(config.evaluate, collection, tables, model.tokenizer)
            watchers.append(Probe(*probed, every=config.evaluate.every))
        # Behind what it writes down.
        watchers.append(history)
        n_genes = sum(not vocabulary.is_special(token) for token in vocabulary)
        logger.info(
            "Training on %d cells and %d genes of %d files.", len(cells.train), n_genes, len(collection.sources)
        )
        # Weights, the two moments of the optimiser and a copy that is being written; and the best weights and the model.
        check_room(run, 10 * sum(parameter.nbytes for parameter in model.parameters()))
        settings = replace(config.train, folder=run)
        fit(
            model,
            cells,
            terms,
            settings,
            callbacks=watchers,
            loggers=config.loggers,
            description={"task": "pretrain"},
        )
    model.name, model.history = target.resolve().name, history.table
    if this_process()[0] == 0:
        model.save(target)
    return model


def _check_output(target: Path, run: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse what could not be written after a long run, or should not."""
    formats.check_target(target)
    for place in (target, run):
        if place.exists() and not place.is_dir():
            raise FileExistsError(f"Expected a folder for the output, found the file '{place}'.")
        check_place(place)
    goes_on = resume and (run / "last.ckpt").is_file()
    if (
        formats.FORMATS["native"].layout.weights_in(partial(placed, target))
        and not overwrite
        and not goes_on
        and this_process()[0] == 0
    ):
        raise FileExistsError(
            f"Expected an output folder without a model, found one in '{target}'. Choose another, or pass overwrite=True, "
            "--overwrite in a shell, to replace it."
        )


def read_config(config: PretrainConfig | Mapping[str, Any] | str | PathLike[str]) -> PretrainConfig:
    """Read a configuration in any of the forms that :func:`pretrain` takes."""
    if isinstance(config, PretrainConfig):
        return config
    return (
        from_dict(PretrainConfig, config)
        if isinstance(config, Mapping)
        else from_yaml(PretrainConfig, as_path("config", config))
    )


def describe(config: PretrainConfig, vocabulary: Vocabulary) -> ModelConfig:
    """Describe the model of a configuration, as its family does."""
    described = family_named(config.family.name).config(
        vocabulary,
        **config.family.sizes,
        **{**config.family.task.options, **config.family.options},
        generation=config.hides.generates,
        tokenizer=config.tokenizer,
    )
    return with_heads(described, config.terms)


def new_model(config: PretrainConfig, vocabulary: Vocabulary) -> CellModel:
    """Untrained model of a configuration; its weights depend on ``train.rng`` and the vocabulary only."""
    with own_random_numbers(config.train.seed), torch.no_grad():
        model = CellModel(describe(config, vocabulary), vocabulary)
        encoder = model.encoder
        for name in encoder.maps(target for target in ("value", "out") if target in encoder.adapted):
            encoder.get_parameter(f"{name}.weight").mul_(config.family.gain)
    return model


def _vocabulary(
    config: PretrainConfig, collection: Collection, counts: pd.DataFrame, folder: Path, sample: NDArray[np.int64]
) -> Vocabulary:
    family, asked = family_named(config.family.name), config.vocabulary
    if asked.path is not None:
        path = folder / asked.path.expanduser()
        if path.suffix == ".csv":
            return read_gene_table(path)
        return Vocabulary.from_file(path).extended((*family.specials, *family.last))
    genes = expressed_genes(counts, asked)
    if asked.highly_variable is not None:
        genes = highly_variable(collection, genes, asked.highly_variable, sample)
    return Vocabulary.from_genes(genes, family.specials).extended(family.last)


def _cells(
    config: PretrainConfig,
    collection: Collection,
    tables: Sequence[CellTable],
    counts: pd.DataFrame,
    model: CellModel,
) -> tuple[CellDataModule, tuple[Objective, ...]]:
    """Cells to train on, and the loss terms, both with what they have to know of the cells beforehand."""
    tokenizer, terms = model.tokenizer, config.terms
    corruption = config.hides.of(tokenizer)
    uncounted = [term for term in terms if isinstance(term, MaskedBins) and term.counted and term.counts is None]
    if uncounted or (isinstance(corruption, MaskBins) and corruption.chances is None):
        bins = count_bins(CellDataModule(tables, tokenizer, train=collection.cells("train")), seed=config.train.seed)
        logger.info("Values of each bin in the training cells: %s.", ", ".join(f"{count:,}" for count in bins))
        if isinstance(corruption, MaskBins):
            corruption = corruption.knowing(bins)
        terms = tuple(replace(term, counts=(0.0, *map(float, bins))) if term in uncounted else term for term in terms)
    if isinstance(corruption, GenerateExpression):
        # It chooses among all genes itself; the model is to see expressed ones only.
        tokenizer = Tokenizer(replace(model.config.tokenizer, genes="all", length=None), model.vocabulary)
        share = (counts["expressing"] / counts["measured"]).reindex(model.vocabulary.tokens, fill_value=0.0)
        corruption = corruption.knowing(torch.tensor(share.to_numpy(), dtype=torch.float32))
    cells = CellDataModule(
        tables,
        tokenizer,
        corruption=corruption,
        train=collection.cells("train"),
        validation=collection.cells("validation"),
        sampling=config.data.sampling,
        block=config.data.block,
        blocks=config.data.blocks,
        curriculum=config.data.curriculum,
        replacement=config.data.replacement,
        minibatch_genes=config.data.minibatch_genes,
    )
    return cells, terms
