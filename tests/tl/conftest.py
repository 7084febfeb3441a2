"""A small model made on the fly, and the whole content of a table as something to compare."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.models import FAMILIES, CellModel


@pytest.fixture
def make_model(vocabulary):
    """Function that makes a model; changes of the tokenizer by keyword, of other fields by ``config``."""

    def make(*, config: dict | None = None, **tokenizer) -> CellModel:
        torch.manual_seed(0)
        plain = FAMILIES["scgpt"](vocabulary, dim=16, layers=2, heads=2, hidden=24, dropout=0.1)
        plain = replace(plain, tokenizer=replace(plain.tokenizer, **tokenizer), **config or {})
        return CellModel(plain, vocabulary, name="tiny")

    return make


@pytest.fixture
def model(make_model) -> CellModel:
    return make_model().eval()


def fingerprint(adata: ad.AnnData) -> dict[str, object]:
    """All that a table holds: names, types, values and keys."""
    parts: dict[str, object] = {"X": _of_matrix(adata.X), "uns": repr(dict(adata.uns))}
    for name in ("obs", "var"):
        frame = getattr(adata, name)
        parts[name] = (list(frame.columns), list(map(str, frame.dtypes)), list(frame.index), frame.to_csv())
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        container = getattr(adata, name)
        parts[name] = {key: _of_matrix(container[key]) for key in container if key is not None}
    return parts


def _of_matrix(matrix: object) -> object:
    if matrix is None:
        return None
    if sp.issparse(matrix):
        return (matrix.format, matrix.shape, *map(_of_matrix, (matrix.data, matrix.indices, matrix.indptr)))
    array = np.asarray(matrix)
    return (array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())


@pytest.fixture
def unchanged():
    """Function that returns the fingerprint of a table."""
    return fingerprint
