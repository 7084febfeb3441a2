"""Models whose texts say something else, or nothing, to see what the texts added."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import torch

from scgpt_tools._lookup import absent
from scgpt_tools._validate import as_seed, check_choice, check_texts, check_type
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.config import LanguageConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgpt_tools._types import RngLike
    from scgpt_tools.nn.language import TextTable

Ablation = Literal["zeroed", "shuffled", "random"]


def language_streams(model: CellModel) -> list[str]:
    """Names of the parts of a model's embedder that read texts."""
    return [name for name, part in model.config.embedder.parts.items() if isinstance(part, LanguageConfig)]


def ablate(
    model: CellModel, how: Ablation, *, streams: str | Sequence[str] | None = None, rng: RngLike = 0
) -> CellModel:
    """Copy a model with other tables of texts, to predict with or to train from.

    Parameters
    ----------
    model
        A model with embeddings of texts about genes, which stays as it is.
    how
        ``"zeroed"`` takes the texts away; ``"shuffled"`` gives each gene the text of another; ``"random"`` gives each gene
        random numbers of the same norm.  Genes without a text stay as they are where the model masks them; rows that were
        drawn for them (``missing="draw"``, the original's files) count as texts, as the tables do not tell them apart.
    streams
        Parts of the embedder to change, such as ``"go"``; ``None`` for all that read texts.
    rng
        Whole number, generator or ``None`` (fresh entropy) for what is drawn.

    Returns
    -------
    The copy.

    Raises
    ------
    ValueError
        If the model reads no texts, or a stream is none of its.
    """
    check_type("model", model, CellModel)
    check_choice("how", how, get_args(Ablation))
    known = language_streams(model)
    if not known:
        raise ValueError(
            f"Expected a model with embeddings of texts about genes, such as scGenePT, found {model.name!r} without."
        )
    chosen = known if streams is None else check_texts("streams", [streams] if isinstance(streams, str) else streams)
    for name in chosen:
        if name not in known:
            raise ValueError(absent(name, known, "stream of texts"))
    changed = deepcopy(model)
    changed.name = f"{model.name} ({', '.join(chosen)} {how})"
    random = np.random.default_rng(as_seed(rng))
    vocabulary = model.vocabulary
    special = np.array([vocabulary.is_special(token) for token in vocabulary])
    for name in chosen:
        table = cast("TextTable", changed.embedder.get_submodule(f"{name}.table"))
        with torch.no_grad():
            rows = _rows(table)
            own = rows[: len(special)].any(dim=1).cpu().numpy() & ~special
            _set_rows(table, _other_rows(rows, np.flatnonzero(own), how, random))
    return changed


def _rows(table: TextTable) -> Tensor:
    weight = cast("Tensor", table.weight)
    return weight.clone() if table.change is None or table.basis is None else weight + table.change @ table.basis


def _set_rows(table: TextTable, rows: Tensor) -> None:
    cast("Tensor", table.weight).copy_(rows)
    if table.change is not None:
        table.change.zero_()


def _other_rows(rows: Tensor, genes: NDArray[np.int64], how: Ablation, random: np.random.Generator) -> Tensor:
    where = torch.from_numpy(genes).to(rows.device)
    if how == "zeroed":
        rows[where] = 0
    elif how == "shuffled":
        rows[where] = rows[torch.from_numpy(random.permutation(genes)).to(rows.device)]
    else:
        drawn = torch.from_numpy(random.standard_normal((len(genes), rows.shape[1]))).to(rows)
        rows[where] = drawn * (rows[where].norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True))
    return rows
