"""Predict the values of tokens that a cell does not have.

The query tokens are generated: each sees the tokens of the cell and itself, nothing sees it, so a prediction does not
depend on the other queries.  B cells, L tokens a cell, Q query tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scgpt_tools.tokens.joint import unscaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.tokens.batch import TokenBatch
    from scgpt_tools.tokens.modalities import ModalityConfig
    from scgpt_tools.vocabulary import Vocabulary

HEADS = ("expression", "expression_from_cell")
"""Heads that predict values."""
# Queries of one pass; more take several passes, with the same result.
_AT_ONCE = 512


def query_values(
    model: CellModel, batch: TokenBatch, *, ids: NDArray[np.int64], modality: int, attention: str | None = None
) -> Tensor:
    """Predict the values of some tokens: the mean of what their tokens and the cell embedding say.

    The two heads err differently, so their mean is better than either; a model without the second is read by the first.

    ``model``: in eval mode, with the head ``expression`` and the vector for values to be generated; ``ids`` (Q,) token
    ids; ``attention``: backend; of those that know generated tokens, ``None`` for ``"sdpa"``.  Returns (B, Q) values in
    the unit of the tokenizer.
    """
    pieces = torch.from_numpy(ids).split(_AT_ONCE)
    queries = (_with_queries(model, batch, piece, modality).to(model.device) for piece in pieces)
    heads = tuple(name for name in HEADS if name in model.heads)
    outputs = (model(query, heads, attention=attention or "sdpa") for query in queries)
    width = batch.genes.shape[1]
    return torch.cat(
        [torch.stack([output[name][:, width:].float() for name in heads]).mean(dim=0) for output in outputs], dim=1
    )


def tokens_of(vocabulary: Vocabulary, part: ModalityConfig) -> tuple[str, ...]:
    """Tokens of a modality that a model knows; none where its features have no prefix and were not chosen."""
    if part.keep is not None:
        return part.keep
    if not part.prefix:
        return ()
    return tuple(token for token in vocabulary.tokens if token.startswith(part.prefix))


def in_unit_of_data(values: NDArray[np.float32], part: ModalityConfig, tokens: Sequence[str]) -> NDArray[np.float32]:
    """Turn predicted values (cells, tokens) into the unit that :func:`unit_of` names."""
    if part.values == "binned":
        if part.levels is None:
            return values
        return np.interp(values, np.arange(len(part.levels)), part.levels).astype(np.float32)
    return np.clip(unscaled(values, part, tokens), 0, 1 if part.values == "binary" else None)


def unit_of(part: ModalityConfig) -> str:
    """Unit of imputed values.

    Returns ``"clr"``, ``log1p`` of the ratio to the geometric mean of the cell; ``"log1p"`` of values as they were
    trained on, also where those were binned, by the mean of each bin in the training cells; ``"probability"`` of a
    value above zero; ``"raw"``; or ``"bin"`` for a model that kept no such means.
    """
    if part.values == "binned":
        return "bin" if part.levels is None else "log1p"
    return "probability" if part.values == "binary" else part.values


def _with_queries(model: CellModel, batch: TokenBatch, ids: Tensor, modality: int) -> TokenBatch:
    """The cells with tokens to be generated behind their own, padding included."""
    return batch.appended(
        len(ids),
        genes=ids,
        values=model.config.tokenizer.mask_value,
        mask=True,
        modality=modality,
        generated=True,
    )
