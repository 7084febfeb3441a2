r"""What a model of perturbations has to beat, from training conditions only.

Every baseline maps training effects to effects of other conditions.  With :math:`d_q` the mean change of training
condition q against the control of its context, a prediction is the control of the target's context plus an effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_integer, check_number, check_numbers
from scgpt_tools.metrics.combining import additive, matching_mean, scaled_additive
from scgpt_tools.metrics.effects import Prediction
from scgpt_tools.metrics.kernel_ridge import kernel
from scgpt_tools.metrics.shrinkage import shrunken_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.metrics.effects import GeneSet, TrainingEffects


def no_change(train: TrainingEffects, targets: Sequence[GeneSet]) -> Prediction:
    """Predict the control."""
    check_arguments(no_change, locals())
    return Prediction(np.zeros((len(targets), len(train.genes))), np.zeros(len(targets), dtype=bool))


def perturbed_mean(train: TrainingEffects, targets: Sequence[GeneSet], *, by_cell: bool = False) -> Prediction:
    """Predict the mean training effect, whatever is perturbed.

    Parameters
    ----------
    train
        Training effects.
    targets
        Genes of each condition to predict.
    by_cell
        Weigh conditions by their number of cells (the "non-control mean").

    Returns
    -------
    The same effect for every condition.
    """
    check_arguments(perturbed_mean, locals())
    mean = train.mean(by_cell=by_cell)
    return Prediction(np.tile(mean, (len(targets), 1)), np.zeros(len(targets), dtype=bool))


def linear(
    train: TrainingEffects,
    targets: Sequence[GeneSet],
    *,
    gene_embedding: NDArray[np.float64] | None = None,
    perturbation_embedding: Mapping[str, NDArray[np.float64]] | None = None,
    dims: int = 10,
    ridge: float = 0.1,
) -> Prediction:
    r"""Predict by a bilinear ridge regression on embeddings of genes and perturbations.

    Ahlmann-Eltze et al. (2025): with training singles and the control as columns of Y, centred by their mean b,

    .. math::

        W = (G^T G + \lambda I)^{-1} G^T (Y - b) P^T (P P^T + \lambda I)^{-1}, \qquad d = b + G W p

    where P is 0 for the control.  The paper predicts singles; here p of several genes is the sum of theirs.

    Parameters
    ----------
    train
        Training effects.
    targets
        Genes of each condition to predict.
    gene_embedding
        (G, d) rows of the measured genes; ``None`` takes the first principal components of the training profiles.
    perturbation_embedding
        Vector of each gene that may be perturbed, for example from the gene table of a model; ``None`` takes the rows
        of the gene embedding, so that only measured genes can be predicted.
    dims
        Principal components.
    ridge
        Penalty of both sides.

    Returns
    -------
    Effects; the mean training effect where a gene has no embedding.

    Raises
    ------
    ValueError
        If no training single has an embedding.
    """
    check_arguments(linear, locals())
    check_integer("dims", dims)
    check_number("ridge", ridge, above=0)
    if gene_embedding is not None and len(check_numbers("gene_embedding", gene_embedding, ndim=2)) != len(train.genes):
        raise ValueError(
            f"Expected a row of `gene_embedding` for each gene ({len(train.genes)}), found {len(gene_embedding)}."
        )
    rows = _gene_components(train, dims) if gene_embedding is None else np.asarray(gene_embedding, dtype=np.float64)
    vectors = dict(zip(train.genes, rows, strict=True)) if perturbation_embedding is None else perturbation_embedding
    known = {gene: effect for gene, effect in train.singles().items() if gene in vectors}
    if not known:
        raise ValueError("Expected a training condition that perturbs a single gene with an embedding, found none.")
    outcome = np.stack([*known.values(), np.zeros(len(train.genes))], axis=1)
    inputs = np.stack([vectors[gene] for gene in known] + [np.zeros(len(next(iter(vectors.values()))))], axis=1)
    centre = outcome.mean(axis=1, keepdims=True)
    left = np.linalg.solve(_penalised(rows.T @ rows, ridge), rows.T @ (outcome - centre))
    weights = np.linalg.solve(_penalised(inputs @ inputs.T, ridge), (left @ inputs.T).T).T
    informed = np.array([all(gene in vectors for gene in genes) for genes in targets], dtype=bool)
    effects = np.tile(train.mean(), (len(targets), 1))
    for row, genes in enumerate(targets):
        if informed[row]:
            effects[row] = centre[:, 0] + rows @ (weights @ np.sum([vectors[gene] for gene in genes], axis=0))
    return Prediction(effects, informed)


BASELINES: dict[str, Callable[[TrainingEffects, Sequence[GeneSet]], Prediction]] = {
    "no_change": no_change,
    "perturbed_mean": perturbed_mean,
    "matching_mean": matching_mean,
    "additive": additive,
    "scaled_additive": scaled_additive,
    "linear": linear,
    "kernel": kernel,
    "shrunken_mean": shrunken_mean,
}
"""Baselines that every table of predictions shows."""


def predict_baselines(
    train: TrainingEffects, targets: Sequence[GeneSet], control: NDArray[np.float64] | None = None
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.bool_]]]:
    """Profiles of every baseline that the training conditions allow.

    Parameters
    ----------
    train
        Training effects.
    targets
        Genes of each condition to predict.
    control
        (G,) or (T, G) controls of the context of each target; ``None`` takes the training controls.

    Returns
    -------
    Profiles (T, G) by name, and which targets each baseline was informed of.  ``linear`` is left out where no training
    single is measured, ``shrunken_mean`` where ``train`` has no errors.
    """
    check_arguments(predict_baselines, locals())
    without = set()
    if not set(train.singles()) & set(train.genes):
        without.add("linear")
    if train.errors is None:
        without.add("shrunken_mean")
    names = [name for name in BASELINES if name not in without]
    found = {name: BASELINES[name](train, targets) for name in names}
    base = train.control if control is None else control
    profiles = {name: base + prediction.effects for name, prediction in found.items()}
    return profiles, {name: prediction.informed for name, prediction in found.items()}


def interpolated_duplicate(
    half: NDArray[np.float64], mean: NDArray[np.float64], pvals_adj: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A ceiling that knows which genes it can be sure of: per gene, half of the true cells or the perturbed mean.

    ``half`` (C, G) profiles of half of the true cells; ``mean`` (G,) or (C, G) perturbed mean; ``pvals_adj`` (C, G)
    adjusted p values of the true effects.  Returns (C, G).
    """
    sure = 1 - np.asarray(pvals_adj, dtype=np.float64)
    return sure * half + (1 - sure) * mean


def _gene_components(train: TrainingEffects, dims: int) -> NDArray[np.float64]:
    """Scores of genes on the principal components of the training profiles, the control among them."""
    profiles = np.column_stack([train.control, (train.control + train.effects).T])
    left, size, _ = np.linalg.svd(profiles - profiles.mean(axis=0), full_matrices=False)
    return left[:, :dims] * size[:dims]


def _penalised(matrix: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    return matrix + ridge * np.eye(len(matrix))
