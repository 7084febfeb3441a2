"""How much of the labels of cells a linear classifier finds in an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_seed, check_finite, check_flag, check_fraction, check_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike

# Seeds of scikit-learn have 32 bits.
_SEEDS = 2**32


class ProbeScores(NamedTuple):
    """Scores on cells that the classifier was not trained on."""

    accuracy: float
    """Share of cells with the right label."""
    f1_macro: float
    """F1, averaged over labels."""
    f1_weighted: float
    """F1, averaged over cells."""
    majority: float
    """Accuracy of the label that is the most frequent in training, for all cells."""
    n_train: int
    """Cells that were trained on."""
    n_test: int
    """Cells that were scored."""


def probe_split(
    labels: ArrayLike, *, test_size: float = 0.2, rng: RngLike = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide cells so that each label has its share on both sides.

    Parameters
    ----------
    labels
        Label of each cell.
    test_size
        Part of the cells to score.
    rng
        Whole number, generator or ``None`` (fresh entropy).

    Returns
    -------
    Numbers of the cells to train on, and of those to score.

    Raises
    ------
    ValueError
        If a label has one cell only, or there are too few cells to have each label on both sides.
    """
    check_arguments(probe_split, locals())
    if np.ndim(labels) != 1:
        raise ValueError(f"Expected one label for each cell in `labels`, found an array of shape {np.shape(labels)}.")
    codes, names = pd.factorize(np.asarray(labels), sort=True)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    if (codes < 0).any():
        raise ValueError(f"Expected a label for every cell, found none for {(codes < 0).sum()}.")
    if len(names) < 2 or counts.min() < 2:
        rare = [str(name) for name, count in zip(names, counts, strict=True) if count < 2]
        raise ValueError(
            f"Expected at least two labels of at least two cells, found {len(names)} labels"
            + (f", of which {', '.join(rare[:5])} have one cell. Leave these cells out." if rare else ".")
        )
    check_fraction("test_size", test_size, zero=False, one=False)
    train, test = train_test_split(
        np.arange(len(codes)), test_size=test_size, random_state=as_seed(rng) % _SEEDS, stratify=codes
    )
    return train, test


def linear_probe(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    test_size: float = 0.2,
    standardise: bool = True,
    max_iter: int = 1000,
    rng: RngLike = 0,
) -> ProbeScores:
    """Train a logistic regression on some cells and score it on the others.

    Score principal components of the expression beside it: most labels are easy.

    Parameters
    ----------
    embedding
        (cells, dimensions).
    labels
        Label of each cell.
    test_size
        Part of the cells to score; each label has its share.
    standardise
        Scale dimensions to mean 0 and variance 1.  Without, dimensions that vary little hardly count, and embeddings of large
        norm score like the most frequent label; scModelForge's benchmark does without.
    max_iter
        Most iterations of the solver.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the division of the cells.

    Returns
    -------
    Scores, with the share of the most frequent label beside them.

    Raises
    ------
    ValueError
        If shapes differ, numbers are not finite, or a label has one cell only.
    """
    check_arguments(linear_probe, locals())
    check_flag("standardise", standardise)
    X, y = np.asarray(embedding, dtype=np.float64), np.asarray(labels)
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(f"Expected (cells, dimensions) and a label of each cell, found {X.shape} and {y.shape}.")
    check_finite("the embedding of every cell", X, "Leave out cells without one.")
    train, test = probe_split(y, test_size=test_size, rng=rng)
    if standardise:
        X = StandardScaler().fit(X[train]).transform(X)
    classifier = LogisticRegression(max_iter=check_integer("max_iter", max_iter)).fit(X[train], y[train])
    found = classifier.predict(X[test])
    names, counts = np.unique(y[train], return_counts=True)
    return ProbeScores(
        accuracy=float((found == y[test]).mean()),
        f1_macro=float(f1_score(y[test], found, average="macro", zero_division=0)),
        f1_weighted=float(f1_score(y[test], found, average="weighted", zero_division=0)),
        majority=float((y[test] == names[counts.argmax()]).mean()),
        n_train=len(train),
        n_test=len(test),
    )
