"""Effects of several genes from those of each alone: their mean, their sum, and what is between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
    return _from_singles(train, targets, np.mean)


def additive(train: TrainingEffects, targets: Sequence[GeneSet]) -> Prediction:
    """Predict the sum of the single effects, with the perturbed mean for a gene that was not seen alone."""
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
    singles = train.singles()
    fitted = [row for row, own in enumerate(train.perturbed) if len(own) == 2 and singles.keys() >= set(own)]
    share = SCALED_SUM
    if fitted:
        added = additive(train, [train.perturbed[row] for row in fitted]).effects
        size = float(np.sum(added**2))
        share = max(float(np.sum(added * train.effects[fitted])) / size, 0.01) if size else share
    found = additive(train, targets)
    shares = np.array([len(genes) for genes in targets], dtype=float) ** np.log2(share)
    return found._replace(effects=found.effects * shares[:, None])


def _from_singles(train: TrainingEffects, targets: Sequence[GeneSet], combine: Callable[..., NDArray]) -> Prediction:
    singles, stand_in = train.singles(), train.mean()
    effects = [combine([singles.get(gene, stand_in) for gene in genes], axis=0) for genes in targets]
    informed = [all(gene in singles for gene in genes) for genes in targets]
    return Prediction(np.reshape(effects, (len(targets), len(train.genes))), np.array(informed, dtype=bool))
