"""How much each modality has to say about each cell."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import ModalityWeightKeys
from scgpt_tools._validate import as_seed
from scgpt_tools.data.modalities import ModalityRows
from scgpt_tools.data.writing import check_new_key
from scgpt_tools.inference.cells import Cells, Request, load_model, open_cells

if TYPE_CHECKING:
    from os import PathLike

    import torch
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import AttentionBackend, Layers, RngLike
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision

logger = logging.getLogger(__name__)


@renamed(batch="batch_key")
@shared_docs
def modality_weights(
    mdata: MuData,
    model: CellModel | str | PathLike[str],
    *,
    layer: Layers = None,
    genes: str | None = None,
    batch_key: str | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    key_added: str = "mod_weight",
    show_progress: bool | None = None,
    copy: bool = False,
) -> MuData | None:
    r"""Weigh the modalities of each cell by how far its embedding moves without them.

    With :math:`d_m` the distance between the embedding of a cell and the one without modality m, both of unit length,
    the weight of m is :math:`d_m / \sum_k d_k`.

    Parameters
    ----------
    mdata
        Cells.
    model
        Result of :func:`scgpt_tools.train.finetune` on several modalities, or the folder that it was saved to.
    {layers}
    {genes}
    {batch_key}
    batch_size
        Cells computed at once; the result does not depend on it.
    {device}
    {precision}
    {attention}
    {rng}
    key_added
        End of the names of the results.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, under the names that muon gives to its own weights,

    ``obs[f"{modality}:{key_added}"]`` : float32
        Weight of each modality from 0 to 1; they sum to 1.  A cell that was measured in one modality has 1 for it, and
        one that was measured in none has NaN.
    ``uns[key_added]`` : :class:`dict`
        Provenance as :func:`scgpt_tools.tl.embed` leaves it.

    Raises
    ------
    TypeError
        If ``mdata`` is no MuData.
    ValueError
        If the model reads one modality only, ``mdata`` has fewer than two that it reads, a result is not finite, or
        ``key_added`` is the name of something else.

    Warns
    -----
    UserWarning
        If measured cells have no known feature above zero.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.tl.modality_weights(mdata, model, layer="counts")  # doctest: +SKIP
    >>> sct.pl.modality_weights(mdata, groupby="cell_type")  # doctest: +SKIP
    """
    check_arguments(modality_weights, locals())
    loaded = load_model(model, device)
    names = [part.name for part in loaded.config.tokenizer.parts if part.name in mdata.mod]
    if len(names) < 2:
        raise ValueError(
            f"Expected at least two modalities that the model reads, found {names} of {list(mdata.mod)}. A model of "
            "several comes from `sct.train.finetune` with a MuData."
        )

    def opened(chosen: list[str]) -> Cells:
        request = Request(
            layer=layer,
            genes=genes,
            modalities=tuple(chosen),
            batch_key=batch_key,
            batch_size=batch_size,
            device=device,
            precision=precision,
            attention=attention,
            rng=as_seed(rng),
            copy=copy,
        )
        return open_cells(mdata, loaded, request)

    keys = ModalityWeightKeys(key_added)
    check_new_key(mdata, "obs", key_added, default=ModalityWeightKeys.key, entry=keys.obs(names[0]))
    whole = opened(names)
    rows = whole.source
    assert isinstance(rows, ModalityRows)  # noqa: S101 - a model of several modalities reads such
    joint, expressed = whole.embed(show_progress=show_progress)
    whole.warn_about_empty(expressed, "Their weights compare them with empty cells: leave them out.")
    distances = np.stack(
        [
            np.linalg.norm(
                joint - opened([other for other in names if other != name]).embed(show_progress=show_progress).values,
                axis=1,
            )
            for name in names
        ],
        axis=1,
    )
    weights = _weights(distances, rows.measured[names].to_numpy())
    about = whole.provenance()
    result = mdata.copy() if copy else mdata
    for name, column in zip(names, weights.T, strict=True):
        result.obs[keys.obs(name)] = column.astype(np.float32)
    result.uns[keys.uns] = about
    logger.info("Added `obs[%r]` and %d more.", keys.obs(names[0]), len(names) - 1)
    return result if copy else None


def _weights(distances: NDArray[np.floating], measured: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Shares of each cell's distances; equal ones where nothing moves it."""
    own = np.where(measured, distances, 0.0)
    equal = measured / np.maximum(measured.sum(axis=1, keepdims=True), 1)
    total = own.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, own / np.where(total > 0, total, 1.0), equal)
    shares[~measured.any(axis=1)] = np.nan
    return shares
