"""The metrics of a table of perturbation predictions, and what they are measured against.

Those of mean profiles are computed here.  Those of cells, which compare samples, are known here by name and direction
only: they need other packages and the cells themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scgpt_tools._validate import check_fits, check_numbers
from scgpt_tools.metrics.discrimination import centroid_accuracy, discrimination_score
from scgpt_tools.metrics.perturbation import cosine, direction_match, highest, l2, mae, mse, pearson, r2

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_TOP = 20
_EXPRESSED = 1000


@dataclass(frozen=True)
class Truth:
    """What C held-out conditions really did, and what their scores refer to."""

    conditions: tuple[str, ...]
    true: NDArray[np.float64]
    """(C, G) mean profiles."""
    control: NDArray[np.float64]
    """(G,) or (C, G) mean of the controls of the same context."""
    perturbed_mean: NDArray[np.float64] | None
    """(G,) or (C, G) mean of the training conditions, or of the conditions here where there are none; ``None`` leaves out
    the metrics beyond it."""
    scores: NDArray[np.float64] | None = None
    """(C, G) test scores against the controls, which choose the top genes."""
    weights: NDArray[np.float64] | None = None
    """(C, G) weights of genes, from :func:`~scgpt_tools.metrics.de_weights`."""
    targets: NDArray[np.bool_] | None = None
    """(C, G) perturbed genes, which no metric counts: their change is known beforehand."""
    additive: NDArray[np.float64] | None = None
    """(C, G) additive prediction, NaN where it could not be made; reference of the interaction metric."""
    reference_control: NDArray[np.float64] | None = None
    """(G,) or (C, G) mean of controls that no prediction was made from, which true changes refer to; ``None`` takes
    ``control``.  Noise of controls that are subtracted from both sides makes predictions look right that know nothing."""
    contexts: tuple[str, ...] | None = None
    """(C,) context of each row, such as its cell type, where conditions occur in several."""

    def __post_init__(self) -> None:
        if self.true.ndim != 2 or len(self.conditions) != len(self.true):
            raise ValueError(
                f"Expected one profile for each of {len(self.conditions)} conditions, found an array of shape "
                f"{self.true.shape}."
            )
        for name in ("true", "control", "perturbed_mean", "weights", "reference_control"):
            if getattr(self, name) is not None:
                check_fits(name, check_numbers(name, getattr(self, name)), self.true.shape)
        for name in ("scores", "weights", "targets", "additive"):
            value = getattr(self, name)
            if value is not None and value.shape != self.true.shape:
                raise ValueError(f"Expected `{name}` of shape {self.true.shape}, found {value.shape}.")

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(C, G) genes that count."""
        return np.ones(self.true.shape, dtype=bool) if self.targets is None else ~self.targets

    @property
    def changes(self) -> NDArray[np.float64]:
        """(C, G) true changes against controls of their own."""
        return self.true - (self.control if self.reference_control is None else self.reference_control)

    def change_of(self, profiles: NDArray[np.float64]) -> NDArray[np.float64]:
        """(C, G) change of predicted profiles, or of those that scores refer to."""
        return profiles - self.control

    @property
    def top(self) -> NDArray[np.bool_] | None:
        """(C, G) the genes that change most, perturbed ones left out."""
        if self.scores is None:
            return None
        return highest(np.where(self.scored, np.abs(self.scores), -1.0), _TOP)

    @property
    def expressed(self) -> NDArray[np.bool_]:
        """(G,) or (C, G) the most expressed genes of the controls."""
        return highest(self.control, _EXPRESSED)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How to read a score."""

    higher_is_better: bool
    perfect: float


@dataclass(frozen=True)
class Metric(Scale):
    """A score of predictions against a :class:`Truth`."""

    compute: Callable[[NDArray[np.float64], Truth], NDArray[np.float64] | None]
    """One score a condition, or ``None`` where the truth lacks what it needs."""


Score: TypeAlias = "Callable[..., NDArray[np.float64]]"
_NOTHING = np.zeros(1)


def _of_changes(score: Score, *, top: bool = False, weighted: bool = False, beyond: str | None = None):
    """Score changes against the control, beyond those of some profiles: the perturbed mean or the additive prediction."""

    def compute(predicted: NDArray[np.float64], truth: Truth) -> NDArray[np.float64] | None:
        where = truth.top if top else truth.scored
        if where is None or (weighted and truth.weights is None):
            return None
        if beyond is not None and getattr(truth, beyond) is None:
            return None
        options = {"weights": truth.weights} if weighted else {}
        reference = _NOTHING if beyond is None else truth.change_of(getattr(truth, beyond))
        return score(truth.change_of(predicted), truth.changes, reference=reference, where=where, **options)

    return compute


def _error(score: Score, *, top: bool = False, weighted: bool = False):
    def compute(predicted: NDArray[np.float64], truth: Truth) -> NDArray[np.float64] | None:
        where = truth.top if top else truth.scored
        if where is None or (weighted and truth.weights is None):
            return None
        options = {"weights": truth.weights} if weighted else {}
        return score(predicted, truth.true, where=where, **options)

    return compute


def _within_contexts(score: Score, *, own: bool = False, **options: str):
    """Rank among the conditions of the same context: the context itself is known to every method.

    Genes that any of them perturbs are left out for all: a truth whose own gene is left out and those of others are not is
    nearer to a prediction of no change than they are.  ``own`` leaves out those of the prediction's condition only.
    """

    def compute(predicted: NDArray[np.float64], truth: Truth) -> NDArray[np.float64]:
        effects = truth.change_of(predicted), truth.changes
        contexts = np.asarray(truth.contexts or [""] * len(truth.conditions))
        scores = np.empty(len(contexts))
        for context in np.unique(contexts):
            rows = contexts == context
            exclude = None if truth.targets is None else truth.targets[rows]
            if exclude is not None and not own:
                exclude = np.broadcast_to(exclude.any(axis=0), exclude.shape)
            scores[rows] = score(effects[0][rows], effects[1][rows], exclude=exclude, **options)
        return scores

    return compute


def _interaction(predicted: NDArray[np.float64], truth: Truth) -> NDArray[np.float64] | None:
    # The prediction of no change shares the part that is subtracted with the truth: read it beside that baseline.
    if truth.additive is None:
        return None
    known = np.asarray(~np.isnan(truth.additive).any(axis=1))
    if not known.any():
        return None
    added = truth.change_of(np.where(known[:, None], truth.additive, truth.control))
    scores = pearson(truth.change_of(predicted), truth.changes, reference=added, where=truth.scored)
    return np.where(known, scores, np.nan)


METRICS: dict[str, Metric] = {
    "mse": Metric(_error(mse), higher_is_better=False, perfect=0),
    "mae": Metric(_error(mae), higher_is_better=False, perfect=0),
    "l2_expressed": Metric(lambda p, t: l2(p, t.true, where=t.scored & t.expressed), higher_is_better=False, perfect=0),
    "mse_de": Metric(_error(mse, top=True), higher_is_better=False, perfect=0),
    "mse_weighted": Metric(_error(mse, weighted=True), higher_is_better=False, perfect=0),
    "pearson_control": Metric(_of_changes(pearson), higher_is_better=True, perfect=1),
    "pearson_control_de": Metric(_of_changes(pearson, top=True), higher_is_better=True, perfect=1),
    "cosine_control": Metric(_of_changes(cosine), higher_is_better=True, perfect=1),
    "pearson_perturbed_mean": Metric(_of_changes(pearson, beyond="perturbed_mean"), higher_is_better=True, perfect=1),
    "r2_weighted": Metric(_of_changes(r2, weighted=True, beyond="perturbed_mean"), higher_is_better=True, perfect=1),
    "direction_de": Metric(_of_changes(direction_match, top=True), higher_is_better=True, perfect=1),
    "discrimination_l1": Metric(_within_contexts(centroid_accuracy, metric="l1"), higher_is_better=True, perfect=1),
    "discrimination_cosine": Metric(
        _within_contexts(centroid_accuracy, metric="cosine"), higher_is_better=True, perfect=1
    ),
    "discrimination_celleval": Metric(
        _within_contexts(discrimination_score, own=True, metric="l1"), higher_is_better=True, perfect=1
    ),
    "centroid_accuracy": Metric(_within_contexts(centroid_accuracy), higher_is_better=True, perfect=1),
    "interaction": Metric(_interaction, higher_is_better=True, perfect=1),
}
"""Mean-level metrics; a table shows those that the truth allows."""

PERTPY = ("edistance", "mmd", "wasserstein")
"""Distances of ``pertpy.tools.Distance`` between samples of cells."""
CELL_EVAL = (
    "overlap_at_N",
    "precision_at_N",
    "de_direction_match",
    "de_spearman_lfc_sig",
    "de_sig_genes_recall",
    "pr_auc",
)
"""Scores of cell-eval on differentially expressed genes."""

_DISTANCE, _SHARE = Scale(higher_is_better=False, perfect=0), Scale(higher_is_better=True, perfect=1)

CELL_METRICS: dict[str, Scale] = {
    **dict.fromkeys(("energy", "energy_to_control", "mmd"), _DISTANCE),
    **{f"pertpy_{name}": _DISTANCE for name in PERTPY},
    **{f"celleval_{name}": _SHARE for name in CELL_EVAL},
}
"""Metrics between predicted and true cells."""

SCALES: dict[str, Scale] = {**METRICS, **CELL_METRICS}
"""How to read every metric that a table may hold."""
