"""Predictions of held-out cells that are in a layer or a table, and scores of them as the originals compute them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgpt_tools.data.rows import RowSource
from scgpt_tools.metrics.perturbation_gears import (
    HeldOutCells,
    deeper_analysis,
    evaluation_metrics,
    list_analysis,
    variable_genes,
)
from scgpt_tools.metrics.perturbation_scgenept import ScGenePTScores, scgenept_scores
from scgpt_tools.metrics.perturbation_scgpt import scgpt_metrics
from scgpt_tools.screens.annotations import check_log_values, log_values
from scgpt_tools.screens.conditions import context_labels, unit_names
from scgpt_tools.screens.profiles import mean_profiles
from scgpt_tools.tokens.perturbations import condition_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from scgpt_tools.screens.held_out import HeldOutScreen

_TOP = 20
_LISTED = 10


def layer_means(
    screen: HeldOutScreen, layer: str, *, keep: bool
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """Mean over the predictions of the held-out cells in a layer, and these cells by row."""
    chosen = np.flatnonzero(screen.units != "")
    found = screen.source.adata.layers[layer][chosen]
    values = np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"Expected a prediction of every held-out cell in layers[{layer!r}], found NaN or infinite numbers. "
            "Predict with perts=None."
        )
    profiles = mean_profiles(values, screen.units[chosen], names=screen.rows)
    cells = {name: values[screen.units[chosen] == name].astype(np.float32) for name in screen.rows} if keep else {}
    return profiles.means, cells


def table_means(screen: HeldOutScreen, name: str, table: AnnData | pd.DataFrame) -> NDArray[np.float64]:
    """Mean profiles from a table with a row for each condition, by its name."""
    adata = screen.source.adata
    frame = table if isinstance(table, pd.DataFrame) else table.to_df()
    for axis, names in (("rows", frame.index), ("genes", frame.columns)):
        if not names.is_unique:
            raise ValueError(
                f"Expected {axis} of the predictions of {name!r} with names of their own, found "
                f"{str(names[names.duplicated()][0])!r} twice."
            )
    rows = []
    for shown, there in _rows_of(screen, frame.index).items():
        if not there:
            other = "" if isinstance(table, pd.DataFrame) else " Tables of cells have their conditions in `obs`."
            raise ValueError(f"Expected a row {shown!r} in the predictions of {name!r}, found none.{other}")
        if len(there) > 1:
            raise ValueError(f"Expected one row for {shown!r} in the predictions of {name!r}, found {there}.")
        rows.append(there[0])
    absent = adata.var_names.difference(frame.columns)
    if len(absent):
        raise ValueError(
            f"Expected all {adata.n_vars} genes in the predictions of {name!r}, found {len(absent)} missing, "
            f"the first being {absent[0]!r}."
        )
    try:
        profiles = frame.loc[rows, adata.var_names].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"Expected numbers in the predictions of {name!r}, found other values.") from error
    if not np.isfinite(profiles).all():
        # Left to the metrics, conditions without a score would drop out of the mean of this method alone.
        unknown = [row for row, values in zip(rows, profiles, strict=True) if not np.isfinite(values).all()]
        raise ValueError(f"Expected finite predictions of {name!r}, found NaN or infinite values in {unknown}.")
    return profiles


def cell_means(
    screen: HeldOutScreen, name: str, cells: AnnData, *, key: str, within: str | Sequence[str] | None, keep: bool
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float32]]]:
    """Mean profiles of predicted cells with their conditions in ``obs``, and the cells by row; counts are refused."""
    adata = screen.source.adata
    absent = adata.var_names.difference(cells.var_names)
    if len(absent):
        raise ValueError(
            f"Expected all {adata.n_vars} genes in the predictions of {name!r}, found {len(absent)} missing, "
            f"the first being {absent[0]!r}."
        )
    units = _units(screen, cells, key, within)
    chosen = np.flatnonzero(np.isin(units, screen.rows))
    if missing := sorted(set(screen.rows) - set(units[chosen])):
        raise ValueError(
            f"Expected predicted cells of {missing[0]!r} from {name!r}, found none. There are cells of "
            f"{listing(sorted(set(units)))}."
        )
    found = cells[chosen, adata.var_names].copy()
    values = np.asarray(found.X.toarray() if sparse.issparse(found.X) else found.X, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"Expected finite predictions of {name!r}, found NaN or infinite values.")
    # What a model predicts may fall below zero, which measured cells cannot.
    found.X = values.clip(min=0)
    try:
        check_log_values(RowSource(found))
    except ValueError as error:
        raise ValueError(f"Predictions of {name!r}: {error}") from error
    profiles = mean_profiles(values, units[chosen], names=screen.rows)
    own = {row: values[units[chosen] == row].astype(np.float32) for row in screen.rows} if keep else {}
    return profiles.means, own


def predicted_rows(
    screen: HeldOutScreen, table: AnnData | pd.DataFrame, *, key: str, within: str | Sequence[str] | None
) -> set[str]:
    """Rows of a screen that a table of predictions has cells or a profile of."""
    if isinstance(table, AnnData) and key in table.obs:
        return set(screen.rows) & set(_units(screen, table, key, within))
    names = table.index if isinstance(table, pd.DataFrame) else table.obs_names
    return {row for row, there in _rows_of(screen, names).items() if there}


def _units(screen: HeldOutScreen, cells: AnnData, key: str, within: str | Sequence[str] | None) -> NDArray[Any]:
    """Row of a screen that each predicted cell belongs to, or what else its context and condition are called."""
    contexts = context_labels(cells, within)
    conditions = cells.obs[key].astype(str).map(_spelled_like(screen)).to_numpy(dtype=object)
    blank = np.full(len(conditions), "", dtype=object)
    return unit_names(blank if contexts is None else contexts, conditions)


def _rows_of(screen: HeldOutScreen, names: pd.Index) -> dict[str, list[str]]:
    """Names of a table that stand for each row of a screen."""
    by_genes = _by_genes(names)
    contexts = any(screen.row_contexts)
    return {
        shown: [shown] if shown in names else [] if contexts else by_genes.get(condition_key(condition), [])
        for shown, condition in zip(screen.rows, screen.conditions, strict=True)
    }


def listing(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(map(repr, names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")


def _spelled_like(screen: HeldOutScreen) -> Callable[[str], str]:
    """Conditions as the screen spells them, by their genes."""
    spelled = {condition_key(condition): condition for condition in screen.conditions}

    def spell(name: str) -> str:
        with suppress(ValueError, AttributeError):
            return spelled.get(condition_key(name), name)
        return name

    return spell


def _by_genes(names: pd.Index) -> dict[str, list[str]]:
    """Rows of each set of genes, in whatever order they are written."""
    found: dict[str, list[str]] = {}
    for name in names:
        with suppress(ValueError, AttributeError):
            found.setdefault(condition_key(name), []).append(name)
    return found


def scgenept_files(
    screen: HeldOutScreen, models: Mapping[str, NDArray[np.float64]], part: str
) -> dict[str, ScGenePTScores]:
    """What scGenePT's evaluation writes, for mean profiles (C, G) by the name of the model."""
    analyses = _Analyses.read(screen)
    groups: dict[str, list[str]] = {}
    for name, group in screen.groups.items():
        groups.setdefault(group, []).append(name)
    return {
        name: scgenept_scores(
            replace(analyses.held_out, predicted=profiles),
            screen.truth.control,
            analyses.order,
            analyses.lists["top"],
            groups,
            part=part,
        )
        for name, profiles in models.items()
    }


def original_scores(
    screen: HeldOutScreen, models: Mapping[str, NDArray[np.float64]], *, analyses: bool = False
) -> pd.DataFrame:
    """Scores of GEARS and scGPT as they compute them, for mean profiles (C, G) by the name of the model.

    ``analyses``: also those of GEARS' analyses, under its own names with ``gears_`` before them.
    """
    truth = screen.truth
    order = _order(screen)
    top = order[:, :_TOP]
    analyse = _Analyses.read(screen) if analyses else None
    rows = []
    for name, values in models.items():
        gears = evaluation_metrics(values, truth.true, top)
        scgpt = scgpt_metrics(values, truth.true, truth.control, top)
        found = {f"gears_{metric}": own for metric, own in gears.items()}
        found |= {f"scgpt_{metric}": own for metric, own in scgpt.items()}
        if analyse is not None:
            found |= {
                f"gears_{metric}": own for metric, own in analyse(values).items() if f"gears_{metric}" not in found
            }
        for metric, own in found.items():
            frame = pd.DataFrame({"condition": truth.conditions, "method": name, "metric": metric, "value": own})
            frame.insert(1, "group", frame["condition"].map(screen.groups))
            rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def _order(screen: HeldOutScreen) -> NDArray[np.int64]:
    """(C, G) genes of each held-out condition by falling absolute score against the controls."""
    scores = screen.truth.scores
    assert scores is not None  # noqa: S101 - screen with them
    return np.argsort(-np.abs(scores), axis=1, kind="stable")


@dataclass(frozen=True, eq=False)
class _Analyses:
    """What GEARS' deeper and non-dropout analyses of mean profiles refer to."""

    screen: HeldOutScreen
    held_out: HeldOutCells
    order: NDArray[np.int64]
    variable: NDArray[np.int64]
    """Genes whose mean varies most over all conditions of the screen."""
    lists: dict[str, list[NDArray[np.int64]]]
    """Positions of genes for each condition, by what they have in common."""

    @classmethod
    def read(cls, screen: HeldOutScreen) -> _Analyses:
        """Read the held-out cells and the genes that they express.

        GEARS counts a gene that no cell of the condition expresses as dropped out unless no control does either.
        """
        truth, order = screen.truth, _order(screen)
        cells = log_values(screen.source)
        held = np.flatnonzero(screen.units != "")
        rows = tuple(np.flatnonzero(screen.units[held] == name) for name in screen.rows)
        seen, unseen = truth.true != 0, np.broadcast_to(truth.control == 0, truth.true.shape)
        kept = seen | unseen
        return cls(
            screen,
            HeldOutCells(screen.rows, truth.true, truth.true, cells[held], rows),
            order,
            variable_genes(mean_profiles(cells, screen.all_units).means),
            {
                "top": [ranked[own[ranked]][:_TOP] for ranked, own in zip(order, kept, strict=True)],
                "non_zero": [np.flatnonzero(own) for own in seen],
                "non_dropout": [np.flatnonzero(own) for own in kept],
            },
        )

    def __call__(self, predicted: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Scores (C,) by GEARS' names."""
        cells, control = replace(self.held_out, predicted=predicted), self.screen.truth.control
        others = {name: self.lists[name] for name in ("non_zero", "non_dropout")}
        return deeper_analysis(cells, control, self.order, self.variable) | list_analysis(
            cells, control, self.lists["top"], "non_dropout", others=others
        )
