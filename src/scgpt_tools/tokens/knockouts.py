"""Cells without a gene, with none of it, or with as much as there is of any: changes of one token a cell.

All other tokens stay as they are, bins and draws included, so a difference in what a network makes of two cells is that
of the one token.  Shape letters: B cells, L tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from scgpt_tools.tokens.corruptions import candidates_of

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.tokenizer import Tokenizer

How = Literal["remove", "zero", "max"]


def most_expressed(batch: TokenBatch, tokenizer: Tokenizer) -> Tensor:
    """(B,) highest value of a gene in each cell; minus infinity in cells without any."""
    real = candidates_of(batch, tokenizer.config.first)
    return batch.values.masked_fill(~real, -torch.inf).amax(dim=1)


def without_tokens(batch: TokenBatch, places: Tensor, tokenizer: Tokenizer) -> TokenBatch:
    """Take a token out of each cell; ``places`` (B,) its column.  Padding takes its room at the end."""
    length = batch.genes.shape[1]
    columns = torch.arange(length - 1)
    others = columns + (columns >= places[:, None])
    return _numbered(batch.gathered(others).padded(length, tokenizer.padding))


def with_values(batch: TokenBatch, places: Tensor, values: Tensor, tokenizer: Tokenizer) -> TokenBatch:
    """Exchange the value of a token in each cell; ``places`` (B,) its column, ``values`` (B,) what it is to be."""
    changed = batch.replace(values=batch.values.scatter(1, places[:, None], values[:, None]))
    if batch.bins is None:
        return changed
    # Bins of what is hidden from the network stay those of something hidden.
    bins = tokenizer.with_channels(changed).require("bins")
    return changed.replace(bins=bins if batch.hidden is None else torch.where(batch.hidden, batch.bins, bins))


def overexpressed(batch: TokenBatch, genes: Tensor, places: Tensor, values: Tensor, tokenizer: Tokenizer) -> TokenBatch:
    """Give each cell a gene at a value.

    ``genes`` (B,) token ids, ``places`` (B,) their columns, negative where a cell lacks the gene and gets a token more,
    ``values`` (B,) what they are to be.  Where the order of tokens is that of expression, the gene goes to the front.
    """
    absent = places < 0
    if bool(absent.any()):
        padding, last = tokenizer.padding, batch.genes.shape[1]
        batch = batch.appended(
            1,
            genes=torch.where(absent, genes, int(padding["genes"]))[:, None],
            values=torch.where(absent, values, padding["values"])[:, None],
            mask=absent[:, None],
        )
        places = torch.where(absent, last, places)
    changed = with_values(batch, places, values, tokenizer)
    return _to_front(changed, places, tokenizer) if tokenizer.config.order == "rank" else changed


def _to_front(batch: TokenBatch, places: Tensor, tokenizer: Tokenizer) -> TokenBatch:
    """Put a token of each cell before the others, behind the cell token; the last one of a cell that is full goes."""
    columns = torch.arange(batch.genes.shape[1]).expand(batch.mask.shape)
    rank = torch.where(columns == places[:, None], 0, columns + 1)
    if tokenizer.config.cls:
        rank[:, 0] = -1
    ordered = batch.gathered(rank.argsort(dim=1, stable=True))
    length = tokenizer.config.length
    return _numbered(ordered if length is None else ordered.shortened(length))


def _numbered(batch: TokenBatch) -> TokenBatch:
    """Number the tokens of each cell afresh, where networks read their places."""
    if batch.positions is None:
        return batch
    return batch.replace(positions=torch.arange(batch.mask.shape[1]).expand(batch.mask.shape) * batch.mask)
