"""Which genes a minibatch of training reads, where it does not read all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from scgpt_tools._validate import as_generator, check_choice, check_integer

if TYPE_CHECKING:
    import scipy.sparse as sp

    from scgpt_tools._types import RngLike
    from scgpt_tools.tokens.features import FeatureTable

Selection: TypeAlias = Literal["most_expressed", "random_expressed"]


def select_genes(
    X: sp.csr_matrix, features: FeatureTable, n_genes: int, *, how: Selection = "most_expressed", rng: RngLike = 0
) -> FeatureTable:
    """Choose among the genes that the cells of a minibatch express.

    Parameters
    ----------
    X
        Values of the cells.
    features
        Which columns are which tokens.
    n_genes
        How many genes to keep at most.
    how
        Those of the highest sums over the cells, of equal ones the first columns; or as many drawn at random.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the draw.

    Returns
    -------
    The features that are kept, in the order of the columns.  A cell then depends on its neighbours, so this is for training
    only.
    """
    check_integer("n_genes", n_genes)
    check_choice("how", how, get_args(Selection))
    known = X.tocsr()[:, features.columns]
    expressed = np.flatnonzero(np.asarray((known > 0).sum(axis=0)).ravel())
    if how == "most_expressed":
        sums = np.asarray(known.sum(axis=0, dtype=np.float64)).ravel()[expressed]
        chosen = expressed[np.argsort(-sums, kind="stable")[:n_genes]]
    else:
        chosen = as_generator(rng).permutation(expressed)[:n_genes]
    kept = np.sort(chosen)
    return replace(
        features,
        columns=features.columns[kept],
        ids=features.ids[kept],
        names=features.names[kept],
        modality=None if features.modality is None else features.modality[kept],
    )
