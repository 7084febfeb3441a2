"""Gene embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import EmbedGenesKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_seed, check_finite
from scgpt_tools.data.rows import table_of, totals_of
from scgpt_tools.data.writing import check_new_key, check_writable
from scgpt_tools.inference.cells import Request, load_model, open_cells
from scgpt_tools.inference.gene_contexts import mean_gene_contexts
from scgpt_tools.models.families import gene_embedding_key
from scgpt_tools.tl._groups import read_groups
from scgpt_tools.tokens.features import FeatureTable

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

    from scgpt_tools._types import AttentionBackend, RngLike
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.tokens.names import NameTable


@shared_docs
def embed_genes(
    adata: AnnData | MuData,
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    contextual: bool = False,
    groupby: str | None = None,
    min_cells: int = 5,
    layer: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates | None = None,
    modality: str | None = None,
    batch_key: str | None = None,
    stream: str = "genes",
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
    """Embed genes: by the model's table, the same for all cells, or by their tokens within cells :cite:p:`Cui2024`.

    The vectors of the table are those that enter the transformer, after the layer norm of the gene encoder, as in scGPT's
    tutorial on gene networks.  Contextual ones are what leaves it: of each gene the mean of its tokens over the cells that
    have one, so they depend on the cells and, with ``groupby``, tell how a gene is used in one type of cell or another.

    Parameters
    ----------
    adata
        Data with genes.  The table's vectors do not depend on its cells, which are read only where
        ``duplicates="most_counts"`` has to choose.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    contextual
        Average what the encoder makes of the gene in each cell.
    groupby
        Column of ``obs``, such as the cell type, to average each group by itself; for contextual embeddings.  Cells
        without a group are left out.
    min_cells
        Genes with a token in fewer cells of a group have no contextual embedding there.
    layer
        Key of ``layers`` to read cells from; ``None`` takes ``X``.
    {genes}
    {matching}
        By default every column of a gene gets the vector of the table, and the column with most counts the contextual one.
    {modality}
    {batch_key}
    stream
        Part of the embedder: ``"genes"``, or of scGenePT also ``"text"`` and ``"go"``, what the model makes of texts.
    length, batch_size, device, precision, attention
        How to read and compute cells, as in :func:`scgpt_tools.tl.embed`.  Genes of long cells take part where they are
        drawn.
    {rng}
    key_added
        Key of the result in ``varm`` and ``uns``; ``None`` takes the one of the model's family, ``"X_scGPT_genes"`` for
        scGPT, with the name of another stream in place of ``genes``, and ``"_contextual"`` behind it for such.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes, for MuData into the named modality,

    ``varm[key_added]`` : float32, (genes, dim)
        One row per gene; NaN for genes outside the vocabulary.  With ``groupby``, ``varm[f"{key_added}_{group}"]`` of
        each group in its place.
    ``varm[f"{key_added}_n_cells"]`` : :class:`pandas.DataFrame`, (genes, groups)
        Of contextual embeddings: cells with a token of the gene; one column ``"all cells"`` without ``groupby``.
    ``uns[key_added]`` : :class:`dict`
        ``model`` and ``genes``, and of contextual embeddings ``params`` and ``tokenizer`` too, as in
        :func:`scgpt_tools.tl.embed`.

    Raises
    ------
    KeyError
        If ``genes``, ``groupby``, ``layer`` or ``modality`` is absent.
    ValueError
        If the model has no such stream, no gene is in the vocabulary, a result is not finite, ``key_added`` is the name
        of something else, or ``groupby`` is given for embeddings that do not depend on cells.

    Notes
    -----
    Of contextual embeddings memory holds the sums, 8 bytes times groups, genes and dimensions (82 MB a group for 20,000
    genes and 512 dimensions), and one minibatch of cells, whatever their number.

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
    for name, given in {"groupby": groupby, "layer": layer, "batch_key": batch_key, "length": length}.items():
        if given is not None and not contextual:
            raise ValueError(
                f"Expected `{name}` with contextual=True only, found {given!r}. The model's table knows no cells."
            )
    request = Request(
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates="most_counts" if duplicates is None else duplicates,
        modality=modality,
        batch_key=batch_key,
        length=length,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=as_seed(rng),
        copy=copy,
    )
    table = table_of(adata, modality)
    check_writable(adata, table, copy=copy)
    if key_added is not None:
        check_new_key(table, "varm", key_added, default=EmbedGenesKeys.key)
    loaded = load_model(model, device)
    _check_stream(loaded, stream, contextual=contextual)
    of_family = gene_embedding_key(loaded.config, stream)
    if contextual:
        keys = EmbedGenesKeys(key_added or f"{of_family}_contextual")
        vectors, about = _of_cells(adata, loaded, request, keys, groupby, min_cells, show_progress)
    else:
        features = FeatureTable.from_var(
            table.var,
            loaded.vocabulary,
            column=genes,
            symbols=symbols,
            aliases=aliases,
            ignore_case=ignore_case,
            duplicates="all" if duplicates is None else duplicates,
            totals=totals_of(table),
        )
        keys = EmbedGenesKeys(key_added or of_family)
        vectors, about = _of_table(loaded, features, keys, stream)
    result = adata.copy() if copy else adata
    table = table_of(result, modality)
    for key, found in vectors.items():
        table.varm[key] = found
    table.uns[keys.uns] = about
    return result if copy else None


def _check_stream(model: CellModel, stream: str, *, contextual: bool) -> None:
    parts = model.config.embedder.parts
    of_genes = [name for name, part in parts.items() if part.reads == ("genes",)]
    if stream not in of_genes:
        raise ValueError(absent(stream, of_genes, "embedding of genes of this model:"))
    if contextual and stream != "genes":
        raise ValueError(
            f"Expected stream='genes' for contextual embeddings, which all streams have gone into, found {stream!r}."
        )
    if contextual and model.config.tokenizer.parts:
        names = [part.name for part in model.config.tokenizer.parts]
        raise ValueError(f"Expected a model of one modality for contextual embeddings of genes, found one of {names}.")


def _of_table(
    model: CellModel, features: FeatureTable, keys: EmbedGenesKeys, stream: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of ``varm`` by their keys, and the record of ``uns``."""
    with torch.inference_mode():
        ids = torch.from_numpy(features.ids).to(model.device)
        found = model.embedder.part(stream)(ids).float().cpu().numpy()
    check_finite("the embedding of every known gene", found, "The weights may be damaged: load the model anew.")
    about = {"model": {"name": model.name, "checksum": model.checksum}, "genes": features.coverage.to_dict()}
    return {keys.varm: _by_column(found, features)}, about


def _of_cells(
    adata: AnnData | MuData,
    model: CellModel,
    request: Request,
    keys: EmbedGenesKeys,
    groupby: str | None,
    min_cells: int,
    show_progress: bool | None,  # noqa: FBT001 - handed on
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of contextual embeddings."""
    table = table_of(adata, request.modality)
    groups = read_groups(table.obs, groupby)
    cells = open_cells(adata, model, request)
    features, names = cells.plan.features, [str(name) for name in groups.categories]
    means, n_cells = mean_gene_contexts(cells, groups.codes, len(names), show_progress=show_progress)
    means[n_cells < min_cells] = np.nan
    if np.isnan(means).all():
        raise ValueError(
            f"Expected genes that at least min_cells={min_cells} cells have a token of, found none; the most frequent "
            f"has {n_cells.max(initial=0)}. Lower `min_cells`."
        )
    keyed = {keys.varm if groupby is None else keys.varm_of(name): own for name, own in zip(names, means, strict=True)}
    vectors: dict[str, Any] = {key: _by_column(own, features) for key, own in keyed.items()}
    counts = np.zeros((features.n_columns, len(names)), dtype=np.int64)
    counts[features.columns] = n_cells.T
    vectors[keys.varm_cells] = pd.DataFrame(counts, index=table.var_names, columns=names)
    return vectors, cells.provenance(contextual=True, groupby=groupby or "", min_cells=min_cells)


def _by_column(found: NDArray[np.float32], features: FeatureTable) -> NDArray[np.float32]:
    """Rows of the known genes among those of all, which are NaN."""
    vectors = np.full((features.n_columns, found.shape[1]), np.nan, dtype=np.float32)
    vectors[features.columns] = found
    return vectors
