"""Which perturbation explains a change of state?  Rankings of candidates and how often they are right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._validate import check_frame, check_integer

if TYPE_CHECKING:
    from collections.abc import Sequence


def top_k_accuracy(ranking: pd.DataFrame, k: Sequence[int] = (1, 2, 5, 10)) -> pd.DataFrame:
    """How many states have the right perturbation among their first k.

    scGPT's two ways to count in reverse perturbation: the very combination (``exact``), or one that shares a gene with
    it (``relevant``).  A random order is right surprisingly often where many candidates share genes.

    Parameters
    ----------
    ranking
        From :func:`scgpt_tools.tl.rank_perturbations`; states whose perturbation is not known do not count.
    k
        Lengths of the lists.

    Returns
    -------
    One row per k: ``n`` states, ``exact`` and ``relevant`` shares, and what a random order gives on average,
    ``exact_by_chance`` and ``relevant_by_chance``.  A state whose perturbation is no candidate counts as wrong.
    """
    check_arguments(top_k_accuracy, locals())
    check_frame("ranking", ranking, ("state", "rank", "exact", "relevant"))
    if isinstance(k, str) or not isinstance(k, Iterable):
        raise TypeError(f"Expected `k` to be a list of whole numbers, found {k!r}.")
    known = ranking[ranking["exact"].notna()]
    rows = []
    for length in k:
        check_integer("k", length)
        states = known.groupby("state", sort=False)
        row: dict[str, float] = {"k": length, "n": states.ngroups}
        for name in ("exact", "relevant"):
            hits = [bool(own.loc[own["rank"] <= length, name].astype(bool).any()) for _, own in states]
            chances = [_chance(len(own), int(own[name].astype(bool).sum()), length) for _, own in states]
            row[name], row[f"{name}_by_chance"] = _mean(hits), _mean(chances)
        rows.append(row)
    return pd.DataFrame(rows).set_index("k")


def _chance(n: int, right: int, k: int) -> float:
    """Probability that k of n candidates, drawn at random, hold at least one of the right ones."""
    drawn = np.arange(min(k, n))
    return float(1 - np.prod(np.clip((n - right - drawn) / (n - drawn), 0, 1)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else np.nan
