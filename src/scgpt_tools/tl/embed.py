"""Cell embeddings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, get_args

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import EmbedKeys
from scgpt_tools._validate import as_seed, check_choice
from scgpt_tools.data.rows import slots_of
from scgpt_tools.data.writing import check_new_key
from scgpt_tools.inference.cells import Request, open_cells
from scgpt_tools.inference.runner import CellPooling, pooling_of
from scgpt_tools.models.families import embedding_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import torch
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike

    from scgpt_tools._types import AttentionBackend, Layers, RngLike
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)


@renamed(batch="batch_key")
@shared_docs
def embed(
    adata: AnnData | MuData,
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    layer: Layers = None,
    tokens: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    mask_var: ArrayLike | str | None = None,
    modality: str | None = None,
    modalities: Sequence[str] | None = None,
    batch_key: str | None = None,
    pooling: CellPooling | None = None,
    normalize: bool = True,
    length: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: RngLike = 0,
    key_added: str | None = None,
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Embed cells with a foundation model :cite:p:`Cui2024`.

    Parameters
    ----------
    adata
        Cells to embed; may be backed, lazy or a view.  Nothing but the keys below is changed, and only at the end.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes: a released name, a
        repository of the Hugging Face Hub, a folder.
    {layers}
        Bins depend on the ranks within a cell only, so counts and log-normalised values are both fine; scaled values
        are refused.
    tokens
        Layer that :func:`scgpt_tools.pp.tokenize` wrote, to take its bins and its matching of genes as they are;
        instead of ``layer`` and of the arguments about names.
    {genes}
    {matching}
    mask_var
        Genes to read only, as the name of a boolean column of ``var``, such as ``"highly_variable"``, or as an array;
        ``None`` for all.
    modality
        Which modality of a MuData to read and to write to, for models that read one.  A model that was fine-tuned on
        several reads all of them and writes to the MuData itself, whose cells need not have been measured in each.
    modalities
        Modalities to embed cells by, of those that the model reads; ``None`` for all that are there.
    {batch_key}
    {pooling}
    normalize
        Scale each embedding to unit length, as scGPT's own function does.
    {length}
    batch_size
        Cells computed at once; the result does not depend on it, except for models whose encoder sees padding, such as
        DeepSC, of which ``params`` has it.
    {device}
    {precision}
    {attention}
    {rng}
    key_added
        Key of the result in ``obsm`` and ``uns``; ``None`` takes the one of the model's family, ``"X_scGPT"`` for scGPT.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, into the modality if one is named,

    ``obsm[key_added]`` : float32, (cells, dim)
        One row per cell, in the order of ``obs``.
    ``uns[key_added]`` : :class:`dict`
        ``params`` (arguments, seed, precision), ``model`` (name, checksum, family, dimension), ``tokenizer`` and
        ``genes`` (how many columns matched the vocabulary); and, where there are such, ``empty``: the names of cells
        without any known expressed gene, whose embeddings are all alike.

    Raises
    ------
    KeyError
        If ``layer``, ``tokens``, ``genes`` or ``modality`` is absent; the message lists what is there.
    ValueError
        If no gene is in the vocabulary, a value is negative, missing or infinite, ``tokens`` were made for another
        model, a result is not finite, or ``key_added`` is the name of something else.

    Warns
    -----
    UserWarning
        If cells express no known gene, few genes match, several columns are of one gene, or values look as if they
        were in another unit.

    Notes
    -----
    The embedding is zero-shot: technical batches stay visible, and simple baselines can be as good or better at a
    given task :cite:p:`Kedzierska2025`.  Compare with PCA before you rely on it.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scgpt_tools as sct
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sct.tl.embed(adata, model="scgpt-demo", show_progress=False)
    >>> adata.obsm["X_scGPT"].shape
    (700, 64)
    """
    check_arguments(embed, locals())
    if pooling is not None:
        check_choice("pooling", pooling, get_args(CellPooling))
    if key_added is not None:
        check_new_key(slots_of(adata, modality), "obsm", key_added, default=EmbedKeys.key)
    request = Request(
        layer=layer,
        tokens=tokens,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        mask_var=mask_var,
        modality=modality,
        modalities=None if modalities is None else tuple(modalities),
        batch_key=batch_key,
        length=length,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=as_seed(rng),
        copy=copy,
    )
    cells = open_cells(adata, model, request)
    pooling = pooling_of(cells.model.config, pooling)
    embedding, expressed = cells.embed(pooling=pooling, normalize=normalize, show_progress=show_progress)
    cells.warn_about_empty(expressed, "Their embeddings say nothing about them: leave them out.")
    keys = EmbedKeys(key_added or embedding_key(cells.model.config))
    provenance = cells.provenance(pooling=pooling, normalize=normalize) | cells.names_of_empty(expressed)
    result = adata.copy() if copy else adata
    table = slots_of(result, modality)
    table.obsm[keys.obsm] = embedding
    table.uns[keys.uns] = provenance
    logger.info("Added `obsm[%r]` (%d cells, %d dimensions) and `uns[%r]`.", keys.obsm, *embedding.shape, keys.uns)
    return result if copy else None
