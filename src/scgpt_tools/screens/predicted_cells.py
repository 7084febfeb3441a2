"""Predicted beside true cells of held-out conditions: distances between samples, and differential expression.

Baselines take part as controls that are moved by the predicted change of the mean, the ceiling as two halves of the true
cells.  Samples are looked at condition by condition, so memory holds what models predicted and little else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial.distance import cdist

from scgpt_tools._optional import optional
from scgpt_tools._validate import check_choice
from scgpt_tools.metrics.distribution import energy_distance, mmd
from scgpt_tools.metrics.panel import CELL_EVAL, PERTPY
from scgpt_tools.screens.held_out import CEILING, NO_CHANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.screens.held_out import HeldOutScreen

    Cells = NDArray[np.float32]
    Distance = Callable[[NDArray[np.float64], NDArray[np.float64]], float]

_COMPONENTS = 50
_CONTROL = "ctrl"


@dataclass(frozen=True)
class CellScores:
    """Which scores of cells are asked for; packages that they need are looked for at once."""

    own: bool = False
    """Energy distance and MMD of :mod:`scgpt_tools.metrics`."""
    distances: tuple[str, ...] = ()
    """Names of distances of pertpy."""
    cell_eval: bool = False
    """Scores of cell-eval on differential expression."""

    def __post_init__(self) -> None:
        for name in self.distances:
            check_choice("distances", name, PERTPY)
        if self.distances:
            optional("pertpy", extra="pert")
        if self.cell_eval:
            optional("cell_eval", extra="celleval")

    def __bool__(self) -> bool:
        return bool(self.own or self.distances or self.cell_eval)

    def check(self, samples: Mapping[str, Any]) -> None:
        """Refuse predictions none of which are cells."""
        if self and not any(samples.values()):
            raise ValueError(
                "Expected predictions that are cells, of a generator or in a layer, to compare with true cells, found "
                "mean profiles only. Leave out `cells`, `distances` and `cell_eval`."
            )


@dataclass(frozen=True, eq=False)
class Samples:
    """True, control and predicted cells of every row of a table."""

    rows: tuple[str, ...]
    contexts: tuple[str, ...]
    """Context of each row."""
    genes: tuple[str, ...]
    true: dict[str, Cells]
    """Cells of each row."""
    halves: dict[str, NDArray[np.bool_]]
    """Which of them are in the first half."""
    controls: dict[str, Cells]
    """Cells of each context."""
    shifts: dict[str, NDArray[np.float64]]
    """(C, G) change of the mean by baseline."""
    models: Mapping[str, Mapping[str, Cells]]
    """Predicted cells of each row by model."""

    @classmethod
    def read(
        cls, screen: HeldOutScreen, models: Mapping[str, Mapping[str, Cells]], *, n_controls: int, seed: int
    ) -> Samples:
        """Collect true cells and at most ``n_controls`` controls of each context; models without cells are left out."""
        true, halves = {}, {}
        for name in screen.rows:
            own = np.flatnonzero(screen.units == name)
            true[name], halves[name] = _dense(screen.source, own), screen.first_half[own]
        controls = {
            context: _dense(screen.source, screen.controls(context, n_controls, seed=seed))
            for context in dict.fromkeys(screen.row_contexts)
        }
        shifts = {name: values - screen.truth.control for name, values in screen.baselines().items()}
        cells = {name: own for name, own in models.items() if own}
        genes = tuple(map(str, screen.source.adata.var_names))
        return cls(screen.rows, screen.row_contexts, genes, true, halves, controls, shifts, cells)

    @property
    def methods(self) -> tuple[str, ...]:
        """Models, baselines and the ceiling."""
        return (*self.models, *self.shifts, CEILING)

    def pair(self, method: str, number: int) -> tuple[Cells, Cells]:
        """Predicted cells of a row, and the true ones to compare them with."""
        name = self.rows[number]
        true = self.true[name]
        if method == CEILING:
            return true[self.halves[name]], true[~self.halves[name]]
        if method in self.models:
            return self.models[method][name], true
        return self.controls[self.contexts[number]] + self.shifts[method][number].astype(np.float32), true


def score_cells(samples: Samples, wanted: CellScores) -> pd.DataFrame:
    """Score the cells of every method: ``value`` by ``condition``, ``method`` and ``metric``."""
    found: list[tuple[str, str, str, float]] = []
    if wanted.own or wanted.distances:
        found += _distances(samples, wanted)
    if wanted.cell_eval:
        found += [score for method in samples.methods for score in _de_scores(samples, method)]
    return pd.DataFrame(found, columns=["condition", "method", "metric", "value"])


def _distances(samples: Samples, wanted: CellScores) -> Iterator[tuple[str, str, str, float]]:
    """Distances on principal components of controls and true cells, condition by condition."""
    project = _components(samples)
    for number, name in enumerate(samples.rows):
        pairs = {method: tuple(project(cells) for cells in samples.pair(method, number)) for method in samples.methods}
        start, true = pairs[NO_CHANGE]
        metrics: dict[str, Distance] = {"energy": energy_distance, "mmd": mmd} if wanted.own else {}
        metrics |= _pertpy(wanted.distances, _width(start, true))
        scale = energy_distance(start, true)
        # Where the controls are as near as true cells are to each other, a share of their distance is noise.
        changed = scale > max(0.0, energy_distance(*pairs[CEILING]))
        for method, pair in pairs.items():
            for metric, distance in metrics.items():
                value = distance(*pair)
                yield name, method, metric, value
                if metric == "energy":
                    yield name, method, "energy_to_control", value / scale if changed else np.nan


def _components(samples: Samples) -> Callable[[Cells], NDArray[np.float64]]:
    real = np.concatenate([*samples.controls.values(), *samples.true.values()]).astype(np.float64)
    centre = real.mean(axis=0)
    # From the covariance of the genes: the matrix of cells may be much longer than it is wide.
    _, axes = np.linalg.eigh((real - centre).T @ (real - centre))
    axes = axes[:, ::-1][:, :_COMPONENTS]
    return lambda cells: (cells - centre) @ axes


def _width(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Median squared distance of a cell to another one."""
    both = np.concatenate([first, second])
    return float(np.median(cdist(both, both, "sqeuclidean")[np.triu_indices(len(both), 1)])) or 1.0


def _pertpy(names: tuple[str, ...], width: float) -> dict[str, Distance]:
    if not names:
        return {}
    tools = optional("pertpy", extra="pert").tools

    def compute(name: str) -> Distance:
        distance = tools.Distance(name, obsm_key="X_pca")
        # pertpy's default kernel is linear, which sees the means only.
        options = {"kernel": "rbf", "gamma": 1 / (2 * width)} if name == "mmd" else {}
        return lambda first, second: float(distance(first, second, **options))

    return {f"pertpy_{name}": compute(name) for name in names}


def _de_scores(samples: Samples, method: str) -> Iterator[tuple[str, str, str, float]]:
    """Scores of cell-eval, context by context, for each has controls of its own."""
    from numba import get_num_threads  # slow to import, and wanted here alone

    evaluator = optional("cell_eval", extra="celleval").MetricsEvaluator
    for context in dict.fromkeys(samples.contexts):
        numbers = [number for number, own in enumerate(samples.contexts) if own == context]
        pairs = [samples.pair(method, number) for number in numbers]
        names = [samples.rows[number] for number in numbers]
        predicted, real = (
            _labelled([samples.controls[context], *side], [_CONTROL, *names], samples.genes)
            for side in zip(*pairs, strict=True)
        )
        with TemporaryDirectory() as folder:
            evaluation = evaluator(
                predicted,
                real,
                control_pert=_CONTROL,
                pert_col="condition",
                # It takes one for each processor otherwise, which numba refuses where it may use fewer.
                num_threads=get_num_threads(),
                outdir=str(Path(folder) / "tables"),
            )
            scores, _ = evaluation.compute(profile="de", write_csv=False, break_on_error=True)
        table = scores.to_pandas().set_index("perturbation").reindex(names)
        for metric in CELL_EVAL:
            for name, value in table[metric].items():
                yield str(name), method, f"celleval_{metric}", float(value)


def _labelled(parts: list[Cells], labels: list[str], genes: tuple[str, ...]) -> AnnData:
    """A table as cell-eval takes it: no negative values, and a copy, for it changes what it is given."""
    values = np.concatenate(parts).clip(min=0)
    conditions = np.repeat(np.array(labels, dtype=object), [len(part) for part in parts])
    obs = pd.DataFrame({"condition": pd.Categorical(conditions)}, index=[f"cell{i}" for i in range(len(values))])
    return AnnData(values, obs=obs, var=pd.DataFrame(index=list(genes)))


def _dense(source: RowSource, rows: NDArray[np.int64]) -> Cells:
    return source.take(rows).toarray().astype(np.float32, copy=False)
