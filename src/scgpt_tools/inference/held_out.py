"""Held-out cells of a screen: what predictions of them are made from and compared with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scgpt_tools.metrics.perturbation_gears import evaluation_metrics
from scgpt_tools.metrics.perturbation_scgpt import scgpt_metrics
from scgpt_tools.screens.conditions import context_labels, control_mask, read_conditions
from scgpt_tools.screens.evaluation import read_part
from scgpt_tools.screens.profiles import mean_profiles
from scgpt_tools.settings import settings
from scgpt_tools.tokens.orders import sample
from scgpt_tools.tokens.perturbations import condition_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.inference.perturbation import Predictor
    from scgpt_tools.screens.evaluation import ScreenEvaluation

_TOP = 20


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Cells of every row of the truth, and controls to predict it from."""

    adata: AnnData
    prepared: ScreenEvaluation
    units: NDArray[Any]
    """(N,) row of the truth that each cell belongs to, by name; empty for others."""
    contexts: NDArray[Any]
    """(N,) context of each cell."""
    is_control: NDArray[np.bool_]

    @classmethod
    def read(
        cls,
        adata: AnnData,
        prepared: ScreenEvaluation,
        *,
        key: str,
        split: str,
        part: str,
        within: str | Sequence[str] | None,
    ) -> HeldOut:
        """Find the cells of every row."""
        conditions = read_conditions(adata, key)
        labels = context_labels(adata, within)
        contexts = np.full(adata.n_obs, "", dtype=object) if labels is None else labels
        row_of = {
            pair: name
            for name, *pair_ in zip(
                prepared.truth.conditions, prepared.truth.contexts or (), prepared.conditions, strict=True
            )
            for pair in [tuple(pair_)]
        }
        held = read_part(adata, split, part) == part
        units = np.array([row_of.get(pair, "") for pair in zip(contexts, conditions, strict=True)], dtype=object)
        return cls(adata, prepared, np.where(held, units, ""), contexts, control_mask(conditions))

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of the truth."""
        return self.prepared.truth.conditions

    def from_layer(self, layer: str, *, keep: bool) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
        """Mean over the predictions of the held-out cells."""
        chosen = np.flatnonzero(self.units != "")
        found = self.adata.layers[layer][chosen]
        values = np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(
                f"Expected a prediction of every held-out cell in layers[{layer!r}], found NaN or infinite numbers. "
                "Predict with perts=None."
            )
        profiles = mean_profiles(values, self.units[chosen], names=self.rows)
        cells = {name: values[self.units[chosen] == name].astype(np.float32) for name in self.rows} if keep else {}
        return profiles.means, cells

    def from_table(self, name: str, table: AnnData | pd.DataFrame) -> NDArray[np.float64]:
        """Rows of mean profiles by the name of the condition."""
        frame = table if isinstance(table, pd.DataFrame) else table.to_df()
        for axis, names in (("rows", frame.index), ("genes", frame.columns)):
            if not names.is_unique:
                raise ValueError(
                    f"Expected {axis} of the predictions of {name!r} with names of their own, found "
                    f"{str(names[names.duplicated()][0])!r} twice."
                )
        rows_of = _by_genes(frame.index)
        contexts = self.prepared.truth.contexts or ("",)
        rows = []
        for shown, condition in zip(self.rows, self.prepared.conditions, strict=True):
            there = (
                [shown] if shown in frame.index else [] if any(contexts) else rows_of.get(condition_key(condition), [])
            )
            if not there:
                raise ValueError(f"Expected a row {shown!r} in the predictions of {name!r}, found none.")
            if len(there) > 1:
                raise ValueError(f"Expected one row for {shown!r} in the predictions of {name!r}, found {there}.")
            rows.append(there[0])
        absent = self.adata.var_names.difference(frame.columns)
        if len(absent):
            raise ValueError(
                f"Expected all {self.adata.n_vars} genes in the predictions of {name!r}, found {len(absent)} missing, "
                f"the first being {absent[0]!r}."
            )
        try:
            profiles = frame.loc[rows, self.adata.var_names].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"Expected numbers in the predictions of {name!r}, found other values.") from error
        if not np.isfinite(profiles).all():
            # Left to the metrics, conditions without a score would drop out of the mean of this method alone.
            unknown = [row for row, values in zip(rows, profiles, strict=True) if not np.isfinite(values).all()]
            raise ValueError(f"Expected finite predictions of {name!r}, found NaN or infinite values in {unknown}.")
        return profiles

    def from_model(
        self, predictor: Predictor, *, n_controls: int, keep: bool, show_progress: bool | None
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
        """Mean over predictions from controls of the same context."""
        targets = self.prepared.targets
        predictor.check(targets)
        contexts = self.prepared.truth.contexts or ("",) * len(targets)
        controls = {
            context: self.controls(predictor.source, context, n_controls, seed=predictor.cells.plan.seed)
            for context in dict.fromkeys(contexts)
        }
        means = np.zeros((len(targets), predictor.source.n_columns))
        cells: dict[str, NDArray[np.float32]] = {}
        total = sum(len(controls[context]) for context in contexts)
        with settings.progress((), total=total, unit="cell", show=show_progress) as bar:
            for row, (context, perturbed) in enumerate(zip(contexts, targets, strict=True)):
                rows = controls[context]
                kept = []
                for _, expression in predictor.predict(rows, [perturbed] * len(rows)):
                    means[row] += expression.sum(axis=0, dtype=np.float64)
                    bar.update(len(expression))
                    if keep:
                        kept.append(expression)
                means[row] /= len(rows)
                if keep:
                    cells[self.rows[row]] = np.concatenate(kept)
        return means, cells

    def controls(self, source: RowSource, context: str, n: int, *, seed: int) -> NDArray[np.int64]:
        """Rows of at most ``n`` controls of a context, drawn by seed and name."""
        rows = np.flatnonzero(self.is_control & (self.contexts == context))
        return rows[sample(seed, 0, source.keys[rows], n)]


def _by_genes(names: pd.Index) -> dict[str, list[str]]:
    """Rows of each set of genes, in whatever order they are written."""
    found: dict[str, list[str]] = {}
    for name in names:
        with suppress(ValueError, AttributeError):
            found.setdefault(condition_key(name), []).append(name)
    return found


def original_scores(prepared: ScreenEvaluation, models: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Scores of GEARS and scGPT as they compute them, for mean profiles (C, G) by the name of the model."""
    truth = prepared.truth
    scores = truth.scores
    assert scores is not None  # noqa: S101 - prepared with them
    top = np.argsort(-np.abs(scores), axis=1, kind="stable")[:, :_TOP]
    rows = []
    for name, values in models.items():
        gears = evaluation_metrics(values, truth.true, top)
        scgpt = scgpt_metrics(values, truth.true, truth.control, top)
        found = {f"gears_{metric}": own for metric, own in gears.items()}
        found |= {f"scgpt_{metric}": own for metric, own in scgpt.items()}
        for metric, own in found.items():
            frame = pd.DataFrame({"condition": truth.conditions, "method": name, "metric": metric, "value": own})
            frame.insert(1, "group", frame["condition"].map(prepared.groups))
            rows.append(frame)
    return pd.concat(rows, ignore_index=True)
