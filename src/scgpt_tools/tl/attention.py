"""Attention between genes, by group of cells."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import anndata as ad
import numpy as np
import pandas as pd
import torch

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_seed, check_choice, check_integer, check_key, check_texts
from scgpt_tools.inference.cells import Cells, Request, open_cells
from scgpt_tools.models.attention_maps import Normalization, attention_products, normalized
from scgpt_tools.tl._groups import read_groups
from scgpt_tools.tokens.joint import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools._types import RngLike
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.tokens.batch import TokenBatch

LayerNumber: TypeAlias = int
"""A layer of the network, from 0, or from the end with a minus."""


@shared_docs
def attention(
    adata: AnnData,
    model: CellModel | str | PathLike[str] = "scgpt-human",
    *,
    genes: Sequence[str] | None = None,
    layer: LayerNumber = -1,
    heads: Sequence[int] | None = None,
    normalise: Normalization = "rank",
    groupby: str | None = None,
    use_layer: str | None = None,
    upstream: bool = False,
    device: str | torch.device | None = None,
    rng: RngLike = 0,
    show_progress: bool | None = None,
) -> AnnData:
    """Average the attention that genes pay each other, over the cells of each group :cite:p:`Cui2024`.

    scGPT's tutorial ranks the targets of a gene by the attention that others pay it, in controls and in cells where it
    is knocked out.  Attention says where a network looks in one of its layers, not why it answers as it does: hold such
    a ranking against co-expression, and against what happens when the gene is taken away.

    Parameters
    ----------
    adata
        Cells.
    model
        A loaded model, or what :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes.
    genes
        Names in ``var_names`` of the genes to look at; every cell is read by these genes, expressed or not.  ``None``
        takes all that the model knows.  Memory and time grow with the square of their number: 2,000 genes take 32 MB a
        group, 16 MB a head for the cell at hand, and some 250 MB while a head is ranked; cells do not count.
    layer
        Layer of the network, from 0, or from the end with a minus.  scGPT's tutorial takes the last.
    heads
        Heads to average; ``None`` for all.
    normalise
        ``"rank"`` ranks the keys of each query, and these ranks among the queries of each key, so that cells and heads
        count alike; ``"softmax"`` takes the weights as the network does; ``"none"`` the products of queries and keys.
    groupby
        Column of ``obs``, such as the condition; ``None`` averages over all cells.
    use_layer
        Key of ``layers`` to read; ``None`` takes ``X``.
    upstream
        Leave the first cell of each group out of its sum but count it, as scGPT's tutorial does by mistake, and break
        ties of ranks by the order of the genes, where they share their mean otherwise.
    device
        Where to load a model that is given by name.
    {rng}
    {show_progress}

    Returns
    -------
    A new table, query genes in ``obs`` and key genes in ``var``:

    ``layers[group]`` : float32, (genes, genes)
        Mean over the cells of a group, ``"all cells"`` without ``groupby``.  The column of a gene says how much others
        attend to it.
    ``uns["attention"]`` : :class:`dict`
        ``params``, ``model`` and ``n_cells``, the cells of each group.

    Raises
    ------
    KeyError
        If a key or a gene is absent.
    ValueError
        If there is no such layer or head, or fewer than two genes are known to the model.
    """
    check_arguments(attention, locals())
    check_choice("normalise", normalise, get_args(Normalization))
    groups = read_groups(adata.obs, groupby)
    table = _of_genes(adata, genes)
    cells = _read_in_full(
        open_cells(table, model, Request(layer=use_layer, batch_size=1, device=device, rng=as_seed(rng)))
    )
    number = _layer_number(layer, cells.model.config.encoder.layers)
    chosen = _heads(heads, cells.model.config.encoder.heads)
    columns = cells.plan.features.columns
    if len(columns) < 2:
        raise ValueError(f"Expected two genes or more that the model knows, found {len(columns)}.")
    sums = _Sums(groups, len(columns), skip_first=upstream)
    place_of = torch.full((cells.model.config.n_tokens,), -1)
    place_of[torch.from_numpy(cells.plan.features.ids)] = torch.arange(len(columns))

    def add(batch: TokenBatch) -> Tensor:
        moved = batch.to(cells.model.device)
        products = attention_products(cells.model, moved, layer=number)[:, chosen].float()
        width = cells.model.dim // cells.model.config.encoder.heads
        for row, index in enumerate(batch.require("index").tolist()):
            own = batch.mask[row]
            scores = normalized(products[row][:, own][:, :, own], normalise, width, ties_by_order=upstream).cpu()
            places = place_of[batch.genes[row, own]]
            real = places >= 0  # the cell token takes part and is not reported
            sums.add(index, places[real].numpy(), scores[real][:, real].numpy())
        return torch.empty(len(batch), 0)

    cells.compute(add, width=0, show_progress=show_progress)
    names = table.var_names[columns]
    result = ad.AnnData(obs=pd.DataFrame(index=names), var=pd.DataFrame(index=names))
    for group, mean in sums.means().items():
        result.layers[group] = mean
    record: dict[str, Any] = cells.provenance(
        layer_of_network=number,
        heads="all" if heads is None else ", ".join(str(head) for head in heads),
        normalise=normalise,
        groupby=groupby or "",
        upstream=upstream,
    )
    result.uns["attention"] = record | {"n_cells": sums.n_cells}
    return result


def attention_targets(
    maps: AnnData,
    gene: str,
    *,
    group: str | None = None,
    reference: str | None = None,
    n_genes: int | None = 20,
) -> pd.DataFrame:
    """Rank genes by the attention that they pay to one gene, or by how it differs between two groups of cells.

    Parameters
    ----------
    maps
        What :func:`scgpt_tools.tl.attention` returned.
    gene
        The gene, such as one that is knocked out in some cells.
    group
        Group of cells; ``None`` for the only one.
    reference
        Group to subtract, such as the controls.
    n_genes
        Number of genes to return; ``None`` returns all.

    Returns
    -------
    Columns ``gene`` and ``score``, the highest first; with ``reference`` also ``score_reference`` and ``difference``,
    ranked by the latter.

    Raises
    ------
    KeyError
        If a gene or group is absent.
    ValueError
        If there are several groups and none is named.
    """
    check_arguments(attention_targets, locals())
    groups = [key for key in maps.layers if key is not None]
    if group is None and len(groups) != 1:
        raise ValueError(f"Expected `group` to be one of {groups}, found None.")
    if gene not in maps.var_names:
        raise KeyError(absent(gene, maps.var_names, "gene in `var_names`:"))
    column = maps.var_names.get_loc(gene)
    table = pd.DataFrame({"gene": maps.obs_names.astype(object), "score": _column(maps, group or groups[0], column)})
    by = "score"
    if reference is not None:
        table["score_reference"] = _column(maps, reference, column)
        table["difference"] = table["score"] - table["score_reference"]
        by = "difference"
    others = table[(table["gene"] != gene) & table[by].notna()]
    return others.sort_values(by, ascending=False, kind="stable").head(n_genes or len(others)).reset_index(drop=True)


class _Sums:
    """Sums and counts of pairs of genes for each group of cells."""

    def __init__(self, groups: pd.Categorical[Any], n_genes: int, *, skip_first: bool) -> None:
        self.groups, self._lock = groups, Lock()
        shape = (len(groups.categories), n_genes, n_genes)
        self._sums, self._counts = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
        codes = groups.codes
        self._left_out = {int(np.argmax(codes == code)) for code in range(shape[0])} if skip_first else set()

    def add(self, cell: int, places: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        code = self.groups.codes[cell]
        if code < 0:
            return
        # All genes in their order, as most models read them: no copy of either table.
        whole = np.array_equal(places, np.arange(self._sums.shape[1]))
        pairs = (slice(None), slice(None)) if whole else np.ix_(places, places)
        with self._lock:  # several threads compute
            self._counts[code][pairs] += 1
            if cell not in self._left_out:
                self._sums[code][pairs] += scores

    @property
    def n_cells(self) -> dict[str, int]:
        counts = np.bincount(self.groups.codes[self.groups.codes >= 0], minlength=len(self.groups.categories))
        return {str(name): int(count) for name, count in zip(self.groups.categories, counts, strict=True)}

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Mean of each pair; NaN where no cell of the group has both genes."""
        with np.errstate(invalid="ignore"):
            return {
                str(name): self._sums[code] / self._counts[code] for code, name in enumerate(self.groups.categories)
            }


def _of_genes(adata: AnnData, genes: Sequence[str] | None) -> AnnData:
    if genes is None:
        return adata
    names = check_texts("genes", genes, least=2)
    if missing := [name for name in names if name not in adata.var_names]:
        raise KeyError(absent(missing[0], adata.var_names, "gene in `var_names`:"))
    return adata[:, adata.var_names.isin(names)]


def _read_in_full(cells: Cells) -> Cells:
    """The same cells with a token for every gene, whether it is expressed or not."""
    config = replace(cells.plan.tokenizer.config, genes="all", length=None)
    return replace(cells, plan=replace(cells.plan, tokenizer=tokenizer_of(config, cells.model.vocabulary)))


def _layer_number(layer: int, n_layers: int) -> int:
    number = check_integer("layer", layer, least=-n_layers)
    if number >= n_layers:
        raise ValueError(f"Expected `layer` to be below the {n_layers} of the model, found {layer}.")
    return number % n_layers


def _heads(heads: Sequence[int] | None, n_heads: int) -> list[int]:
    if heads is None:
        return list(range(n_heads))
    if isinstance(heads, str) or not hasattr(heads, "__iter__"):
        raise TypeError(f"Expected `heads` to be a list of numbers, found {heads!r}.")
    chosen = [check_integer("heads", head, least=0) for head in heads]
    if not chosen or max(chosen) >= n_heads or len(set(chosen)) < len(chosen):
        raise ValueError(f"Expected `heads` to name some of 0 .. {n_heads - 1}, each once, found {chosen}.")
    return chosen


def _column(maps: AnnData, group: str, column: int) -> NDArray[np.float32]:
    return np.asarray(maps.layers[check_key(maps.layers, group, "layers")])[:, column]
