"""Commands that use a fine-tuned model: what it predicts, and how good that is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from scgpt_tools import tl
from scgpt_tools.cli.reports import check_report, table_writer
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.data.stores import open_table
from scgpt_tools.inference.kernel import KERNEL
from scgpt_tools.metrics.annotation import class_scores, score_annotation
from scgpt_tools.models import CellModel
from scgpt_tools.models.config import ClassifierConfig, PerturbationConfig, RegressorConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tl.benchmark import Baseline
    from scgpt_tools.tokens.matching import Duplicates

logger = logging.getLogger("scgpt_tools.cli")


def choose_prediction(
    options: dict[str, Any], *, task: Literal["auto", "annotate", "regress", "perturb", "impute"] = "auto"
) -> tuple[str, dict[str, Any]]:
    """Predict what a model was fine-tuned for.

    Parameters
    ----------
    task
        What to predict; by default what the model was fine-tuned for.
    """
    if options.get("model") == KERNEL and task == "auto":
        task = "perturb"
    if "model" not in options and task != "perturb":
        raise ValueError("Expected --model, the folder of a fine-tuned model, found none.")
    if options.get("bootstrap"):
        # A control that is drawn twice has one row in a layer only.
        options = {**options, "as_anndata": True}
    if task == "auto":
        model, models = _loaded(options["model"], options.get("device"))
        return task_of(model), {**options, "model": models}
    return task, options


def _loaded(given: Any, device: str | None) -> tuple[CellModel, Any]:
    """The first network of those that were named, and all of them with it in the place of its name."""
    several = [given] if isinstance(given, str) else list(given)
    place = next((place for place, one in enumerate(several) if not str(one).endswith(".npz")), None)
    if place is None:
        raise ValueError(
            f"Expected --model to name a network, beside which classifiers on genes vote, found {given!r}."
        )
    model = CellModel.from_pretrained(several[place], device=device)
    return model, model if isinstance(given, str) else [*several[:place], model, *several[place + 1 :]]


def task_of(model: CellModel) -> str:
    """What a model was fine-tuned for."""
    if model.config.embedder.parts.find("perturbation", PerturbationConfig) is not None:
        return "perturb"
    if model.config.heads.find("cell_type", ClassifierConfig) is not None:
        return "annotate"
    if model.config.heads.find("targets", RegressorConfig) is not None:
        return "regress"
    if len(model.config.tokenizer.parts) > 1:
        return "impute"
    raise ValueError(
        f"Expected a model that was fine-tuned to predict something, found {model.name!r} with the heads "
        f"{list(model.heads)}. Make one with `scgpt-tools finetune`, or embed cells with `scgpt-tools embed`."
    )


def choose_evaluation(
    options: dict[str, Any], *, task: Literal["auto", "annotate", "perturb", "embedding"] = "auto"
) -> tuple[str, dict[str, Any]]:
    """Score what a model predicts, or an embedding, against what is known.

    Parameters
    ----------
    task
        What to score; by default what the model was fine-tuned for, and the embedding where no model is named.
    """
    if task == "auto" and "model" not in options:
        return "embedding", options
    if task == "auto" and options["model"] == KERNEL:
        task = "perturb"
    if task == "auto":
        model, models = _loaded(options["model"], options.get("device"))
        found = task_of(model)
        if found not in ("annotate", "perturb"):
            raise ValueError(
                f"Expected a model that predicts cell types or perturbations, found {model.name!r}, which was fine-tuned to "
                f"{found}. Embed the cells, and score the embedding with --task embedding."
            )
        return found, {**options, "model": models}
    return task, options


def evaluate_annotation(
    input: str,
    *,
    model: Any,
    label_key: str,
    output: str | None = None,
    overwrite: bool = False,
    threshold: float = 0.0,
    layer: str | None = None,
    genes: str | None = None,
    symbols: Any = None,
    aliases: Any = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    modality: str | None = None,
    batch_key: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
    precision: Precision = "auto",
    rng: int = 0,
) -> None:
    """Score predicted cell types, all and each, beside the share of the largest type.

    Parameters
    ----------
    input
        Table with cells: .h5ad, .h5mu or .zarr.
    model
        Result of `finetune --task annotate`, or several, whose answers are averaged, as ``[one,two,genes.npz]``.
    label_key
        Column of ``obs`` with the true types; cells without one do not count.
    output
        File for the scores, .csv, .tsv or .json; none prints them only.
    overwrite
        Replace the output if it exists.
    threshold
        Leave cells whose most likely class is less likely than this without a class; they count as missed.
    layer
        Key of ``layers`` to read; none takes ``X``.
    genes
        Column of ``var`` with the gene names that the vocabulary holds; none takes ``var_names``.
    symbols, aliases, ignore_case, duplicates
        How to match names to the vocabulary.
    modality
        Which modality of a MuData to read.
    batch_key
        Column of ``obs`` with batches, for models that need it.
    batch_size
        Cells computed at once.
    device
        What to compute on; none takes a GPU if there is one.
    precision
        Number format of matrix products.
    rng
        Seed of the draw of genes of long cells.
    """
    write = table_writer(output, overwrite=overwrite)
    with open_table(input, modality=modality) as table:
        # As training reads them: an empty label is none, and 1.0 is the class "1".
        known = read_classes(table.obs, label_key, allow_unknown=True)
        truth = pd.Series([None if code == UNKNOWN else known.names[code] for code in known.codes])
        tl.annotate(
            table,
            model,
            threshold=threshold,
            layer=layer,
            genes=genes,
            symbols=symbols,
            aliases=aliases,
            ignore_case=ignore_case,
            duplicates=duplicates,
            batch_key=batch_key,
            batch_size=batch_size,
            device=device,
            precision=precision,
            rng=rng,
        )
        predicted = table.obs["scgpt_cell_type"]
    scores: dict[str, float] = {**score_annotation(truth, predicted)._asdict()}
    scores["largest_class"] = float(truth.value_counts(normalize=True).max())
    table_of_all = pd.DataFrame([{"class": "all cells", "cells": int(truth.notna().sum()), **scores}])
    each = class_scores(truth, predicted).reset_index()
    print(table_of_all.drop(columns="class").to_string(index=False, float_format="{:.3f}".format))
    print()
    print(each.to_string(index=False, float_format="{:.3f}".format))
    write(pd.concat([table_of_all, each], ignore_index=True))


def evaluate_perturbation(
    input: str,
    *,
    model: Any,
    output: str | None = None,
    overwrite: bool = False,
    condition_key: str = "condition",
    split: str | None = "split",
    part: str = "test",
    within: str | None = None,
    layer: str | None = None,
    genes: str | None = None,
    symbols: Any = None,
    aliases: Any = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    metrics: Sequence[str] | None = None,
    cells: bool = False,
    n_controls: int = 300,
    bootstrap: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    precision: Precision = "auto",
    rng: int = 0,
) -> None:
    """Score predictions of held-out perturbations beside every baseline and the ceiling.

    Parameters
    ----------
    input
        Table with log-normalised cells: .h5ad, .h5mu or .zarr.
    model
        Result of `finetune --task perturb`, or the name of a layer with predictions.
    output
        File for the scores, .csv, .tsv or .json; none prints them only.
    overwrite
        Replace the output if it exists.
    condition_key
        Column of ``obs`` with the conditions.
    split
        Column of ``obs`` with the parts; null scores all conditions and trains no baseline.
    part
        Part to score.
    within
        Column of ``obs`` that a cell and its control share.
    layer
        Key of ``layers`` to read; none takes ``X``.
    genes
        Column of ``var`` with the gene names that the vocabulary holds; none takes ``var_names``.
    symbols, aliases, ignore_case, duplicates
        How to match names to the vocabulary.
    metrics
        Names of the metrics; none takes the usual ones.
    cells
        Score distributions of cells as well.
    n_controls
        Controls to predict each condition from.
    bootstrap
        Draw exactly so many of them with replacement, as scGenePT does.
    batch_size
        Cells computed at once.
    device
        What to compute on; none takes a GPU if there is one.
    precision
        Number format of matrix products.
    rng
        Seed of what is drawn.
    """
    write = table_writer(output, overwrite=overwrite)
    with open_table(input) as table:
        adata = table.to_memory()
    scores = tl.evaluate_perturbation(
        adata,
        {"model": model},
        condition_key=condition_key,
        split=split,
        part=part,
        within=within,
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        metrics=metrics,
        cells=cells,
        n_controls=n_controls,
        bootstrap=bootstrap,
        batch_size=batch_size,
        device=device,
        precision=precision,
        rng=rng,
    )
    print(scores)
    write(scores.table)


def evaluate_embedding(
    input: str,
    *,
    label_key: str,
    batch_key: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    embeddings: Sequence[str] = ("X_scGPT",),
    kbet: bool = False,
    layer: str | None = None,
    n_top_genes: int = 2000,
    modality: str | None = None,
    n_jobs: int = 1,
) -> None:
    """Score embeddings for cell types kept and batches mixed, as scIB does, beside PCA and variable genes.

    Parameters
    ----------
    input
        Table with embedded cells: .h5ad, .h5mu or .zarr.
    label_key
        Column of ``obs`` with cell types.
    batch_key
        Column of ``obs`` with technical batches; none scores cell types only.
    output
        File for the scores, .csv, .tsv or .json; none prints them only.
    overwrite
        Replace the output if it exists.
    embeddings
        Keys of ``obsm`` to score, as ``[X_scGPT, X_scVI]``.
    kbet
        Also compute kBET, which takes longer than all other scores together.
    layer
        Counts or log-normalised values to compute baselines from; none takes ``X``.
    n_top_genes
        Number of variable genes.
    modality
        Which modality of a MuData to read.
    n_jobs
        Threads of the neighbour search above 20,000 cells.
    """
    write = table_writer(output, overwrite=overwrite)
    with open_table(input, modality=modality, embeddings=True) as table:
        cells = table.to_memory()
    scores = tl.score_embedding(
        cells,
        label_key=label_key,
        batch_key=batch_key,
        embeddings=list(embeddings),
        kbet=kbet,
        layer=layer,
        n_top_genes=n_top_genes,
        n_jobs=n_jobs,
    )
    print(scores.T.to_string(float_format="{:.3f}".format))
    write(scores.rename_axis("embedding").reset_index())


def benchmark(
    *,
    model: Any,
    data: Any,
    benchmarks: Any = "linear_probe",
    output: str | None = None,
    overwrite: bool = False,
    baselines: Sequence[Baseline] = ("pca", "untrained"),
    n_seeds: int = 5,
    layer: str | None = None,
    genes: str | None = None,
    symbols: Any = None,
    aliases: Any = None,
    ignore_case: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    precision: Precision = "auto",
    rng: int = 0,
) -> None:
    """Ask embeddings of several models the same questions, beside simple baselines.

    Parameters
    ----------
    model
        A model, several as ``[scgpt-demo, model]``, or by names of your own, ``{mine: model/run/best.ckpt}``: released
        names, repositories of the Hugging Face Hub, folders or files of weights.
    data
        A table in .h5ad or .zarr, or several in the same ways.
    benchmarks
        A name, a mapping of a name and settings, or a list of these: ``linear_probe``, ``embedding_quality`` (extra ``scib``),
        ``perturbation`` and ``grn_inference``, as ``[{name: linear_probe, label_key: cell_type}]``.
    output
        File for the scores: .json has all that is known, .csv the table alone; none prints them only.
    overwrite
        Replace the output if it exists.
    baselines
        What stands beside the models: ``pca`` of the same cells, and ``untrained``, each model with fresh weights.
    n_seeds
        How often to divide or draw the cells.
    layer
        Key of ``layers`` to read; none takes ``X``.
    genes
        Column of ``var`` with the gene names that the vocabularies hold; none takes ``var_names``.
    symbols, aliases, ignore_case
        How to match names to the vocabularies.
    batch_size
        Cells computed at once.
    device
        What to compute on; none takes a GPU if there is one.
    precision
        Number format of matrix products.
    rng
        The first seed; the others follow it.
    """
    path = None if output is None else check_report(output, overwrite=overwrite, endings=(".json", ".csv"))
    scores = tl.benchmark(
        model,
        data,
        benchmarks,
        baselines=list(baselines),
        n_seeds=n_seeds,
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        batch_size=batch_size,
        device=device,
        precision=precision,
        rng=rng,
    )
    print(scores)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        scores.save(path)
        logger.info("Wrote the scores to %s.", path)


# ------------------------------------------------------------------------------------------------------------ files
