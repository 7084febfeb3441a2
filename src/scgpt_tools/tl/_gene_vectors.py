"""Gene embeddings as the functions on gene networks read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_finite, check_key, check_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


class GeneVectors(NamedTuple):
    """Vectors of the genes that have one."""

    columns: NDArray[np.int64]
    """(genes,) their columns of the table."""
    vectors: NDArray[np.float32]
    """(genes, dim), as they are stored."""


def read_gene_vectors(adata: AnnData, key: str, genes: Sequence[str] | None) -> GeneVectors:
    """Vectors of a key of ``varm``.

    ``key``: key of ``varm``; rows of NaN are genes that the model does not know; ``genes``: names to restrict to;
    ``None`` for all.
    """
    stored = check_key(adata.varm, key, "varm")
    vectors = np.asarray(adata.varm[stored], dtype=np.float32)
    known = ~np.isnan(vectors).any(axis=1)
    if genes is not None:
        places = pd.Index(adata.var_names).get_indexer(pd.Index(names := check_texts("genes", genes, least=2)))
        if (places < 0).any():
            raise KeyError(absent(names[int((places < 0).argmax())], adata.var_names, "gene in `var_names`:"))
        known &= np.isin(np.arange(adata.n_vars), places)
    columns = np.flatnonzero(known)
    if len(columns) < 2:
        raise ValueError(
            f"Expected two genes or more with a vector in varm[{key!r}], found {len(columns)}. Genes outside the "
            "vocabulary of the model have none."
        )
    check_finite(f"the vectors of varm[{key!r}]", vectors[columns], "Compute them again.")
    return GeneVectors(columns, vectors[columns])


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; a vector of zeros stays one."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
