r"""Effects without their noise: empirical Bayes shrinkage, condition by condition.

The measured effect :math:`d_{cg}` of condition c on gene g is the true one plus noise of known standard error
:math:`s_{cg}`.  True effects of a condition are taken to be drawn from a mixture of normal distributions around zero,
none among them, whose weights are those that explain its measured effects best (Stephens 2017, "False discovery rates: a
new deal"):

.. math::

    d_{cg} \sim N(\theta_{cg}, s_{cg}^2), \qquad \theta_{cg} \sim \sum_k \pi_{ck} N(0, \tau_k^2), \qquad
    E[\theta \mid d] = d \sum_k p_k(d) \frac{\tau_k^2}{\tau_k^2 + s^2}

with :math:`p_k(d)` the probability that the effect is of component k.  A condition that does nothing goes to zero,
large effects stay nearly as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_numbers
from scgpt_tools.metrics.combining import scaled_additive
from scgpt_tools.metrics.effects import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgpt_tools.metrics.effects import GeneSet, TrainingEffects

_STEP = np.sqrt(2)
"""Between one scale of the mixture and the next."""
_ROUNDS = 200
"""Most rounds of expectation maximisation of its weights."""
_CLOSE = 1e-4
"""Change of the weights at which it stops."""


def shrink_effects(effects: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move measured effects of each condition towards zero by what is noise in them.

    Parameters
    ----------
    effects
        (Q, G) measured effects of Q conditions on G genes.
    errors
        (Q, G) their standard errors; where one is 0, the effect stays.

    Returns
    -------
    (Q, G) posterior means, under a prior that is fitted to each condition; the module has the formula.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite or an error is negative.
    """
    check_arguments(shrink_effects, locals())
    effects = check_numbers("effects", effects, ndim=2)
    errors = check_numbers("errors", errors, ndim=2)
    if effects.shape != errors.shape:
        raise ValueError(f"Expected `errors` of shape {effects.shape}, as `effects`, found {errors.shape}.")
    if (errors < 0).any():
        raise ValueError(f"Expected `errors` that are not negative, found {errors.min():g}.")
    shrunken = np.empty_like(effects)
    for row, (measured, error) in enumerate(zip(effects, errors, strict=True)):
        noisy = error > 0
        shrunken[row] = NormalMixture.fit(measured[noisy], error[noisy]).mean(measured, error)
    return shrunken


def shrunken_mean(train: TrainingEffects, targets: Sequence[GeneSet]) -> Prediction:
    """Predict the shrunken effect of the same condition, and of others the share of the sum of shrunken single effects.

    See :func:`shrink_effects` and :func:`scaled_additive`.  It is made for conditions that were seen, in other cells.

    Parameters
    ----------
    train
        Training effects with ``errors``.  Those of the same genes, in several contexts, count as one, with the mean over
        their cells.
    targets
        Genes of each condition to predict.

    Returns
    -------
    Effects; informed where the condition was seen, or each of its genes alone.

    Raises
    ------
    ValueError
        If the training effects have no errors.
    """
    check_arguments(shrunken_mean, locals())
    if train.errors is None:
        raise ValueError("Expected training effects with `errors`, by which they are shrunken, found None.")
    train = train.by_genes()
    assert train.errors is not None  # noqa: S101 - as before
    shrunken = replace(train, effects=shrink_effects(train.effects, train.errors))
    effects, informed = scaled_additive(shrunken, targets)
    place = {genes: row for row, genes in enumerate(shrunken.perturbed)}
    rows = np.array([place.get(tuple(sorted(genes)), -1) for genes in targets], dtype=np.int64)
    seen = rows >= 0
    effects[seen] = shrunken.effects[rows[seen]]
    return Prediction(effects, informed | seen)


@dataclass(frozen=True)
class NormalMixture:
    """What true effects of a condition are taken to be drawn from: normal distributions around zero."""

    variances: NDArray[np.float64]
    """(K,) of the components, the first of which is none."""
    weights: NDArray[np.float64]
    """(K,) sum to 1."""

    @classmethod
    def fit(cls, effects: NDArray[np.float64], errors: NDArray[np.float64]) -> NormalMixture:
        """The mixture that explains measured effects (G,) with their standard errors (G,), all above 0, best."""
        measured, noise = effects[:, None], errors[:, None] ** 2
        if not noise.size:
            return cls(np.zeros(1), np.ones(1))
        least, largest = np.sqrt(noise.min()) / 10, 2 * np.sqrt(max(float(np.max(measured**2 - noise)), 0.0))
        # From none to scales that no effect is beyond.
        n = 0 if largest <= least else int(np.ceil(np.log(largest / least) / np.log(_STEP))) + 1
        variances = np.concatenate([[0.0], (least * _STEP ** np.arange(n)) ** 2])
        likelihood = _likelihood(measured, noise + variances)
        weights = np.full(variances.size, 1 / variances.size)
        for _ in range(_ROUNDS):
            before, weights = weights, _given(likelihood, weights).mean(axis=0)
            if np.abs(weights - before).max() < _CLOSE:
                break
        return cls(variances, weights)

    def mean(self, effects: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """(G,) expected true effects, given the measured ones; where an error is 0, the effect stays."""
        found, noisy = effects.copy(), errors > 0
        of_components, shares = self._posterior(effects[noisy], errors[noisy])
        found[noisy] *= np.sum(of_components * shares, axis=1)
        return found

    def draw(
        self, effects: NDArray[np.float64], errors: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(G,) true effects drawn from what is probable, given the measured ones; where an error is 0, the effect stays.

        Expected effects vary less than true ones, for what is unsure of them is averaged away; drawn ones vary as much.
        """
        found, noisy = effects.copy(), errors > 0
        of_components, shares = self._posterior(effects[noisy], errors[noisy])
        u = rng.random((len(of_components), 1))
        chosen = np.minimum((of_components.cumsum(axis=1) < u).sum(axis=1), self.variances.size - 1)
        share = np.take_along_axis(shares, chosen[:, None], axis=1)[:, 0]
        found[noisy] = share * found[noisy] + np.sqrt(share) * errors[noisy] * rng.normal(size=share.size)
        return found

    def _posterior(
        self, effects: NDArray[np.float64], errors: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(G, K) probability of each component, and share of the measured effect that is expected under it."""
        noise = errors[:, None] ** 2
        total = noise + self.variances
        return _given(_likelihood(effects[:, None], total), self.weights), self.variances / total


def _likelihood(measured: NDArray[np.float64], variances: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, K) of each effect under each variance, up to a factor of the effect."""
    log = -0.5 * (measured**2 / variances + np.log(variances))
    return np.exp(log - log.max(axis=1, keepdims=True))


def _given(likelihood: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, K) probability of each component, given each effect."""
    joint = likelihood * weights
    return joint / joint.sum(axis=1, keepdims=True)
