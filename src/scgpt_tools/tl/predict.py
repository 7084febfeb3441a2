"""Numbers of cells by a fine-tuned regression head."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import TargetKeys
from scgpt_tools._validate import as_seed
from scgpt_tools.data.rows import slots_of
from scgpt_tools.data.writing import check_new_key
from scgpt_tools.inference.cells import Request
from scgpt_tools.inference.committee import load_models, open_for_all, provenance_of_all
from scgpt_tools.inference.runner import target_numbers
from scgpt_tools.models.config import RegressorConfig

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


@shared_docs
def predict(
    adata: AnnData | MuData,
    model: AnyModel | Sequence[AnyModel],
    *,
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
    key_added: str = "scgpt_predicted",
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Predict numbers of each cell, such as an age or a score, with a model that was fine-tuned to.

    For classes see :func:`scgpt_tools.tl.annotate`, for expression after a perturbation
    :func:`scgpt_tools.tl.predict_perturbation`.  A regression keeps near the numbers that it has seen: beyond their range it
    says little, and extremes come out too moderate.

    Parameters
    ----------
    adata
        Cells; may be backed, lazy or a view.  Nothing but the keys below is changed, and only at the end.
    model
        Result of :func:`scgpt_tools.train.finetune` with ``task="regress"``, or the folder that it was saved to.  Of several
        models of the same numbers, the mean of what they predict is taken.
    {layer}
    tokens
        Layer that :func:`scgpt_tools.pp.tokenize` wrote, instead of ``layer`` and of the arguments about names.
    {genes}
    symbols, aliases, ignore_case, duplicates
        How to match names to the vocabulary, as in :func:`scgpt_tools.pp.match_genes`.
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
        Beginning of the names of the results.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, into the modality if one is named,

    ``obs[f"{key_added}_{target}"]`` : float32
        Number of each cell, in the unit of the column that was learnt; one column for each of these.  NaN for cells without
        any known expressed gene.
    ``uns[key_added]`` : :class:`dict`
        ``targets``, and provenance as :func:`scgpt_tools.tl.embed` leaves it of the first model, with the names and checksums
        of all.

    Raises
    ------
    KeyError
        If ``layer``, ``tokens``, ``genes``, ``modality`` or ``batch_key`` is absent; the message lists what is there.
    ValueError
        If the model predicts no numbers, several models have not the same, no gene is in the vocabulary, a value is
        negative, missing or infinite, a result is not finite, or ``key_added`` is the name of something else.

    Warns
    -----
    UserWarning
        If cells express no known gene, and as :func:`scgpt_tools.tl.embed` does.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> model = sct.train.finetune(reference, "scgpt-demo", task="regress", target_keys=["age"])  # doctest: +SKIP
    >>> sct.tl.predict(query, model)  # doctest: +SKIP
    >>> query.obs["scgpt_predicted_age"]  # doctest: +SKIP
    """
    check_arguments(predict, locals())
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
    models = load_models(model, device)
    names = _common_targets(models)
    keys = TargetKeys(key_added)
    for name in names:
        check_new_key(slots_of(adata, modality), "obs", keys.obs(name), default=TargetKeys().obs(name))
    opened = open_for_all(adata, models, [request] * len(models))
    computed = [_numbers(cells, len(names), show_progress=show_progress) for cells in opened]
    numbers = np.asarray(np.mean([values for values, _ in computed], axis=0, dtype=np.float64), dtype=np.float32)
    empty = np.array([(expressed <= 0).all(axis=1) for _, expressed in computed])
    least = int(empty.sum(axis=1).argmax())
    opened[least].warn_about_empty(computed[least].expressed, "Cells without any known feature get no number but NaN.")
    numbers[empty.any(axis=0)] = np.nan
    about = provenance_of_all(opened[0].provenance(), models)
    result = adata.copy() if copy else adata
    table = slots_of(result, modality)
    for place, name in enumerate(names):
        table.obs[keys.obs(name)] = numbers[:, place]
    table.uns[keys.uns] = {**about, "targets": np.asarray(names, dtype=object)}
    logger.info("Added %s.", ", ".join(f"`obs[{keys.obs(name)!r}]`" for name in names))
    return result if copy else None


def _numbers(cells: Cells, n_targets: int, *, show_progress: bool | None) -> Computed:
    # Cell embeddings only: the last layer need not compute the other tokens.
    embed_batch = partial(cells.model.embed_cells, attention=cells.attention)
    regress = partial(target_numbers, cells.model)
    return cells.compute(embed_batch, finish=regress, width=n_targets, show_progress=show_progress)


def _common_targets(models: Sequence[CellModel]) -> tuple[str, ...]:
    names = _targets(models[0])
    for other in models[1:]:
        if _targets(other) != names:
            raise ValueError(
                f"Expected models of the same numbers in the same order, found {list(names)} in {models[0].name!r} and "
                f"{list(_targets(other))} in {other.name!r}."
            )
    return names


def _targets(model: CellModel) -> tuple[str, ...]:
    regressor = model.config.heads.find("targets", RegressorConfig)
    if regressor is None:
        raise ValueError(
            f"Expected a model that was fine-tuned to predict numbers, found {model.name!r}, which was not. Make one with "
            "`sct.train.finetune(reference, model, task='regress', target_keys=...)`."
        )
    return regressor.names
