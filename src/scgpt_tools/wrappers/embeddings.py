"""Embeddings as arrays; :mod:`scgpt_tools.tl` writes the same into tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from scgpt_tools.data.rows import RowSource
from scgpt_tools.inference.cells import Request, planned
from scgpt_tools.models.formats.base import check_weights
from scgpt_tools.models.modes import evaluating
from scgpt_tools.wrappers.batches import match
from scgpt_tools.wrappers.tables import open_table

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.inference.runner import CellPooling
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.wrappers.base import Wrapper


def embed_cells(
    wrapper: Wrapper, adata: AnnData, *, batch_size: int, normalize: bool, precision: Precision, seed: int
) -> NDArray[np.float32]:
    """Embed cells; the arguments are those of :meth:`scGPTModel.predict_embeddings`.

    Returns (cells, D) in the order of the table.
    """
    cells = wrapper.cell_model
    check_weights(cells.state_dict(), repr(cells.name))
    table = open_table(wrapper, adata, labels=False, batches=cells.config.domains > 0)
    request = Request(batch_size=batch_size, precision=precision, rng=seed)
    opened = planned(cells, table.source, table.features, request, batch_id=table.batch_id)
    return opened.embed(
        pooling=cast("CellPooling", cells.config.pooling), normalize=normalize, show_progress=None
    ).values


def embed_genes(wrapper: Wrapper, adata: AnnData | None) -> NDArray[np.float32]:
    """Embed genes without their values.

    Parameters
    ----------
    wrapper
        The model.
    adata
        Whose genes; ``None`` for all tokens.

    Returns
    -------
    (genes, D) in the order of the table, NaN for unknown genes; or (tokens, D).
    """
    ids = columns = np.arange(len(wrapper.vocab))
    n_rows = len(ids)
    if adata is not None:
        features = match(RowSource(adata), wrapper.vocab, wrapper.gene_list, duplicates="all")
        ids, columns, n_rows = features.ids, features.columns, features.n_columns
    found = np.full((n_rows, wrapper.cell_model.dim), np.nan, dtype=np.float32)
    with torch.inference_mode(), evaluating(wrapper.model):
        found[columns] = wrapper.model.encoder(torch.from_numpy(ids).to(wrapper.device)).float().cpu().numpy()
    return found
