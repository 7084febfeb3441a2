"""The scores of GEARS' evaluation step, number for number, under its own names.

Known faults, kept so that figures can be compared with published ones; the corrected scores stand in
:mod:`scgpt_tools.metrics.perturbation`:

- ``pearson_delta`` subtracts the control from both sides, so that every prediction shares a large part with the truth;
  a constant vector can reach 0.4.  Take the mean of the perturbed training profiles as the reference.
- ``frac_correct_direction_20_nonzero`` pairs columns sorted by position with control means in the order of the ranking.
  :func:`~scgpt_tools.metrics.perturbation.direction_match` with a mask compares the right ones.
- A share over the top k genes is divided by k even where there are fewer.
- An undefined correlation, such as that of a constant prediction, counts as 0.
- Perturbed genes are part of the score.

``numpy.nan`` stands where GEARS leaves a figure out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scgpt_tools.metrics.perturbation import mask_of, mse, pearson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

Scores = dict[str, "NDArray[np.float64]"]

_QUANTILES = {"45_55": (0.45, 0.55), "40_60": (0.4, 0.6), "25_75": (0.25, 0.75)}
# Name of a range of fold changes, and its exclusive bounds.
_FOLD_CHANGES = {
    "all": (0.0, np.inf),
    "downreg_0.33": (0.0, 0.333),
    "downreg_0.1": (0.0, 0.1),
    "upreg_3": (3.0, np.inf),
    "upreg_10": (10.0, np.inf),
}


@dataclass(frozen=True)
class HeldOutCells:
    """Predictions for test cells beside the true cells, grouped by condition."""

    conditions: tuple[str, ...]
    predicted: NDArray[Any]
    """(C, G) mean prediction."""
    true: NDArray[Any]
    """(C, G) mean of the true cells."""
    cells: Any
    """(N, G) true cells, dense or sparse."""
    rows: tuple[NDArray[np.int64], ...]
    """True cells of each condition."""

    @classmethod
    def from_cells(cls, predicted: Any, true: Any, conditions: Sequence[str]) -> HeldOutCells:
        """Group cells by condition.

        Means are taken in the precision of the input, as GEARS does: where a prediction repeats the controls, rounding
        decides on the sign of a change.

        ``predicted``, ``true`` (N, G) predictions and true cells in the same order, dense or sparse.
        """
        names, codes = np.unique(np.asarray(conditions, dtype=str), return_inverse=True)
        rows = tuple(np.flatnonzero(codes == code) for code in range(names.size))
        means = [np.stack([_array(side[own]).mean(axis=0) for own in rows]) for side in (predicted, true)]
        return cls(tuple(map(str, names)), means[0], means[1], true, rows)


def evaluation_metrics(predicted: Any, true: Any, top: NDArray[np.int64]) -> Scores:
    """GEARS' ``compute_metrics``: error and correlation over all genes and over the top genes, per condition.

    ``predicted``, ``true`` (C, G) mean profiles; ``top`` (C, 20) positions of the genes with the strongest difference;
    -1 throughout for a control, whose scores over these genes are then 0.
    """
    where = mask_of(top, np.shape(predicted)[1])
    return {
        "mse": mse(predicted, true),
        "pearson": _pearson(predicted, true),
        "mse_de": np.nan_to_num(mse(predicted, true, where=where)),
        "pearson_de": _pearson(predicted, true, where=where),
    }


def evaluation_means(scores: Scores, is_control: NDArray[np.bool_]) -> dict[str, float]:
    """Unweighted means over conditions; a control counts in the scores over all genes only."""
    return {
        name: float(np.mean(values[~is_control] if name.endswith("_de") else values)) for name, values in scores.items()
    }


def variable_genes(condition_means: Any, n: int = 200) -> NDArray[np.int64]:
    """Positions of the genes whose mean varies most over all conditions, the control included."""
    return np.argsort(np.std(condition_means, axis=0))[-n:]


def deeper_analysis(
    cells: HeldOutCells,
    control: NDArray[np.float64],
    order: NDArray[np.int64],
    variable: NDArray[np.int64],
    *,
    listed: NDArray[np.int64] | None = None,
) -> Scores:
    """GEARS' ``deeper_analysis``, per condition.

    ``control`` (G,) mean of all controls, or (C, G) of those of each condition; ``order`` (C, G) gene positions by falling
    absolute score.
    ``listed`` (C, 20) are the top genes in the order that the evaluation had them in; ``None`` for that of GEARS' data,
    by position.
    """
    p, t = cells.predicted, cells.true
    n_genes = p.shape[1]
    agree = np.sign(p - control) == np.sign(t - control)
    scores: Scores = {"frac_correct_direction_all": agree.mean(axis=1)}
    for k in (20, 50, 100, 200):
        scores[f"frac_correct_direction_{k}"] = np.take_along_axis(agree, order[:, :k], axis=1).sum(axis=1) / k
    top = np.sort(order[:, :20], axis=1)
    scores["frac_correct_direction_20_nonzero"] = _mixed_direction(
        cells, control, order[:, :20], top if listed is None else listed
    )
    scores |= _range_scores(cells, top, "")
    scores["pearson_delta"] = _pearson(p, t, reference=control)
    scores["pearson_delta_de"] = _pearson(p, t, reference=control, where=mask_of(top, n_genes))
    scores |= _fold_change_gaps(p, t, control)
    subsets = {"top200_hvg": np.broadcast_to(variable, (len(p), len(variable)))}
    subsets |= {f"top{k}_de": order[:, :k] for k in (20, 50, 100, 200)}
    for name, positions in subsets.items():
        where = mask_of(positions, n_genes)
        scores[f"pearson_delta_{name}"] = _pearson(p, t, reference=control, where=where)
        scores[f"pearson_{name}"] = _pearson(p, t, where=where)
        scores[f"mse_{name}"] = mse(p, t, where=where)
    return scores


def list_analysis(
    cells: HeldOutCells,
    control: NDArray[np.float64],
    top: Sequence[NDArray[np.int64]],
    suffix: str,
    *,
    others: Mapping[str, Sequence[NDArray[np.int64]]] | None = None,
) -> Scores:
    """GEARS' ``non_dropout_analysis`` and ``non_zero_analysis``, per condition.

    ``control`` (G,) mean of all controls, or (C, G); ``suffix``: ``"non_dropout"`` or ``"non_zero"``, the kind of list and the end
    of every name; ``others``: further lists by the end of their name, of which the direction is scored too.
    """
    p, t = cells.predicted, cells.true
    difference = np.abs(np.sign(p - control) - np.sign(t - control))
    scores: Scores = {}
    for name, lists in {f"top20_{suffix}": top, **(others or {})}.items():
        where = mask_of(_padded(lists), p.shape[1])
        for label, size in (("correct", 0), ("opposite", 2), ("0/1", 1)):
            scores[f"frac_{label}_direction_{name}"] = _share(difference == size, where)
    positions = _padded([np.sort(own) for own in top])
    where = mask_of(positions, p.shape[1])
    scores |= _range_scores(cells, positions, f"_{suffix}")
    scores[f"pearson_delta_top20_de_{suffix}"] = _pearson(p, t, reference=control, where=where)
    scores[f"pearson_top20_de_{suffix}"] = _pearson(p, t, where=where)
    scores[f"mse_top20_de_{suffix}"] = mse(p, t, where=where)
    return scores


def subgroup_means(scores: Scores, conditions: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Unweighted means over the conditions of each group, named ``<group>_<score>``; NaN for an empty group."""
    row = {name: i for i, name in enumerate(conditions)}
    means: dict[str, float] = {}
    for group, members in groups.items():
        rows = [row[name] for name in members]
        means |= {
            f"{group}_{name}": float(np.mean(values[rows])) if rows else np.nan for name, values in scores.items()
        }
    return means


def _mixed_direction(
    cells: HeldOutCells, control: NDArray[np.float64], ranked: NDArray[np.int64], top: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of right directions over genes seen in the true cells, with the controls in another order (see above)."""
    seen = np.stack([(_dense(cells.cells[rows])[:, own] != 0).any(axis=0) for rows, own in _each(cells, top)])
    mixed = np.take_along_axis(np.broadcast_to(control, cells.predicted.shape), ranked, axis=1)
    p, t = (np.take_along_axis(side, top, axis=1) for side in (cells.predicted, cells.true))
    return _share(np.sign(p - mixed) == np.sign(t - mixed), seen)


def _range_scores(cells: HeldOutCells, positions: NDArray[np.int64], suffix: str) -> Scores:
    """Where the predicted means fall among the true cells, over genes seen there; positions may end in -1."""
    names = ["frac_in_range", *(f"frac_in_range_{name}" for name in _QUANTILES)]
    names += ["mean_sigma", "std_sigma", "frac_sigma_below_1", "frac_sigma_below_2"]
    scores = {f"{name}{suffix}": np.full(len(cells.conditions), np.nan) for name in names}
    for i, (rows, own) in enumerate(_each(cells, positions)):
        columns = own[own >= 0]
        true = _dense(cells.cells[rows])[:, columns]
        seen = (true != 0).any(axis=0)
        found = _one_range(true[:, seen], cells.predicted[i, columns[seen]], cells.true[i, columns[seen]])
        for name, value in found.items():
            scores[f"{name}{suffix}"][i] = value
    return scores


def _one_range(
    cells: NDArray[np.float64], predicted: NDArray[np.float64], true: NDArray[np.float64]
) -> dict[str, float]:
    if predicted.size == 0:
        return {}
    bounds: dict[str, NDArray[np.float64]] = {"frac_in_range": np.stack([cells.min(axis=0), cells.max(axis=0)])}
    bounds |= {f"frac_in_range_{name}": np.quantile(cells, pair, axis=0) for name, pair in _QUANTILES.items()}
    scores = {name: float(((predicted >= low) & (predicted <= high)).mean()) for name, (low, high) in bounds.items()}
    spread = cells.std(axis=0)
    varies = spread > 0
    if varies.any():
        sigma = np.abs(predicted - true)[varies] / spread[varies]
        scores |= {"mean_sigma": float(sigma.mean()), "std_sigma": float(sigma.std())}
        scores |= {f"frac_sigma_below_{n}": 1 - float((sigma > n).mean()) for n in (1, 2)}
    return scores


def _fold_change_gaps(p: NDArray[np.float64], t: NDArray[np.float64], control: NDArray[np.float64]) -> Scores:
    """Mean gap between predicted and true fold change, over ranges of the true one."""
    expressed = np.broadcast_to(control != 0, p.shape)
    true = np.divide(t, control, out=np.zeros(t.shape), where=expressed & (t >= 0.5))
    gap = np.abs(np.divide(p, control, out=np.zeros(p.shape), where=expressed) - true)
    return {
        f"fold_change_gap_{name}": _share(gap, (true > low) & (true < high))
        for name, (low, high) in _FOLD_CHANGES.items()
    }


def _pearson(predicted: Any, true: Any, **options: Any) -> NDArray[np.float64]:
    return np.nan_to_num(pearson(predicted, true, **options))


def _share(values: Any, where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Row means over some columns, NaN where there is none."""
    count = where.sum(axis=1)
    total = np.where(where, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _each(cells: HeldOutCells, positions: NDArray[np.int64]) -> zip[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return zip(cells.rows, positions, strict=True)


def _padded(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    padded = np.full((len(lists), max(map(len, lists), default=0)), -1, dtype=np.int64)
    for row, own in zip(padded, lists, strict=True):
        row[: len(own)] = own
    return padded


def _array(matrix: Any) -> NDArray[Any]:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def _dense(matrix: Any) -> NDArray[np.float64]:
    return _array(matrix).astype(np.float64)
