"""Models that learn from files: cells are read, divided if they have to be, and what comes out is saved and scored."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools import datasets, pp, tl
from scgpt_tools._warnings import warn_user
from scgpt_tools.cli.files import free_folder
from scgpt_tools.cli.reports import check_report
from scgpt_tools.cli.training import RUN
from scgpt_tools.config import from_dict
from scgpt_tools.data.epochs import this_process
from scgpt_tools.data.stores import open_mudata, open_table
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.perturbation import open_predictor
from scgpt_tools.models import parse_model_type, to_scgenept
from scgpt_tools.models.gene_classifier import N_GENES
from scgpt_tools.screens.conditions import control_mask, read_direction, read_labels
from scgpt_tools.tokens.corruptions import Corruption
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import condition_genes, perturbed_genes
from scgpt_tools.train import LoraConfig
from scgpt_tools.train.gene_classifier import fit_gene_classifier
from scgpt_tools.train.loggers import LoggerConfig
from scgpt_tools.train.runs import LAST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from scgpt_tools.models import CellModel
    from scgpt_tools.tokens.matching import Duplicates

logger = logging.getLogger("scgpt_tools.cli")

# What a model of scGenePT is started with, beside its model type.
_START = ("gene_embeddings", "missing", "frozen", "rank", "compat")
# What training and evaluation of a screen read cells by.
_READ = ("within", "layer", "genes", "symbols", "aliases", "ignore_case", "duplicates")


def finetune_files(learn: Callable[..., CellModel], options: dict[str, Any]) -> None:
    """Fine-tune a model on a table or a data set, and write all that comes of it.

    ``learn``: the function that does it; ``options``: its arguments by name, ``input``, ``output``, ``overwrite``,
    scGenePT's ``model_type`` and what else :func:`scgpt_tools.models.to_scgenept` takes.
    """
    source, output, overwrite = (options.pop(name) for name in ("input", "output", "overwrite"))
    kind, start = options.pop("model_type"), {name: options.pop(name) for name in _START}
    start = {name: value for name, value in start.items() if value}
    task = options.setdefault("task", "annotate" if kind is None else "perturb")
    if kind is not None and task != "perturb":
        raise ValueError(f"Expected --model_type with --task perturb only, found it with {task!r}.")
    if kind is None and start:
        raise ValueError(
            f"Expected --{next(iter(start))} with --model_type, found it without. Name a model type of scGenePT."
        )
    model: Any = options.pop("model", "scgpt-human")
    options["folder"] = options.get("folder") or str(Path(output) / RUN)
    goes_on = options.get("resume", False) and (Path(options["folder"]) / LAST).is_file()
    place = free_folder(output, overwrite=overwrite or goes_on)
    for name, cls in (("lora", LoraConfig), ("corruption", Corruption)):
        if isinstance(options.get(name), dict):
            options[name] = from_dict(cls, options[name], where=name)
    options["loggers"] = [from_dict(LoggerConfig, entry, where="loggers") for entry in options.get("loggers") or []]
    if kind is not None:
        parse_model_type(kind)  # refuses names that cannot be, before cells are read
    with _opened(source, options) as cells:
        if task == "perturb":
            _finetune_on_screen(learn, cells, model, place, options, kind=kind, start=start)
            return
        tuned = learn(cells, model, **options)
    if _writes():
        _save(tuned, place, options["folder"])


def _finetune_on_screen(
    learn: Callable[..., CellModel],
    cells: Any,
    model: Any,
    place: Path,
    options: dict[str, Any],
    *,
    kind: str | None,
    start: Mapping[str, Any],
) -> None:
    """Divide the perturbations unless they are, fine-tune, and score what was held out beside baselines."""
    condition_key, rng = options.get("condition_key", "condition"), options.get("rng", 0)
    split = options.setdefault("validation", "split")
    # What the file says of the direction would be lost where its conditions are read once more.
    direction = options.get("direction") or read_direction(cells, condition_key)
    pp.parse_conditions(cells, condition_key, genes=options.get("genes"), direction=direction, key_added=condition_key)
    if isinstance(split, str) and split not in cells.obs:
        pp.perturbation_split(cells, condition_key=condition_key, rng=rng, key_added=split)
    if kind is not None:
        model = _started(model, kind, cells, options.get("genes"), rng=rng, **start)
    tuned = learn(cells, model, **options)
    if not _writes():
        return
    _save(tuned, place, options["folder"])
    read = {name: options[name] for name in _READ if name in options}
    if isinstance(split, str) and _leave_out(cells, tuned, condition_key, split, read):
        scores = tl.evaluate_perturbation(
            cells, {"model": tuned}, condition_key=condition_key, split=split, rng=rng, **read
        )
        scores.table.to_csv(place / "scores.csv", index=False)
        print(scores)
        logger.info("Wrote the scores to %s.", place / "scores.csv")


def _started(model: Any, kind: str, cells: Any, column: str | None, *, rng: Any, **start: Any) -> CellModel:
    """A model of scGenePT, with the published embeddings unless others are named."""
    compat = start.get("compat")
    sources = parse_model_type(kind, compat=compat).sources
    if sources and "gene_embeddings" not in start:
        start["gene_embeddings"] = {name: datasets.gene_embeddings(source) for name, source in sources.items()}
    genes = [name for name in column_names(cells.var, column) if name is not None] if compat else None
    return to_scgenept(model, kind, genes=genes, rng=rng, **start)


def _leave_out(cells: Any, tuned: CellModel, condition_key: str, split: str, read: Mapping[str, Any]) -> bool:
    """Take conditions that a model cannot be asked for out of the test of a screen; whether any are left.

    ``read``: how cells are read, as in training.
    """
    request = Request(**{name: value for name, value in read.items() if name != "within"})
    tokens = open_predictor(cells, tuned, request, key=condition_key).tokens
    labels, parts = read_labels(cells, condition_key), cells.obs[split].astype(str).to_numpy()
    tested = parts == "test"
    lost = set(tokens.unmapped(perturbed_genes(set(labels[tested]))).genes)
    unknown = [label for label in sorted(set(labels[tested])) if lost & {*condition_genes(label)}]
    if unknown:
        warn_user(
            f"{len(unknown)} conditions of the test are left out of the scores, because genes that they perturb have no column "
            f"or no token of {tuned.name!r}: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}."
        )
        parts[tested & np.isin(labels, unknown)] = "left out"
        cells.obs[split] = parts
    if not (found := bool(np.any((parts == "test") & ~control_mask(labels)))):
        logger.info("No condition is left to score.")
    return found


def gene_classifier(
    input: str,
    *,
    label_key: str,
    output: str,
    overwrite: bool = False,
    layer: str | None = None,
    genes: str | None = None,
    duplicates: Duplicates = "most_counts",
    modality: str | None = None,
    n_genes: int = N_GENES,
    n_cells: int = 20_000,
    strength: float = 1.0,
    rng: int = 0,
) -> None:
    """Fit logistic regression on genes to annotated cells, to vote beside models: annotate --model [model,genes.npz].

    Parameters
    ----------
    input
        Table with annotated cells: .h5ad, .h5mu or .zarr.  It is read in blocks.
    label_key
        Column of ``obs`` with the types; cells without one are left out.
    output
        File for the classifier, .npz.
    overwrite
        Replace the output if it exists.
    layer
        Key of ``layers`` with counts or log1p values; none takes ``X``.
    genes
        Column of ``var`` with the names of the genes; none takes ``var_names``.
    duplicates
        What to do with several columns of one name: ``most_counts`` or ``first`` reads one of them, ``error`` refuses.
    modality
        Which modality of a MuData to read.
    n_genes
        Genes of the largest variance to look at.
    n_cells
        Most cells to fit to; of more, so many are drawn, of rare types up to 50 each.
    strength
        Inverse of the penalty on weights.
    rng
        Seed of the draw.
    """
    path = check_report(output, overwrite=overwrite, endings=(".npz",), what="the classifier")
    with open_table(input, modality=modality) as table:
        classifier = fit_gene_classifier(
            table,
            label_key=label_key,
            layer=layer,
            genes=genes,
            duplicates=duplicates,
            n_genes=n_genes,
            n_cells=n_cells,
            strength=strength,
            rng=rng,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    classifier.save(path)
    logger.info("Wrote %r to %s.", classifier, path)


@contextmanager
def _opened(source: str, options: dict[str, Any]) -> Iterator[Any]:
    """The cells: a table, all modalities of a MuData, or a data set by its name."""
    path, modality = Path(source), options.get("modality")
    if not path.exists() and not path.suffix:
        yield datasets.load(source)
    elif path.suffix == ".h5mu" and modality is None:
        with open_mudata(path) as mdata:
            yield mdata
    else:
        options.pop("modality", None)
        with open_table(path, modality=modality, embeddings=True) as table:
            # Single cells out of compressed blocks of a file take long; runs of neighbours do not.
            yield table if options.get("sampling") == "blocks" else table.to_memory()


def _writes() -> bool:
    """Whether this is the one of all processes that writes: others would write the same files at the same time."""
    return this_process()[0] == 0


def _save(tuned: CellModel, place: Path, run: str) -> None:
    """Write the model and its history, and say so."""
    tuned.save(place)
    if tuned.history is not None:
        tuned.history.to_csv(place / "history.csv")
    logger.info("Wrote the model to %s, with its history (history.csv), and its checkpoints to %s.", place, run)
