"""Predictions by several models of one recipe: scored one by one, averaged, and their spread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Between the name of a recipe and the number of one of its models.
_SEED = " #"
# After the name of a recipe, for the mean prediction of its models.
_ENSEMBLE = " ensemble"


def expanded(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Predictions, each of several models of a recipe under a name of its own, and the recipe of each of these names."""
    found: dict[str, Any] = {}
    recipes: dict[str, str] = {}
    for name, prediction in named.items():
        if not isinstance(prediction, list | tuple):
            found[name] = prediction
            continue
        if not prediction:
            raise ValueError(f"Expected at least one prediction of {name!r}, found none.")
        for number, own in enumerate(prediction):
            member = f"{name}{_SEED}{number}"
            found[member], recipes[member] = own, name
    return found, recipes


def ensembles(named: Mapping[str, Any], recipes: Mapping[str, str]) -> dict[str, list[str]]:
    """Members of each recipe that several models belong to, by the name of their mean."""
    found: dict[str, list[str]] = {}
    for member, recipe in recipes.items():
        found.setdefault(f"{recipe}{_ENSEMBLE}", []).append(member)
    found = {name: members for name, members in found.items() if len(members) > 1}
    if not found:
        raise ValueError(
            "Expected lists of two models or more with `ensemble`, found none. Pass them by name: {'mine': [first, second]}."
        )
    if taken := set(found) & {*named, *recipes.values()}:
        raise ValueError(
            f"Expected no prediction of the name {min(taken)!r}, which an ensemble has. Choose another one."
        )
    return found


def mean_cells(members: Sequence[Mapping[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    """Mean over what several models made of the same cells; empty where these are not the same."""
    if not all(members) or any(
        len({cells.shape for cells in own}) > 1 for own in zip(*(each.values() for each in members), strict=True)
    ):
        return {}
    return {row: np.mean([each[row] for each in members], axis=0) for row in members[0]}


def as_recipes(table: pd.DataFrame, recipes: Mapping[str, str]) -> pd.DataFrame:
    """Scores of recipes, the mean over their models."""
    if not recipes:
        return table
    named = table.assign(method=table["method"].map(lambda name: recipes.get(name, name)))
    keys = [name for name in named.columns if name != "value"]
    found = named.groupby(keys, sort=False, dropna=False)["value"].agg(["mean", "count", "size"]).reset_index()
    partial_means = found[(found["count"] > 0) & (found["count"] < found["size"])]
    for method, own in partial_means.groupby("method", sort=False):
        first = own.iloc[0]
        warn_user(
            f"Expected a score of every model of {method!r}, found none of some in {len(own):,} of "
            f"{int((found['method'] == method).sum()):,} (first: {first['metric']!r} of {first['condition']!r}, "
            f"{first['count']} of {first['size']} models); those means are over the others. Compare `by_seed`."
        )
    return found.rename(columns={"mean": "value"})[list(table.columns)]


def means_by_seed(table: pd.DataFrame, recipes: Mapping[str, str]) -> pd.DataFrame:
    """Mean over perturbations by recipe, number of the model and metric."""
    numbers = table["method"].str.rpartition(_SEED)[2].astype(int) if len(table) else pd.Series(dtype=int)
    named = table.assign(method=table["method"].map(recipes), seed=numbers)
    keys = ["method", "seed", "metric"]
    once = named.groupby([*keys, "perturbation" if "perturbation" in table else "condition"], sort=False)[
        "value"
    ].mean()
    return once.groupby(keys, sort=False).mean().reset_index()
