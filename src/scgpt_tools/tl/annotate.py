"""Cell types by a fine-tuned classifier."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import AnnotateKeys
from scgpt_tools._validate import as_seed, check_fraction
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import slots_of
from scgpt_tools.data.writing import check_new_key
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.committee import load_models, open_for_all, provenance_of_all
from scgpt_tools.inference.genes import open_genes
from scgpt_tools.inference.runner import class_probabilities, class_probabilities_and_distance
from scgpt_tools.models.config import ClassifierConfig
from scgpt_tools.models.gene_classifier import GeneClassifier
from scgpt_tools.nn.reference_cells import REFERENCE_CELLS
from scgpt_tools.tl._labels import check_unassigned, write_labels
from scgpt_tools.tl._strangeness import least_p_values, strangeness, write_strangeness
from scgpt_tools.tokens.coverage import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools._types import AttentionBackend, Layers, RngLike
    from scgpt_tools.inference.cells import Cells, Computed
    from scgpt_tools.inference.committee import AnyModel
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)


@renamed(batch="batch_key")
@shared_docs
def annotate(
    query: AnnData | MuData,
    model: AnyModel | GeneClassifier | Sequence[AnyModel | GeneClassifier],
    *,
    threshold: float = 0.0,
    reject: float = 0.0,
    unassigned: str = "unassigned",
    layer: Layers = None,
    tokens: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    modality: str | None = None,
    batch_key: str | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    key_added: str = "scgpt_cell_type",
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Name the type of each cell with a model that was fine-tuned to :cite:p:`Cui2024`.

    The model knows the classes that it was trained on and no others: a cell of a new type gets the nearest of them,
    often with high confidence.  How far it lies from the cells of the training says more; see ``reject``.

    Parameters
    ----------
    query
        Cells to annotate; may be backed, lazy or a view.  Nothing but the keys below is changed, and only at the end.
    model
        Result of :func:`scgpt_tools.train.finetune` with ``task="annotate"``, or the folder that it was saved to.  Of
        several models with the same classes, such as of one recipe with several seeds, the mean of their probabilities
        is taken, which is more often right than each of them :cite:p:`Lakshminarayanan2017`.  Beside one such model or more,
        classifiers on genes (:func:`scgpt_tools.train.fit_gene_classifier`) or their ``.npz`` files may take part.
    threshold
        Leave cells whose most likely class is less likely than this without a class.
    reject
        Leave cells without a class that lie farther from the cells that the model was trained on than held-out cells do:
        of the cells of a known type, about this share is lost.  0.05 is usual, 0 rejects none.
    unassigned
        What such cells get, and cells without any known expressed gene, with a confidence of 0.
    {layers}
    tokens
        Layer that :func:`scgpt_tools.pp.tokenize` wrote, instead of ``layer`` and of the arguments about names.
    {genes}
    {matching}
    {modality}
    {batch_key}
    batch_size
        Cells computed at once; the result does not depend on it, except for models whose encoder sees padding, such as
        DeepSC, of which ``params`` has it.
    {device}
    {precision}
    {attention}
    {rng}
    key_added
        Column of the result, and beginning of the other names.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, into the modality if one is named,

    ``obs[key_added]`` : categorical
        Class of each cell.
    ``obs[f"{key_added}_confidence"]`` : float32
        Probability of the most likely class, by the model's own account; it is not calibrated.
    ``obs[f"{key_added}_distance"]`` : float32
        Mean squared distance, of vectors of unit length, to the nearest cells of the training; large for a cell that is
        like none of them.  Of models that validated on held-out cells, as is the next.
    ``obs[f"{key_added}_p_value"]`` : float32
        Conformal p-value for being a cell of that class, by this distance; of several models the mean.
    ``obsm[f"{key_added}_probabilities"]`` : float32, (cells, classes)
        Probability of every class, in the order of ``uns[key_added]["classes"]``.
    ``uns[key_added]`` : :class:`dict`
        ``classes``, and provenance as :func:`scgpt_tools.tl.embed` leaves it of the first model, with the names and checksums of all.

    Raises
    ------
    KeyError
        If ``layer``, ``tokens``, ``genes``, ``modality`` or ``batch_key`` is absent; the message lists what is there.
    ValueError
        If the model has no classes, several models have not the same, cells are to be rejected and no model has held-out
        cells to judge distances by, no gene is in the vocabulary, a value is
        negative, missing or infinite, a result is not finite, or ``key_added`` is the name of something else.

    Warns
    -----
    UserWarning
        If cells express no known gene, held-out cells of a class are too few to reject any at that level, and as
        :func:`scgpt_tools.tl.embed` does.

    Notes
    -----
    P-values mean what they say for cells that differ from the training no more than its held-out cells do: those of one
    technology or donor among others are known, and a new technology moves all cells away.  Hold out whole donors or
    batches (a column for ``validation``) to have them allow for that.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(reference, "scgpt-demo", task="annotate", label_key="cell_type")  # doctest: +SKIP
    >>> sct.tl.annotate(query, model, threshold=0.5)  # doctest: +SKIP
    >>> query.obs[["scgpt_cell_type", "scgpt_cell_type_confidence"]]  # doctest: +SKIP
    """
    check_arguments(annotate, locals())
    beside = AnnotateKeys(key_added).beside
    check_new_key(slots_of(query, modality), "obs", key_added, default=AnnotateKeys.key, beside=beside)
    request = Request(
        layer=layer,
        tokens=tokens,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        modality=modality,
        batch_key=batch_key,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=as_seed(rng),
        copy=copy,
    )
    models, plain = _members(model, device)
    classes = _common_classes([*models, *plain])
    check_unassigned(unassigned, classes)
    _check_reject(reject, models, classes)
    opened = open_for_all(query, models, [request] * len(models))
    on_genes = [open_genes(opened[0], classifier) for classifier in plain]
    computed = [_compute(cells, len(classes), show_progress=show_progress) for cells in opened]
    answers = [*(values[:, : len(classes)] for values, _ in computed), *(cells.probabilities() for cells in on_genes)]
    probabilities = np.mean(answers, axis=0)
    winner = probabilities.argmax(axis=1)
    strange = strangeness(models, [values[:, len(classes) :] for values, _ in computed], winner)
    # What one of the models has seen nothing of has no class.
    empty = np.array([(expressed <= 0).all(axis=1) for _, expressed in computed])
    least = int(empty.sum(axis=1).argmax())
    opened[least].warn_about_empty(
        computed[least].expressed, f"Cells without any known feature get no class but {unassigned!r}."
    )
    keys = AnnotateKeys(key_added)
    about = provenance_of_all(
        opened[0].provenance(threshold=threshold, reject=reject, unassigned=unassigned), [*models, *plain]
    )
    result = query.copy() if copy else query
    table = slots_of(result, modality)
    left_out = write_labels(
        table,
        keys,
        winner=winner,
        probabilities=probabilities,
        classes=classes,
        threshold=threshold,
        unassigned=unassigned,
        about=about,
        without=np.asarray(empty.any(axis=0)),
        rejected=None if strange is None else strange.p_values <= reject,
    )
    write_strangeness(table, keys, strange)
    logger.info("Added `obs[%r]`; %d of %d cells are %s.", keys.obs, left_out, len(probabilities), unassigned)
    return result if copy else None


def _members(given: Any, device: str | torch.device | None) -> tuple[list[CellModel], list[GeneClassifier]]:
    """The networks of a committee, loaded, and its classifiers on genes."""
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str | PathLike) else [given]
    several = [
        GeneClassifier.load(one) if isinstance(one, str | PathLike) and Path(one).suffix == ".npz" else one
        for one in several
    ]
    plain = [one for one in several if isinstance(one, GeneClassifier)]
    models = (
        load_models([one for one in several if not isinstance(one, GeneClassifier)], device)
        if len(plain) < len(several)
        else []
    )
    if not models:
        raise ValueError(
            f"Expected one `model` or more, found {'classifiers on genes alone' if plain else 'an empty list'}."
        )
    return models, plain


def _common_classes(models: Sequence[CellModel | GeneClassifier]) -> tuple[str, ...]:
    classes = _classes(models[0])
    for other in models[1:]:
        if _classes(other) != classes:
            raise ValueError(
                f"Expected models with the same classes in the same order, found {list(classes)} in "
                f"{models[0].name!r} and {list(_classes(other))} in {other.name!r}."
            )
    return classes


def _check_reject(reject: float, models: Sequence[CellModel], classes: Sequence[str]) -> None:
    check_fraction("reject", reject, one=False)
    if not reject:
        return
    least = least_p_values(models, len(classes))
    if least is None:
        raise ValueError(
            "Expected a model with held-out cells to judge distances by, found none to reject cells with. Fine-tune with "
            "cells to validate on, or leave `reject` out."
        )
    never = tuple(name for name, value in zip(classes, least, strict=True) if value > reject)
    if never:
        worst = float(least.max())
        warn_user(
            f"Expected {int(np.ceil(1 / reject)) - 1} held-out cells or more to reject cells at {reject:g}, found "
            f"{round(1 / worst) - 1}, with which p-values are {worst:.2g} at least: none are rejected that get one of "
            f"{len(never)} of {len(classes)} classes ({some(never)}). Fine-tune with more cells to validate on."
        )


def _compute(cells: Cells, n_classes: int, *, show_progress: bool | None) -> Computed:
    """Probabilities, and in one more column the distance from the training if the model knows it."""
    model = cells.model
    # Cell embeddings only: the last layer need not compute the other tokens.
    embed_batch = partial(model.embed_cells, attention=cells.attention)
    finish, width = partial(class_probabilities, model), n_classes
    if REFERENCE_CELLS in model.heads:
        finish, width = partial(class_probabilities_and_distance, model), n_classes + 1
    return cells.compute(embed_batch, finish=finish, width=width, show_progress=show_progress)


def _classes(model: CellModel | GeneClassifier) -> tuple[str, ...]:
    if isinstance(model, GeneClassifier):
        return tuple(model.classes.tolist())
    classifier = model.config.heads.find("cell_type", ClassifierConfig)
    if classifier is None or classifier.classes < 2:
        raise ValueError(
            f"Expected a model that was fine-tuned to tell cell types apart, found {model.name!r}, which was not. Make "
            "one with `sct.train.finetune(reference, model, task='annotate', label_key=...)`."
        )
    # scGPT's own checkpoints keep no names.
    return classifier.names or tuple(str(number) for number in range(classifier.classes))
