"""Effects of several genes from those of each alone: their mean, their sum, and what is between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools.metrics.effects import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.metrics.effects import GeneSet, TrainingEffects

SCALED_SUM = 0.6
"""What pairs have of the sum of their single effects, where no training pair tells: about what they have in CRISPRa screens of
K562 and Cas13d screens of THP-1."""


def matching_mean(train: TrainingEffects, targets: Sequence[GeneSet]) -> Prediction:
    """Predict the mean of the single effects, with the perturbed mean for a gene that was not seen alone (Systema)."""
    check_arguments(matching_mean, locals())
    return _from_singles(train, targets, np.mean)


def additive(train: TrainingEffects, targets: Sequence[GeneSet]) -> Prediction:
    """Predict the sum of the single effects, with the perturbed mean for a gene that was not seen alone."""
    check_arguments(additive, locals())
    return _from_singles(train, targets, np.sum)


def scaled_additive(train: TrainingEffects, targets: Sequence[GeneSet]) -> Prediction:
    r"""Predict a share of the sum of single effects, with the perturbed mean for a gene that was not seen alone.

    For pairs the share is the least squares fit to training pairs of genes that were both seen alone, or 0.6 without any;
    with s that share, those of n genes have :math:`n^{\log_2 s}`, from the mean at s = 1/2 to the sum at s = 1.

    Parameters
    ----------
    train
        Training effects.
    targets
        Genes of each condition to predict.

    Returns
    -------
    Effects; of single genes as they are.
    """
    check_arguments(scaled_additive, locals())
    found = additive(train, targets)
    _, products, sizes = _pairs_of_singles(train)
    return found._replace(effects=found.effects * _shares(targets, _share(products, sizes))[:, None])


def left_out_scaled_additive(train: TrainingEffects, rows: Sequence[int]) -> NDArray[np.float64]:
    """(R, G) some training combinations by :func:`scaled_additive`, each from all other conditions.

    ``rows`` (R,) their numbers; no other condition perturbs the same genes.
    """
    singles, total, n = train.singles(), train.effects.sum(axis=0), len(train.perturbed)
    pairs, products, sizes = _pairs_of_singles(train)
    found = np.empty((len(rows), len(train.genes)))
    for place, row in enumerate(rows):
        genes, stand_in = train.perturbed[row], (total - train.effects[row]) / (n - 1)
        share = _share(products[pairs != row], sizes[pairs != row])
        added = np.sum([singles.get(gene, stand_in) for gene in genes], axis=0)
        found[place] = added * _shares([genes], share)[0]
    return found


def _pairs_of_singles(train: TrainingEffects) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Training pairs of genes that were both seen alone: rows (P,), product of sum and effect, squared length of the sum."""
    singles = train.singles()
    rows = [row for row, own in enumerate(train.perturbed) if len(own) == 2 and singles.keys() >= set(own)]
    products, sizes = np.empty(len(rows)), np.empty(len(rows))
    for place, row in enumerate(rows):
        first, second = train.perturbed[row]
        added = singles[first] + singles[second]
        products[place], sizes[place] = added @ train.effects[row], added @ added
    return np.array(rows, dtype=np.int64), products, sizes


def _share(products: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """What pairs have of the sum of their single effects, by least squares."""
    size = float(sizes.sum())
    return max(float(products.sum()) / size, 0.01) if size else SCALED_SUM


def _shares(targets: Sequence[GeneSet], share: float) -> NDArray[np.float64]:
    """Share of the sum of each set of genes, from that of pairs."""
    return np.array([len(genes) for genes in targets], dtype=float) ** np.log2(share)


def _from_singles(train: TrainingEffects, targets: Sequence[GeneSet], combine: Callable[..., NDArray]) -> Prediction:
    singles, stand_in = train.singles(), train.mean()
    effects = [combine([singles.get(gene, stand_in) for gene in genes], axis=0) for genes in targets]
    informed = [all(gene in singles for gene in genes) for genes in targets]
    return Prediction(np.reshape(effects, (len(targets), len(train.genes))), np.array(informed, dtype=bool))
