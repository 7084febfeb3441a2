r"""Effects of combinations from those of their genes, by kernel ridge regression.

What a condition does is learnt from conditions like it: those that perturb the same genes, genes whose effects when
perturbed alone look alike, or pairs of such genes.  With :math:`f_{cg}` 1 where condition c perturbs gene g alone, and
:math:`n^{\log_2 s}` where it perturbs n genes (s where it is two),

.. math::

    k(c, c') = \sum_{g, h} f_{cg} f_{c'h} S_{gh} + v \sum_{g < g' \in c} \sum_{h \neq h' \in c'} S_{gh} S_{g'h'},
    \qquad S = (1 - \rho) I + \rho \cos

where cos holds the cosines of the effects of single perturbations.  Effects are shrunken towards
:math:`\sum_g f_{cg}` times the mean effect of a single perturbation, which is all there is for genes that were not seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools._arguments import check_arguments
from scgpt_tools.metrics.combining import left_out_scaled_additive
from scgpt_tools.metrics.effects import Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.metrics.effects import GeneSet, TrainingEffects

TOLD = 0.4
"""Weight of vectors of genes beside identity: what single effects left out of three screens bear, a third to a half of it."""
ENOUGH = 8
"""Combinations to leave out one by one; where there are fewer, settings stay as they are."""


@dataclass(frozen=True)
class KernelSettings:
    """How much conditions tell about each other."""

    scale: float = 0.7
    """Share of the effect of each gene in a pair, before shrinking (s)."""
    similarity: float = 0.9
    """How far genes with similar effects stand in for each other (rho)."""
    pairs: float = 0.0
    """Weight of similar pairs (v)."""
    ridge: float = 0.3
    """Variance of noise as a share of that of single effects, in a condition with the median number of cells."""


_CHOICES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("scale", (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    ("pairs", (0.0, 0.03, 0.1, 0.3)),
    ("similarity", (0.0, 0.5, 0.9)),
)
_RIDGES = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class KernelModel:
    """A kernel ridge regression of effects on perturbed genes; see :func:`scgpt_tools.metrics.kernel`."""

    train: TrainingEffects
    settings: KernelSettings = KernelSettings()
    vectors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """What else tells which genes are alike, such as embeddings of texts about them."""
    left_out: Mapping[str, float] = field(default_factory=dict)
    """Mean squared error in training combinations that were left out, by ``"kernel"``, ``"scaled_additive"`` and
    ``"no_change"``; empty where there are too few."""

    @classmethod
    def fit(cls, train: TrainingEffects) -> KernelModel:
        """Choose settings, one after the other, by leaving out combinations whose genes other conditions perturb too."""
        train = train.by_genes()
        rows = _testable(train)
        if len(rows) < ENOUGH:
            return cls(train)
        best = cls(train)._left_out(rows)
        for name, values in _CHOICES:
            tried = [cls(train, replace(best[1], **{name: value}))._left_out(rows) for value in values]
            best = min([best, *tried], key=lambda found: found[0])
        true = train.effects[rows]
        added = left_out_scaled_additive(train, rows)
        errors = {"scaled_additive": np.mean((added - true) ** 2), "no_change": np.mean(true**2)}
        left_out = {"kernel": best[0], **{name: float(error) for name, error in errors.items()}}
        return cls(train, best[1], left_out=left_out)

    def predict(self, targets: Sequence[GeneSet]) -> Prediction:
        """Effects of some conditions; informed where training perturbed all of their genes, alone or not."""
        n = len(self.train.perturbed)
        kernel, shared = self._between([*self.train.perturbed, *targets])
        noise = np.diag(self.settings.ridge * _noise(self.train))
        weights = np.linalg.solve(kernel[:n, :n] + noise, self.train.effects - shared[:n])
        known = {gene for genes in self.train.perturbed for gene in genes}
        informed = np.array([known.issuperset(genes) for genes in targets], dtype=bool)
        return Prediction(shared[n:] + kernel[n:, :n] @ weights, informed)

    def doubt(self) -> str | None:
        """Why not to rely on predictions of combinations; None where nothing speaks against them."""
        if not self.left_out:
            return (
                f"fewer than {ENOUGH} training conditions combine genes that others perturb too, so that how single effects "
                f"add up could not be learnt; those of pairs count {self.settings.scale:g} each, as in other screens. With few "
                "conditions metrics.scaled_additive is the safer choice"
            )
        best = min((name for name in self.left_out if name != "kernel"), key=self.left_out.__getitem__)
        if self.left_out["kernel"] < self.left_out[best]:
            return None
        return (
            f"of training combinations that are left out it is no better (mean squared error {self.left_out['kernel']:.3g}) "
            f"than {best} ({self.left_out[best]:.3g})"
        )

    def _between(self, conditions: Sequence[GeneSet]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C, C) kernel of some conditions, and (C, G) what effects are shrunken towards."""
        genes = sorted({gene for own in conditions for gene in own})
        place = {gene: number for number, gene in enumerate(genes)}
        members = np.zeros((len(conditions), len(genes)))
        for row, own in enumerate(conditions):
            members[row, [place[gene] for gene in own]] = 1
        sizes = members.sum(axis=1)
        shares = members * (sizes ** np.log2(self.settings.scale))[:, None]
        singles = self.train.singles()
        effects = np.zeros((len(genes), len(self.train.genes)))
        for gene, effect in singles.items():
            effects[place[gene]] = effect / (np.linalg.norm(effect) or 1)
        cosines = effects @ effects.T
        np.fill_diagonal(cosines, 1)
        alike = (1 - self.settings.similarity) * np.eye(len(genes)) + self.settings.similarity * cosines
        alike += TOLD * self._told(genes)
        kernel = shares @ alike @ shares.T
        if self.settings.pairs:
            # All pairs of genes of both, less those that take a gene twice.
            one = members @ alike
            both = (one @ members.T) ** 2 - members @ (one.T**2) - one**2 @ members.T + members @ alike**2 @ members.T
            kernel += self.settings.pairs * both / 2
        mean = np.mean(list(singles.values()), axis=0) if singles else np.zeros(len(self.train.genes))
        return kernel, shares.sum(axis=1)[:, None] * mean

    def _told(self, genes: Sequence[str]) -> NDArray[np.float64]:
        """(g, g) cosines of vectors of genes, less the mean of those that training perturbs; 0 without a vector."""
        rows = [row for row, gene in enumerate(genes) if gene in self.vectors]
        known = np.array(
            [self.vectors[gene] for own in self.train.perturbed for gene in own if gene in self.vectors], dtype=float
        )
        cosines = np.zeros((len(genes), len(genes)))
        if rows and len(known):
            centred = np.array([self.vectors[genes[row]] for row in rows], dtype=float) - known.mean(axis=0)
            lengths = np.linalg.norm(centred, axis=1, keepdims=True)
            centred /= np.where(lengths > 0, lengths, 1)
            cosines[np.ix_(rows, rows)] = centred @ centred.T
        return cosines

    def _left_out(self, rows: Sequence[int]) -> tuple[float, KernelSettings]:
        """Mean squared error in some training conditions, each predicted from all others, with the best ridge."""
        kernel, shared = self._between(self.train.perturbed)
        # Measured in units of its noise, one decomposition of the kernel serves every ridge.
        unit = 1 / np.sqrt(_noise(self.train))
        sizes, axes = np.linalg.eigh(kernel * np.outer(unit, unit))
        outcome = axes.T @ ((self.train.effects - shared) * unit[:, None])
        found = []
        for ridge in _RIDGES:
            inverse = axes[rows] / (sizes + ridge)
            errors = inverse @ outcome / np.sum(inverse * axes[rows], axis=1)[:, None] / unit[rows, None]
            found.append((float(np.mean(errors**2)), replace(self.settings, ridge=ridge)))
        return min(found, key=lambda pair: pair[0])


def kernel(
    train: TrainingEffects,
    targets: Sequence[GeneSet],
    *,
    perturbation_embedding: Mapping[str, NDArray[np.float64]] | None = None,
) -> Prediction:
    """Predict by kernel ridge regression on perturbed genes, the likeness of their effects, and pairs of them.

    Combinations of genes that were perturbed alone or in other combinations; the module has the formula.  With
    at least 8 training combinations, how single effects add up and how far conditions tell about each other is chosen by
    leaving them out one by one.

    Parameters
    ----------
    train
        Training effects; with ``n_cells``, conditions of few cells count less.  Those of the same genes, in several contexts,
        count as one, with the mean over their cells.
    targets
        Genes of each condition to predict.
    perturbation_embedding
        Vector of each gene that may be perturbed, such as the embedding of a text about it.  Conditions with a gene that
        training did not perturb are then predicted from those of genes with similar vectors.

    Returns
    -------
    Effects; a gene that no training condition perturbs, and that has no vector, counts with the mean of single effects.
    """
    check_arguments(kernel, locals())
    model = KernelModel.fit(train)
    found = model.predict(targets)
    vectors = perturbation_embedding or {}
    seen = {gene for genes in train.perturbed for gene in genes}
    told = np.array([bool(seen.union(vectors) >= set(genes)) for genes in targets], dtype=bool) & ~found.informed
    if told.any():
        # Likeness of effects says nothing of genes whose effects were not seen, and draws on what vectors could tell.
        by_vectors = KernelModel(model.train, replace(model.settings, similarity=0.0), vectors)
        chosen = [genes for genes, own in zip(targets, told, strict=True) if own]
        found.effects[told] = by_vectors.predict(chosen).effects
    return found._replace(informed=found.informed | told)


def _testable(train: TrainingEffects) -> list[int]:
    """Combinations each of whose genes some other condition perturbs."""
    times = Counter(gene for genes in train.perturbed for gene in genes)
    return [
        row for row, genes in enumerate(train.perturbed) if len(genes) > 1 and all(times[gene] > 1 for gene in genes)
    ]


def _noise(train: TrainingEffects) -> NDArray[np.float64]:
    """(Q,) variance of each condition's noise, 1 with the median number of cells."""
    if train.n_cells is None:
        return np.ones(len(train.perturbed))
    return np.median(train.n_cells) / train.n_cells
