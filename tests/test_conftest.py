"""The shared inputs are what they claim to be."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSRDataset


def memory(matrix):
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    if isinstance(matrix, CSRDataset):
        matrix = matrix.to_memory()
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def test_twins_hold_the_same_cells(adata, twin):
    np.testing.assert_array_equal(memory(twin.X), adata.X.toarray())
    assert list(twin.obs_names) == list(adata.obs_names)
    assert list(twin.var_names) == list(adata.var_names)


def test_vocabulary_is_partial_and_reordered(adata, vocabulary):
    ids = vocabulary.ids(adata.var_names)
    assert 0 < (ids < 0).sum() < adata.n_vars
    assert not np.all(np.diff(ids[ids >= 0]) > 0)
