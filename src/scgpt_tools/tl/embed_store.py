"""Cell embeddings of a table on disk by any number of processes, a chunk of cells at a time."""

from __future__ import annotations

import json
import logging
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import EmbedKeys
from scgpt_tools._outputs import check_room
from scgpt_tools._validate import check_choice, check_integer, check_key_name
from scgpt_tools.data.chunked_result import ChunkedResult, ChunkLayout, check_result_path
from scgpt_tools.data.prefetch import prefetched
from scgpt_tools.data.processes import check_process, device_of_process
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.stored_cells import StoredCells
from scgpt_tools.data.stores import open_group
from scgpt_tools.inference.cells import Cells, Request, load_model, open_cells
from scgpt_tools.inference.runner import BLOCK_ROWS, CellPooling, pooling_of
from scgpt_tools.models.families import embedding_key
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    import torch
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._types import AttentionBackend
    from scgpt_tools.data.whole import Trace
    from scgpt_tools.inference.runner import Computed
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision
    from scgpt_tools.tokens.matching import Duplicates
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)

# Cells that show in which unit the values are, and that stand for the values in the comparison of two calls.
_SHOWN = 256


@renamed(batch="batch_key")
@shared_docs
def embed_store(
    source: str | PathLike[str],
    output: str | PathLike[str],
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    layer: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "most_counts",
    modality: str | None = None,
    batch_key: str | None = None,
    pooling: CellPooling | None = None,
    normalize: bool = True,
    length: int | None = None,
    batch_size: int = 64,
    chunk: int = BLOCK_ROWS,
    rank: int | None = None,
    processes: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    attention: AttentionBackend | None = None,
    rng: int = 0,
    key_added: str | None = None,
    show_progress: bool | None = None,
) -> bool:
    """Embed the cells of a table on disk, with several processes and resumably :cite:p:`Cui2024`.

    Every process calls this with the same arguments.  Process *r* of *n* computes chunks *r*, *r + n*, ... of the cells
    and writes each as a chunk of its own.  A call that is repeated computes what is not finished yet, with as many
    processes as it then has.  The result does not depend on the number of processes, nor on interruptions.

    Parameters
    ----------
    source
        A ``.h5ad``, ``.h5mu`` or ``.zarr``, with its matrix by rows (CSR or dense).  Never changed.
    output
        A ``.zarr`` that does not exist yet, on a disk that all processes see; ``<output>.partial`` is beside it until
        the last chunk is written.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.  Of one modality.
    {layer}
    {genes}
    {matching}
    {modality}
    {batch_key}
    {pooling}
    normalize
        Scale each embedding to unit length, as scGPT's own function does.
    {length}
    batch_size
        Cells computed at once.
    chunk
        Cells of a chunk: what is in memory, read at once, and lost when a process dies.
    rank, processes
        Number of this process, counted from 0, and how many there are; ``None`` asks ``torchrun``, ``srun`` or the
        process group, whichever has started this process, and else takes it to be alone.
    device
        ``None`` takes ``settings.device``, else CUDA, MPS or CPU, whichever is there; the processes of a machine take its
        GPUs in turn.
    {precision}
    {attention}
    {rng}
    key_added
        Key of the result in ``obsm`` and ``uns``; ``None`` takes the one of the model's family, ``"X_scGPT"`` for scGPT.
    show_progress
        Draw a progress bar of this process; ``None`` follows :data:`scgpt_tools.settings`, in the first process only.

    Returns
    -------
    Whether the result is whole.  It is ``False`` in a process that is done while others are at work.  Writes a store that
    :func:`anndata.read_zarr` reads, with ``obs_names`` in the order of the source and

    ``obsm[key_added]`` : float32, (cells, dim)
        One row per cell, uncompressed.
    ``uns[key_added]`` : :class:`dict`
        Provenance as :func:`scgpt_tools.tl.embed` leaves it.

    Raises
    ------
    FileExistsError
        If there is something else at ``output``, or another process of the same number is at work.
    OSError
        If the disk has no room for the result.
    KeyError
        If ``layer``, ``genes``, ``batch_key`` or ``modality`` is absent; the message lists what is there.
    ValueError
        If a finished or unfinished result at ``output`` is of other cells, another model or other settings, the matrix is
        stored by columns, a part of the source or of the result is missing, the source changes meanwhile, or for what
        :func:`scgpt_tools.tl.embed` refuses.

    Examples
    --------
    >>> import anndata as ad
    >>> import scgpt_tools as sct
    >>> sct.tl.embed_store("atlas.h5ad", "atlas_scGPT.zarr", "scgpt-human")  # doctest: +SKIP
    True
    >>> ad.read_zarr("atlas_scGPT.zarr").obsm["X_scGPT"]  # doctest: +SKIP
    """
    check_arguments(embed_store, locals())
    if pooling is not None:
        check_choice("pooling", pooling, get_args(CellPooling))
    check_integer("chunk", chunk)
    rank, processes = check_process(rank, processes)
    request = Request(
        layer=layer,
        genes=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        duplicates=duplicates,
        batch_key=batch_key,
        length=length,
        batch_size=batch_size,
        device=device_of_process(device),
        precision=precision,
        attention=attention,
        rng=rng,
    )
    if key_added is not None:
        check_key_name("key_added", key_added)
    check_result_path(output)
    with open_group(source, modality=modality) as group:
        stored = StoredCells(group, layer=request.one_layer, columns=() if batch_key is None else (batch_key,))
        cells = _open(stored, model, request)
        pooling = pooling_of(cells.model.config, pooling)
        keys = EmbedKeys(key_added or embedding_key(cells.model.config))
        about = cells.provenance(pooling=pooling, normalize=normalize)
        layout = ChunkLayout(
            cells=len(stored),
            width=cells.model.dim,
            chunk=chunk,
            key=keys.obsm,
            about=about,
            request=_request(about, stored, cells, keys, chunk),
        )
        trace = stored.trace()
        result = ChunkedResult(output, layout)
        _check_finished(result, stored, trace, range(rank, layout.n_chunks, processes))
        missing = result.missing(rank, processes)
        check_room(result.path.parent, len(missing) * chunk * layout.width * 4)
        show = (rank == 0 and settings.show_progress) if show_progress is None else show_progress
        embed = partial(Cells.embed, pooling=pooling, normalize=normalize, show_progress=False)
        _write_chunks(result, stored, cells, embed, missing, trace=trace, show=show)
        if stored.trace().text != trace.text:
            raise ValueError(
                f"Expected '{source}' to stay as it is while it is embedded, but it has changed. Call again: chunks of cells "
                "that have not changed are kept."
            )
        others = set(range(layout.n_chunks)) - set(range(rank, layout.n_chunks, processes))
        if not result.finished and len(result.records()) == layout.n_chunks:
            _check_finished(result, stored, trace, sorted(others), results=False)
        whole = result.publish()
    _report(whole, result, rank, processes)
    return whole


def _open(stored: StoredCells, model: CellModel | str | PathLike[str], request: Request) -> Cells:
    """Load the model, match genes and look at the first cells."""
    loaded = load_model(model, request.device)
    if loaded.config.tokenizer.parts:
        names = [part.name for part in loaded.config.tokenizer.parts]
        raise ValueError(f"Expected a model of one modality, found one of {names}. Use `tl.embed`.")
    return open_cells(
        stored.read(0, min(_SHOWN, len(stored))), loaded, request, totals=partial(_totals, stored, request.one_layer)
    )


def _totals(stored: StoredCells, layer: str | None, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of some columns over all cells, not only over those that are opened."""
    starts = range(0, len(stored), BLOCK_ROWS)
    blocks = (stored.read(start, min(start + BLOCK_ROWS, len(stored))) for start in starts)
    return sum((RowSource(block, layer=layer).totals(columns) for block in blocks), start=np.zeros(len(columns)))


def _check_finished(
    result: ChunkedResult, stored: StoredCells, trace: Trace, numbers: Iterable[int], *, results: bool = True
) -> None:
    """Refuse chunks of cells that have changed since, and see that the others still hold what was written.

    Files of the source that look as they did then are not read again.
    """
    records = result.records()
    for number in (number for number in numbers if number in records):
        record = records[number]
        cells = "cells {:,} to {:,}".format(*result.layout.bounds(number))
        if record.trace != trace.text and stored.content(stored.read(*result.layout.bounds(number))) != record.content:
            raise ValueError(
                f"Expected '{result.path}' to be of the same source, found other names, values or batches in {cells}. Choose "
                "another output, or delete this one."
            )
        if results and not result.is_whole(number, record):
            if result.finished:
                raise ValueError(
                    f"Expected '{result.path}' to hold what was written, found {cells} damaged or missing. Delete it, and "
                    "embed again."
                )
            logger.warning("Computing %s again: what was written is damaged or missing.", cells)
            result.drop(number)
        elif trace.settled and record.trace != trace.text and not result.finished:
            result.mark(number, record._replace(trace=trace.text))


def _write_chunks(
    result: ChunkedResult,
    stored: StoredCells,
    cells: Cells,
    embed: Callable[[Cells], Computed],
    numbers: list[int],
    *,
    trace: Trace,
    show: bool,
) -> None:
    """Compute and write some chunks; the next one is read meanwhile."""
    if not numbers:
        return
    bounds = [result.layout.bounds(number) for number in numbers]
    total = sum(stop - start for start, stop in bounds)
    tables = prefetched(_with_content(stored, start, stop) for start, stop in bounds)
    with settings.progress((), total=total, unit="cell", show=show) as bar:
        for number, (table, content) in zip(numbers, tables, strict=True):
            with result.working_on(number) as wanted:
                if wanted:
                    rows = cells.of(RowSource(table, layer=cells.request.one_layer))
                    values, expressed = embed(rows)
                    rows.warn_about_empty(expressed, "Their embeddings say nothing about them: leave them out.")
                    known = trace.text if trace.settled else ""
                    result.write(number, list(table.obs_names), values, content=content, trace=known)
            bar.update(table.n_obs)


def _with_content(stored: StoredCells, start: int, stop: int) -> tuple[AnnData, str]:
    table = stored.read(start, stop)
    return table, stored.content(table)


def _request(about: dict[str, Any], stored: StoredCells, cells: Cells, keys: EmbedKeys, chunk: int) -> dict[str, str]:
    """What has to agree for finished chunks to be of use.  Sizes of minibatches may differ unless the encoder sees padding."""
    values = cells.source.take(range(len(cells.source)))
    features = cells.plan.features
    return {
        "model": str(about["model"]["checksum"]),
        "cells": stored.digest(),
        "matching of genes": sha256(features.columns.tobytes() + features.ids.tobytes()).hexdigest(),
        "values": sha256(values.data.tobytes() + values.indices.tobytes()).hexdigest(),
        "settings": json.dumps({**about["params"], **about["tokenizer"]}, sort_keys=True, default=str),
        "`chunk`": str(chunk),
        "`key_added`": keys.obsm,
        "version of the store": "2",
    }


def _report(whole: bool, result: ChunkedResult, rank: int, processes: int) -> None:  # noqa: FBT001 - the news itself
    if whole:
        logger.info("All %d cells are in %s.", result.layout.cells, result.path)
    else:
        logger.info(
            "Process %d of %d has finished its chunks. %s gets its name when the others have.",
            rank,
            processes,
            result.path.name,
        )
