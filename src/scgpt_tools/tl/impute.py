"""Modalities that were not measured, from those that were."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import ImputeKeys
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._validate import as_seed, check_key_name
from scgpt_tools.data.writing import check_new_key
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.committee import load_models, open_for_all, provenance_of_all
from scgpt_tools.inference.imputing import HEADS, in_unit_of_data, query_values, tokens_of, unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from mudata import MuData

    from scgpt_tools._types import AttentionBackend, Layers, RngLike
    from scgpt_tools.inference.cells import Cells, Computed
    from scgpt_tools.inference.committee import AnyModel
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.modalities import ModalityConfig
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)


@renamed(batch="batch_key")
@shared_docs
def impute(
    mdata: MuData,
    model: AnyModel | Sequence[AnyModel],
    *,
    modality: str,
    features: Sequence[str] | None = None,
    layer: Layers = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    batch_key: str | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    key_added: str | None = None,
    show_progress: bool | None = None,
    copy: bool = False,
) -> MuData | None:
    """Predict a modality of every cell from its other modalities :cite:p:`Cui2024`.

    What was measured of the modality is not looked at, so where it was, prediction and measurement can be compared, and
    where it was not, the prediction stands for it.

    Parameters
    ----------
    mdata
        Cells; those without a measurement in any other modality get what a model knows of no cell in particular.
    model
        Result of :func:`scgpt_tools.train.finetune` with ``task="multiomic"`` on cells that were measured in both, or
        the folder that it was saved to.  Of several models, such as of one recipe with several seeds, the mean of their
        predictions is taken, which is nearer to the truth than most of them :cite:p:`Lakshminarayanan2017`.
    modality
        What to predict; ``mdata`` need not have it.
    features
        Features to predict; ``None`` for all that the first model knows.
    layer
        Key of ``layers`` to read of the other modalities, one for all or one for each; ``None`` takes ``X``.
    {genes}
    {matching}
    batch_key
        Column of ``obs`` with the technical batch of each cell, if the model was trained with it.
    batch_size
        Cells computed at once; the result does not depend on it.
    {device}
    {precision}
    attention
        Backend; ``None`` takes the fastest that the device has, and one that is named must know generated tokens, as
        ``"sdpa"`` does.
    {rng}
    key_added
        Key of the result in ``obsm`` and ``uns``; ``None`` takes the modality's name with ``"_imputed"``.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``obsm[key_added]`` : :class:`pandas.DataFrame`, float32, (cells, features)
        One row for every cell of ``mdata``, one column for every feature by its name in the modality.
    ``uns[key_added]`` : :class:`dict`
        ``unit`` of the values: ``"clr"``, ``"log1p"`` (binned values too, by the mean of each bin in the training
        cells), ``"probability"`` of a value above zero, ``"raw"``, or ``"bin"`` for a model that kept no such means;
        and provenance as :func:`scgpt_tools.tl.embed` leaves it of the first model, with the names and checksums of all.

    Raises
    ------
    KeyError
        If a layer, column or feature is absent; the message lists what is there.
    TypeError
        If ``mdata`` is no MuData.
    ValueError
        If a model does not know the modality, was not trained to predict it, predicts it in another unit or of another
        panel than the first, ``mdata`` has no other that it reads, a result is not finite, or ``key_added`` is the
        name of something else.

    Warns
    -----
    UserWarning
        If measured cells have no known feature above zero, and as :func:`scgpt_tools.tl.embed` does.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(paired, "scgpt-demo", task="multiomic", layer="counts")  # doctest: +SKIP
    >>> sct.tl.impute(mosaic, model, modality="prot", layer="counts")  # doctest: +SKIP
    >>> mosaic.obsm["prot_imputed"]  # doctest: +SKIP
    """
    check_arguments(impute, locals())
    request = Request(
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        batch_key=batch_key,
        conditioned=True,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=as_seed(rng),
        copy=copy,
    )
    keys = ImputeKeys(key_added or f"{modality}_imputed")
    check_new_key(mdata, "obsm", check_key_name("key_added", keys.key), default=f"{modality}_imputed")
    models = load_models(model, device)
    queries = _common_queries(models, modality, features)
    others = [_others(loaded, mdata, modality) for loaded in models]
    opened = open_for_all(mdata, models, [replace(request, modalities=given) for given in others])
    answers = [_answers(cells, modality, queries, show_progress=show_progress) for cells in opened]
    values = np.mean([own for own, _ in answers], axis=0, dtype=np.float32)
    opened[0].warn_about_empty(answers[0][1], "What is imputed says nothing about them: leave them out.")
    about = opened[0].provenance(modality=modality, predicted_from=", ".join(others[0]))
    about = provenance_of_all(about, models) | {"unit": unit_of(_part(models[0], modality))}
    result = mdata.copy() if copy else mdata
    result.obsm[keys.obsm] = pd.DataFrame(values, index=mdata.obs_names, columns=list(queries))
    result.uns[keys.uns] = about
    logger.info(
        "Added `obsm[%r]`: %d features of %d cells, in the unit %r.", keys.obsm, *values.shape[::-1], about["unit"]
    )
    return result if copy else None


def _part(model: CellModel, modality: str) -> ModalityConfig:
    """The modality, if the model has learnt to predict it."""
    parts = {part.name: part for part in model.config.tokenizer.parts}
    if not parts:
        raise ValueError(
            f"Expected a model of several modalities, found {model.name!r}, which reads one. Make one with "
            "`sct.train.finetune(mdata, model, task='multiomic')`."
        )
    part = lookup(parts, modality, "modality")
    if part.genes != "all" or "generation" not in model.config.embedder.parts:
        raise ValueError(
            f"Expected a model that has learnt to predict all of {modality!r}, found one that reads what is above zero "
            f"of it only. Train with `modalities={{{modality!r}: {{'genes': 'all', 'most': 500}}}}`."
        )
    if not any(name in model.heads for name in HEADS):
        raise ValueError(
            f"Expected a model with one of the heads {list(HEADS)}, found {list(model.heads)} of {model.name!r}. Train one "
            "with `sct.train.finetune(mdata, model, task='multiomic')`."
        )
    return part


def _common_queries(models: Sequence[CellModel], modality: str, features: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the features to ask for, which all models know in one unit."""
    first = _part(models[0], modality)
    panel = _panel(models[0], first)
    if features is None and not panel:
        raise ValueError(f"Expected `features` of {modality!r} to predict, found None, and it has no list of its own.")
    queries = tuple(panel if features is None else features)
    for model in models:
        part = _part(model, modality)
        known = _panel(model, part)
        if unit_of(part) != unit_of(first):
            raise ValueError(
                f"Expected models that predict {modality!r} in one unit, found {unit_of(first)!r} of "
                f"{models[0].name!r} and {unit_of(part)!r} of {model.name!r}."
            )
        if unit_of(first) == "clr" and set(known) != set(panel):
            raise ValueError(
                f"Expected models that have learnt the same panel of {modality!r}, which CLR depends on, found "
                f"{len(panel)} features of {models[0].name!r} and {len(known)}, not all the same, of {model.name!r}."
            )
        for feature in queries:
            if feature not in known and (known or part.token_of(feature) not in model.vocabulary):
                names = known or model.vocabulary.tokens
                raise KeyError(absent(feature, names, f"feature of {modality!r} named"))
    return queries


def _panel(model: CellModel, part: ModalityConfig) -> tuple[str, ...]:
    """Names of the features that the model knows of a modality."""
    return tuple(token.removeprefix(part.prefix) for token in tokens_of(model.vocabulary, part))


def _others(model: CellModel, mdata: MuData, modality: str) -> tuple[str, ...]:
    """The modalities to predict from."""
    read = tuple(part.name for part in model.config.tokenizer.parts if part.name in mdata.mod and part.name != modality)
    if not read:
        raise ValueError(
            f"Expected another modality than {modality!r} that the model reads to predict it from, found only "
            f"{list(mdata.mod)}."
        )
    return read


def _answers(cells: Cells, modality: str, features: Sequence[str], *, show_progress: bool | None) -> Computed:
    """(cells, features) what one model predicts, in the unit of the data."""
    model = cells.model
    part = _part(model, modality)
    tokens = [part.token_of(feature) for feature in features]
    ask = partial(
        query_values,
        model,
        ids=model.vocabulary.ids(tokens, unknown=None),
        modality=model.config.tokenizer.modalities.index(modality),
        attention=cells.attention,
    )
    computed = cells.compute(ask, width=len(tokens), show_progress=show_progress)
    return computed._replace(values=in_unit_of_data(computed.values, part, tokens))
