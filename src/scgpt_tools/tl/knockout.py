"""Genes knocked out, or over-expressed, in silico: how far a model moves cells that lack one."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import KnockoutKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_seed, check_choice, check_integer, check_texts
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.finished_rows import FinishedRows
from scgpt_tools.data.rows import RowSource
from scgpt_tools.inference.cells import Request, open_cells
from scgpt_tools.inference.knockouts import Hide, Knockouts, Levels
from scgpt_tools.inference.runner import CellPooling, pooling_of
from scgpt_tools.metrics.matched_null import draw_matched
from scgpt_tools.nn.heads import AffineConfig
from scgpt_tools.settings import settings
from scgpt_tools.tl._groups import read_groups
from scgpt_tools.tl._knockout_table import LEAST_RANDOM, Found, compare_with_random, knockout_table
from scgpt_tools.tokens.knockouts import How
from scgpt_tools.tokens.orders import sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    import torch
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools._types import AttentionBackend, RngLike
    from scgpt_tools.inference.cells import Cells
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.models.precision import Precision

logger = logging.getLogger(__name__)

# Genes whose sums are held at once; cells are tokenized anew for each so many.
_CHUNK = 16

_MEANING = "change of what the model makes of cells, no causal estimate"


@shared_docs
def knockout(
    adata: AnnData,
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    genes: Sequence[str] | None = None,
    how: How = "remove",
    groupby: str | None = None,
    expression: Hide | None = None,
    n_cells: int | None = 200,
    min_cells: int = 10,
    n_null: int | None = 200,
    layer: str | None = None,
    batch_key: str | None = None,
    pooling: CellPooling | None = None,
    length: int | None = None,
    store: str | PathLike[str] | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    attention: AttentionBackend | None = None,
    precision: Precision = "fp32",
    rng: RngLike = 0,
    show_progress: bool | None = None,
) -> AnnData:
    """Change one gene at a time in cells, and measure how far the model moves them: no screen is needed.

    What is measured is a change of the model's embedding: how much this gene's token matters to it.  It is **no causal
    estimate** of what a cell without the gene would be like: a model of cells at rest has seen which genes go together and
    not which one acts on which, and no perturbation was learnt.  Genes with much expression move cells more than others
    whatever they do, so every gene is compared with random genes of like expression.  For effects that were learnt from a
    screen see :func:`scgpt_tools.tl.predict_perturbation`.  The method is that of Geneformer's in-silico deletion
    :cite:p:`Theodoris2023`.

    Parameters
    ----------
    adata
        Cells, such as unperturbed ones; not changed.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes: any that embeds cells of one
        modality.
    genes
        Names in ``var_names`` of the genes to change; ``None`` takes all that the model knows.
    how
        ``"remove"`` takes the gene's token out of the cell; ``"zero"`` keeps it with a value of zero, which models that
        read expressed genes only have not seen; ``"max"`` gives it the value of the cell's most expressed gene, also to
        cells that lack it.  All other tokens stay as they are.
    groupby
        Column of ``obs``, such as the cell type, to measure each group by itself; cells without a group are left out.
    expression
        Also predict the expression of other genes through the model's head ``expression``: of each cell two fifths of the
        values, drawn by seed, are hidden, and predicted with and without the change.  ``"masked"`` hides them by the
        marker that fine-tuning uses, ``"generated"`` by the vector of generative pre-training.  ``None`` predicts nothing.
    n_cells
        Most cells of a group, drawn by seed; ``None`` takes all.  Time grows with cells times genes.
    min_cells
        Genes that fewer cells of a group have get no p-value there.
    n_null
        Random genes to compare with, chosen for likeness to ``genes`` in how many cells have them and how much of them;
        ``None`` compares with nothing.  P-values are no smaller than 1 / (1 + ``n_null``).
    layer
        Key of ``layers`` to read; ``None`` takes ``X``.
    {batch_key}
    {pooling}
    {length}
        A gene counts in cells that have a token of it, so in long cells where it is drawn.
    store
        Folder for finished genes.  A call that was interrupted goes on from there when it is repeated, and one with more
        genes computes those only, with any ``batch_size``.
    batch_size
        Changed cells computed at once; the memory needed grows with it.
    {device}
    {attention}
    precision
        Number format of matrix products, as ``"fp32"``; moves of single genes are small, and bf16 may round them away.
    {rng}
    {show_progress}

    Returns
    -------
    A new table with one row per gene and group, those of random genes behind the others, with

    ``obs`` :
        ``gene``, ``group``, and ``role``: ``"asked"`` or ``"random"``.
        ``n_cells`` of the group, ``n_changed``: those that the change makes a difference to, and ``mean_value``, how much
        of the gene the cells with it have, in the unit of the tokens.
        ``shift``: mean distance between the embeddings, of unit length, of a changed cell and of the cell as it is.
        ``displacement``: length of the mean move of all cells of the group.
        ``expected_shift``, ``z_score``, ``p_value``: by matched random genes (:func:`scgpt_tools.metrics.matched_null`,
        of the logarithm of shifts); ``q_value``: false discovery rate over all rows asked for (Benjamini and Hochberg).
    ``obsm["displacement"]`` : float32, (rows, dim)
        Mean move of all cells of the group.
    ``X`` : float32, (rows, genes)
        With ``expression``: mean change of predicted values over the cells of the group in which the value was hidden,
        in the unit of the tokens (bins, log1p); NaN where it never was.  ``var`` has the genes that the model knows.
    ``uns["knockout"]`` : :class:`dict`
        What it means, and provenance as :func:`scgpt_tools.tl.embed` leaves it.

    Raises
    ------
    KeyError
        If a gene, a column or a layer is absent; the message lists what is there.
    ValueError
        If the model knows none of the genes, has no head to predict by, reads several modalities, there are fewer than 20
        random genes to compare with, the store belongs to another model, other cells or other settings, or a result is
        not finite.

    Warns
    -----
    UserWarning
        If the model does not know some of the genes, which are left out, or too few cells have some of them.

    See Also
    --------
    scgpt_tools.get.knockout, scgpt_tools.get.knockout_effects, scgpt_tools.pl.knockout

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> cells = sct.datasets.pbmc_demo()
    >>> shifts = sct.tl.knockout(cells, "scgpt-demo", genes=["LYZ", "NKG7"], n_cells=40, n_null=20, show_progress=False)
    >>> shifts.obs.loc[["LYZ", "NKG7"], "n_changed"].tolist()
    [24, 15]
    """
    check_arguments(knockout, locals())
    _check(how, expression, n_cells, n_null)
    if pooling is not None:
        check_choice("pooling", pooling, get_args(CellPooling))
    seed = as_seed(rng)
    request = Request(
        layer=layer,
        batch_key=batch_key,
        conditioned=expression is not None,
        length=length,
        batch_size=batch_size,
        device=device,
        precision=precision,
        attention=attention,
        rng=seed,
    )
    groups = read_groups(adata.obs, groupby)
    cells = open_cells(adata, model, request)
    _check_model(cells, how, expression)
    rows = _drawn(cells, groups.codes, n_cells, seed)
    cells = cells.of(RowSource(adata[rows], layer=layer))
    chosen = pooling_of(cells.model.config, pooling)
    names = [str(name) for name in groups.categories]
    run = Knockouts(cells, groups.codes[rows].astype(np.int64), len(names), how, chosen, expression)
    levels = run.levels()
    asked = _asked(adata, cells, genes)
    null = _null(levels, asked, n_null, min_cells, how, run, seed)
    # What does not change a finished gene, such as which others are asked for, is no part of this.
    about = cells.provenance(how=how, groupby=groupby or "", expression=expression or "", pooling=chosen)
    about["params"]["n_cells"] = n_cells or 0
    found = _computed(run, np.concatenate([asked, null]), store, about, show_progress)
    result = knockout_table(adata, run, names, asked, null, levels, found)
    if n_null is not None:
        # Where the model knows too few others, the genes asked for are random ones to each other.
        compare_with_random(
            result.obs, levels.n_cells[np.concatenate([asked, null])].ravel(), min_cells, all_random=len(null) < n_null
        )
    about["params"] |= {"min_cells": min_cells, "n_null": len(null)}
    result.uns[KnockoutKeys().uns] = {"meaning": _MEANING} | about
    return result


def _check(how: How, expression: Hide | None, n_cells: int | None, n_null: int | None) -> None:
    check_choice("how", how, get_args(How))
    if expression is not None:
        check_choice("expression", expression, get_args(Hide))
    if n_cells is not None:
        check_integer("n_cells", n_cells, least=2)
    if n_null is not None:
        check_integer("n_null", n_null, least=LEAST_RANDOM)


def _check_model(cells: Cells, how: How, expression: Hide | None) -> None:
    config, tokenizer = cells.model.config, cells.plan.tokenizer.config
    if tokenizer.parts or tokenizer.modalities:
        raise ValueError(f"Expected a model of one modality, found {cells.model.name!r}, which reads several.")
    if how == "zero" and tokenizer.order == "rank":
        raise ValueError(
            "Expected how='remove' or 'max' for a model that reads genes in the order of their expression, where one of "
            "zero has no place, found 'zero'."
        )
    if how == "max" and not getattr(config.encoder, "padding_mask", True):
        raise ValueError(
            "Expected how='remove' or 'zero' for a model whose encoder sees padding, to which a cell with a token more is "
            "another in every token, found 'max'."
        )
    if expression is None:
        return
    head = config.heads.get("expression")
    if head is None or isinstance(head, AffineConfig):
        what = "none" if head is None else "one for perturbations, which needs the value that it predicts"
        raise ValueError(
            f"Expected a model with the head 'expression' of masked values, found {what}. Use expression=None, or "
            "`tl.predict_perturbation` for a model of perturbations."
        )
    if expression == "generated" and "generation" not in config.embedder.parts:
        raise ValueError(
            "Expected expression='masked' for a model without the vector for values to be generated, found 'generated'."
        )


def _drawn(cells: Cells, groups: NDArray[np.integer], n: int | None, seed: int) -> NDArray[np.int64]:
    """Rows to take, ascending: at most so many of each group."""
    kept = []
    for group in range(groups.max(initial=-1) + 1):
        own = np.flatnonzero(groups == group)
        kept.append(own if n is None else own[sample(seed, 0, cells.source.keys[own], n)])
    rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)
    if not len(rows):
        raise ValueError("Expected cells to change genes in, found none.")
    return rows


def _asked(adata: AnnData, cells: Cells, genes: Sequence[str] | None) -> NDArray[np.int64]:
    """Numbers of the genes to change among those that the model knows, in the order of the table."""
    known = cells.plan.features.columns
    if genes is None:
        return np.arange(len(known))
    names = pd.Index(check_texts("genes", genes)).unique()
    missing = ~names.isin(adata.var_names)
    if missing.any():
        raise KeyError(absent(names[int(missing.argmax())], adata.var_names, "gene in `var_names`:"))
    # Of several columns of a gene those that the model reads.
    asked = np.flatnonzero(adata.var_names[known].isin(names))
    if not len(asked):
        raise ValueError(f"Expected genes that the model {cells.model.name!r} knows, found none of {len(names)}.")
    if len(asked) < len(names):
        without = names[~names.isin(adata.var_names[known])]
        warn_user(
            f"Expected genes that the model knows, found {len(without)} that it does not, which are left out: "
            f"{', '.join(without[:10])}{', ...' if len(without) > 10 else ''}."
        )
    return asked


def _null(
    levels: Levels, asked: NDArray[np.int64], n: int | None, min_cells: int, how: How, run: Knockouts, seed: int
) -> NDArray[np.int64]:
    """Random genes beside those asked for, of which random ones are taken too where there are too few others."""
    if n is None:
        return np.zeros(0, dtype=np.int64)
    # Of all groups together, so that there is one set of random genes.
    n_cells = levels.n_cells.sum(axis=1)
    value = (levels.n_cells * levels.mean).sum(axis=1) / np.maximum(n_cells, 1)
    frequent = np.arange(run.n_genes) if how == "max" else np.flatnonzero(n_cells >= min_cells)
    others = np.setdiff1d(frequent, asked)
    if len(frequent) < LEAST_RANDOM:
        raise ValueError(
            f"Expected {LEAST_RANDOM} genes or more that at least min_cells={min_cells} cells have, to compare with, found "
            f"{len(frequent)}. Pass n_null=None to compare with nothing."
        )
    return draw_matched(np.stack([n_cells, value], axis=1), asked, others, n, rng=seed) if len(others) else others


def _computed(
    run: Knockouts,
    genes: NDArray[np.int64],
    store: str | PathLike[str] | None,
    about: dict[str, Any],
    show_progress: bool | None,  # noqa: FBT001 - handed on
) -> Found:
    cells, dim = run.cells, run.cells.model.dim
    width = run.n_groups * (2 + dim + (run.n_genes if run.hide else 0))
    names = [str(cells.table.adata.var_names[column]) for column in cells.plan.features.columns[genes]]
    finished = FinishedRows.open(store, _request(run, about) if store else {}, width=width, what="these knock-outs")
    finished.check_room(names)
    rows = np.empty((len(genes), width), dtype=np.float32)
    missing = []
    for number, name in enumerate(names):
        found = finished.read(name)
        if found is None:
            missing.append(number)
        else:
            rows[number] = found
    with run.running(), settings.progress((), total=len(genes), unit="gene", show=show_progress) as bar:
        bar.update(len(genes) - len(missing))
        base = run.base(show_progress=False) if missing else np.zeros((0, dim), dtype=np.float32)
        for some in _chunks(missing):
            shifts = run.shifts(genes[some], base)
            parts = (shifts.n_changed, shifts.length, shifts.mean, shifts.expression)
            rows[some] = np.concatenate([part.reshape(len(some), -1) for part in parts], axis=1)
            for number in some:
                finished.write(names[number], rows[number])
                bar.update()
    ends = np.cumsum([run.n_groups, run.n_groups, run.n_groups * dim])
    changed, shift, moves, expression = np.split(rows, ends, axis=1)
    shape = (len(genes), run.n_groups, -1)
    return Found(
        changed.astype(np.int64),
        shift,
        moves.reshape(shape),
        expression.reshape(*shape[:2], width // run.n_groups - 2 - dim),
    )


def _chunks(numbers: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), _CHUNK):
        yield numbers[start : start + _CHUNK]


def _request(run: Knockouts, about: dict[str, Any]) -> dict[str, str]:
    """What has to agree for finished genes to be of use."""
    cells, values = run.cells, sha256()
    for block in cells.source.blocks():
        for part in (block.X.data.astype("<f8"), block.X.indices.astype("<i8"), block.X.indptr.astype("<i8")):
            values.update(part.tobytes())
    features = cells.plan.features
    return {
        "model": str(about["model"]["checksum"]),
        "cells": sha256("\n".join(map(str, cells.source.names)).encode()).hexdigest(),
        "values": values.hexdigest(),
        "groups": sha256(run.groups.astype("<i8").tobytes()).hexdigest(),
        "matching of genes": sha256(features.columns.tobytes() + features.ids.tobytes()).hexdigest(),
        "settings": json.dumps({**about["params"], **about["tokenizer"]}, sort_keys=True, default=str),
    }
