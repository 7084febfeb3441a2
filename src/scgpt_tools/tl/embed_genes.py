"""Gene embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import EmbedGenesKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_finite
from scgpt_tools.data.rows import table_of, totals_of
from scgpt_tools.data.writing import check_new_key, check_writable
from scgpt_tools.inference.cells import load_model
from scgpt_tools.models.families import gene_embedding_key
from scgpt_tools.tokens.features import FeatureTable

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.tokens.names import NameTable


@shared_docs
def embed_genes(
    adata: AnnData | MuData,
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "all",
    modality: str | None = None,
    stream: str = "genes",
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Look up the model's embedding of each gene, the same for all cells :cite:p:`Cui2024`.

    The vectors are those that enter the transformer, after the layer norm of the gene encoder, as in scGPT's tutorial on
    gene networks.

    Parameters
    ----------
    adata
        Data with genes; its cells are read only where ``duplicates="most_counts"`` has to choose.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    {genes}
    symbols, aliases, ignore_case, duplicates
        How to match names to the vocabulary, as in :func:`scgpt_tools.pp.match_genes`; by default every column of a
        gene gets its vector.
    {modality}
    stream
        Part of the embedder: ``"genes"``, or of scGenePT also ``"text"`` and ``"go"``, what the model makes of texts.
    key_added
        Key of the result in ``varm`` and ``uns``; ``None`` takes the one of the model's family, ``"X_scGPT_genes"`` for
        scGPT, with the name of another stream in place of ``genes``.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, for MuData into the named modality,

    ``varm[key_added]`` : float32, (genes, dim)
        One row per gene; NaN for genes outside the vocabulary.
    ``uns[key_added]`` : :class:`dict`
        ``model`` and ``genes``, as in :func:`scgpt_tools.tl.embed`.

    Raises
    ------
    KeyError
        If ``genes`` or ``modality`` is absent.
    ValueError
        If the model has no such stream, no gene is in the vocabulary, a result is not finite, or ``key_added`` is the name of something else.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scgpt_tools as sct
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sct.tl.embed_genes(adata, model="scgpt-demo")
    >>> adata.varm["X_scGPT_genes"].shape
    (765, 64)
    """
    check_arguments(embed_genes, locals())
    table = table_of(adata, modality)
    check_writable(adata, table, copy=copy)
    if key_added is not None:
        check_new_key(table, "varm", key_added, default=EmbedGenesKeys.key)
    loaded = load_model(model)
    parts = loaded.config.embedder.parts
    of_genes = [name for name, part in parts.items() if part.reads == ("genes",)]
    if stream not in of_genes:
        raise ValueError(absent(stream, of_genes, "embedding of genes of this model:"))
    features = FeatureTable.from_var(
        table.var,
        loaded.vocabulary,
        column=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        totals=totals_of(table),
    )
    vectors = np.full((features.n_columns, loaded.dim), np.nan, dtype=np.float32)
    with torch.inference_mode():
        ids = torch.from_numpy(features.ids).to(loaded.device)
        vectors[features.columns] = loaded.embedder.part(stream)(ids).float().cpu().numpy()
    check_finite(
        "the embedding of every known gene",
        vectors[features.columns],
        "The weights may be damaged: load the model anew.",
    )
    keys = EmbedGenesKeys(key_added or gene_embedding_key(loaded.config, stream))
    result = adata.copy() if copy else adata
    table = table_of(result, modality)
    table.varm[keys.varm] = vectors
    table.uns[keys.uns] = {
        "model": {"name": loaded.name, "checksum": loaded.checksum},
        "genes": features.coverage.to_dict(),
    }
    return result if copy else None
