"""What an embedding of cells tells of their expression: changes by perturbations, and genes by the cells that express them.

The embedding is that of the perturbed cells themselves: this says what can be read off it, and predicts nothing.
Letters: N cells, G genes, D dimensions, P perturbations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import Ridge

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import as_generator, check_finite, check_fraction, check_integer, check_number
from scgpt_tools.metrics.perturbation import direction_match, mask_of, mse, pearson

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scgpt_tools._types import RngLike


class DecodingScores(NamedTuple):
    """How well changes of expression are read off embeddings, beside the mean change of the training perturbations."""

    pearson: float
    """Correlation over the genes that change most, averaged over test perturbations."""
    mse: float
    """Squared error over them."""
    direction: float
    """Share of them that move the right way."""
    mean_pearson: float
    """The first for the mean change of the training perturbations."""
    mean_mse: float
    """The second for it."""
    mean_direction: float
    """The third for it."""
    above_mean: float
    """Share of test perturbations whose correlation is higher than that of the mean change."""
    train: tuple[str, ...]
    """Perturbations that were trained on."""
    test: tuple[str, ...]
    """Perturbations that were scored."""


def mean_changes(X: ArrayLike | sp.spmatrix, labels: ArrayLike, control: str) -> tuple[list[str], NDArray[np.float64]]:
    """Compute how much the mean of each perturbation's cells differs from that of the controls.

    Parameters
    ----------
    X
        (N, G) expression.
    labels
        Perturbation of each cell.
    control
        Label of the controls.

    Returns
    -------
    Perturbations in the order of their names, and (P, G) changes.

    Raises
    ------
    ValueError
        If there are no controls or no perturbed cells, or shapes differ.
    """
    check_arguments(mean_changes, locals())
    table, names = (
        sp.csr_matrix(X) if sp.issparse(X) else np.asarray(X, dtype=np.float64),
        np.asarray(labels).astype(str),
    )
    if table.ndim != 2 or names.shape != (table.shape[0],):
        raise ValueError(f"Expected (cells, genes) and a label of each cell, found {table.shape} and {names.shape}.")
    labelled = sorted(set(names.tolist()))
    present = [name for name in labelled if name != control]
    if control not in labelled or not present:
        raise ValueError(f"Expected controls {control!r} and perturbed cells, found the labels {labelled[:8]}.")
    means = {
        name: np.asarray(table[names == name].mean(axis=0), dtype=np.float64).ravel() for name in [control, *present]
    }
    return present, np.stack([means[name] - means[control] for name in present])


def decode_changes(
    X: ArrayLike | sp.spmatrix,
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    control: str = "control",
    n_top_genes: int = 50,
    test_size: float = 0.2,
    penalty: float = 1.0,
    rng: RngLike = 42,
) -> DecodingScores:
    """Read the mean change of expression by a perturbation off the mean embedding of its cells.

    A ridge regression is trained on some perturbations and scored on the others, over the genes that change most in truth.

    Parameters
    ----------
    X
        (N, G) expression.
    embedding
        (N, D).
    labels
        Perturbation of each cell.
    control
        Label of the controls.
    n_top_genes
        How many genes each perturbation is scored on.
    test_size
        Part of the perturbations to score, at least one.
    penalty
        Of the regression.
    rng
        Whole number, generator or ``None`` (fresh entropy) for the division of the perturbations.

    Returns
    -------
    Scores, and those of the mean change of the training perturbations.

    Raises
    ------
    ValueError
        If there are fewer than two perturbations, or shapes differ.
    """
    check_arguments(decode_changes, locals())
    check_integer("n_top_genes", n_top_genes)
    check_number("penalty", penalty, least=0)
    check_fraction("test_size", test_size, zero=False, one=False)
    names, changes = mean_changes(X, labels, control)
    cells, groups = np.asarray(embedding, dtype=np.float64), np.asarray(labels).astype(str)
    if cells.ndim != 2 or len(cells) != len(groups):
        raise ValueError(f"Expected an embedding of {len(groups)} cells, found the shape {cells.shape}.")
    check_finite("the embedding of every cell", cells, "Leave out cells without one.")
    if len(names) < 2:
        raise ValueError(f"Expected at least two perturbations, found {names}.")
    means = np.stack([cells[groups == name].mean(axis=0) for name in names])
    order = as_generator(rng).permutation(len(names))
    n_test = max(1, int(len(names) * test_size))
    test, train = order[:n_test], order[n_test:]
    predicted = Ridge(alpha=penalty).fit(means[train], changes[train]).predict(means[test])
    baseline = np.broadcast_to(changes[train].mean(axis=0), predicted.shape)
    where = mask_of(most_changed(changes[test], n_top_genes), changes.shape[1])
    ours, others = (_scores(side, changes[test], where) for side in (predicted.reshape(n_test, -1), baseline))
    own, other = ([float(np.nanmean(score)) for score in side] for side in (ours, others))
    return DecodingScores(
        pearson=own[0],
        mse=own[1],
        direction=own[2],
        mean_pearson=other[0],
        mean_mse=other[1],
        mean_direction=other[2],
        above_mean=float((np.nan_to_num(ours[0]) > np.nan_to_num(others[0])).mean()),
        train=tuple(names[number] for number in train),
        test=tuple(names[number] for number in test),
    )


def most_changed(changes: ArrayLike, n: int) -> NDArray[np.int64]:
    """Find the genes that change most.

    Parameters
    ----------
    changes
        (P, G).
    n
        How many genes, at most G.

    Returns
    -------
    (P, n) numbers of genes, the largest change first.
    """
    check_arguments(most_changed, locals())
    return np.argsort(-np.abs(np.asarray(changes)), axis=1, kind="stable")[:, : check_integer("n", n)]


def gene_vectors(
    X: ArrayLike | sp.spmatrix, embedding: ArrayLike, *, min_cells: int = 10
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Represent each gene by the mean embedding of the cells that express it.

    Parameters
    ----------
    X
        (N, G) expression.
    embedding
        (N, D).
    min_cells
        Cells that have to express a gene.

    Returns
    -------
    Numbers of the genes that enough cells express, and their vectors; cosines of these are scores of pairs for
    :func:`score_edges`.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    check_arguments(gene_vectors, locals())
    check_integer("min_cells", min_cells)
    table, cells = sp.csr_matrix(X), np.asarray(embedding, dtype=np.float64)
    if cells.ndim != 2 or len(cells) != table.shape[0]:
        raise ValueError(f"Expected an embedding of {table.shape[0]} cells, found the shape {cells.shape}.")
    expressed = (table > 0).astype(np.float64)
    counts = np.asarray(expressed.sum(axis=0)).ravel()
    genes = np.flatnonzero(counts >= min_cells)
    return genes, np.asarray((expressed.T @ cells)[genes] / counts[genes, None])


def _scores(
    predicted: NDArray[np.float64], true: NDArray[np.float64], where: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    zero = np.zeros(true.shape[1])
    return [
        pearson(predicted, true, where=where),
        mse(predicted, true, where=where),
        direction_match(predicted, true, reference=zero, where=where),
    ]
