"""Choices and aliases that more than one room names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

AttentionBackend: TypeAlias = Literal["sdpa", "varlen", "flash", "eager"]
"""How attention is computed; all give the same numbers, and only ``eager`` returns its weights."""

GeneSelection: TypeAlias = Literal["expressed", "all"]
"""Which genes of a cell become tokens."""

Include: TypeAlias = Literal["all", "batch-wise"]
"""Which genes a model of perturbations reads: all, or those that some control of the minibatch expresses."""

Unknown: TypeAlias = Literal["drop", "pad"]
"""Leave columns without a token out, or let them take part under the token of padding, as scGPT's generator does."""

GeneSampling: TypeAlias = Literal["keep_perturbed", "original"]
"""Draw genes of each cell and keep perturbed ones, or one draw a minibatch that may lose them, as scGPT does."""

Unmeasured: TypeAlias = Literal["error", "token", "drop"]
"""Refuse perturbed genes without a column, add their token to the cells that they are perturbed in, or leave these cells
out with a warning."""

Extend: TypeAlias = Literal["auto", "all", "nothing"]
"""Which genes get new tokens in fine-tuning: perturbed ones that the vocabulary lacks, all of the table, or none."""

Training: TypeAlias = Literal["package", "authors"]
"""How long and on what fine-tuning trains: as this package found better, or as the authors of the model did."""

PairMethod: TypeAlias = Literal["random", "transport"]
"""Which controls perturbed cells are paired with: drawn ones, or by optimal transport those that they are near to."""

TokenValues: TypeAlias = Literal["binned", "log1p", "raw"]
"""What stands for the expression of a gene."""

Ties: TypeAlias = Literal["left", "random"]
"""Bin of a value that sits on several equal edges: the last of the bins between them, or one drawn by seed."""

Overflow: TypeAlias = Literal["sample", "first"]
"""What to keep of a cell with more genes than the longest sequence allows."""

Expects: TypeAlias = Literal["counts", "log1p", "any"]
"""Unit of expression that a tokenizer was made for."""

RngLike: TypeAlias = "int | np.random.Generator | None"
"""A whole number, a generator, which gives one draw, or ``None`` for fresh entropy."""

Layers: TypeAlias = str | Mapping[str, str] | None
"""A key of ``layers``; for a MuData also one for each modality; ``None`` for ``X``."""
