"""Reverse perturbation: which perturbation leads from one state to another?"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._keys import ScreenKeys
from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_choice, check_key, check_type
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.rows import RowSource
from scgpt_tools.metrics.discrimination import pairwise
from scgpt_tools.screens.annotations import check_log_values
from scgpt_tools.screens.conditions import read_conditions, read_labels
from scgpt_tools.tokens.perturbations import CONTROL, condition_genes, condition_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Similarity: TypeAlias = Literal["cosine", "pearson", "l1", "l2"]

_DISTANCES = ("l1", "l2")


@renamed(key="condition_key")
@shared_docs
def rank_perturbations(
    adata: AnnData,
    screened: AnnData,
    *,
    condition_key: str = "condition",
    source: str = CONTROL,
    targets: str | Sequence[str] | None = None,
    metric: Similarity = "cosine",
    by: Literal["mean", "cells"] = "mean",
    exclude_perturbed: bool = False,
    layer: str | None = None,
) -> pd.DataFrame:
    """Rank candidate perturbations by how well they explain the step from one state to another :cite:p:`Cui2024`.

    Parameters
    ----------
    adata
        Log-normalised cells of both states; not changed.
    screened
        Candidates: result of :func:`scgpt_tools.tl.screen` on the same genes.
    condition_key
        Column of ``obs`` with the states, for example conditions.
    source
        State to start from.
    targets
        State or states to reach; ``None`` takes all others.
    metric
        How to compare the observed change with predicted effects.
    by
        ``"mean"`` compares the mean change of a state; ``"cells"`` lets every cell vote for the candidate nearest to
        it, with the comparison of the mean to break ties.
    exclude_perturbed
        Leave out the genes that some candidate perturbs, whose own expression may give the answer away.
    {layer}

    Returns
    -------
    One row per ``state`` and ``perturbation``: ``rank`` (1 is best), ``score`` (higher is better; distances bear a
    minus sign), ``votes`` with ``by="cells"``, and, where the state is a condition, whether the candidate is it
    (``exact``) or shares a gene with it (``relevant``), for :func:`scgpt_tools.metrics.top_k_accuracy`.

    Raises
    ------
    KeyError
        If a column or layer is absent; the message lists what is there.
    ValueError
        If values look like counts, a state has no cells, genes of the candidates are missing, or effects are not
        finite.

    Warns
    -----
    UserWarning
        If a candidate has no score because it changes nothing; such candidates are ranked last.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> candidates = sct.tl.screen(adata, ["KLF1", "SAMD1+ZBTB1"], model)  # doctest: +SKIP
    >>> ranking = sct.tl.rank_perturbations(adata, candidates, targets="KLF1+ctrl")  # doctest: +SKIP
    >>> sct.metrics.top_k_accuracy(ranking)  # doctest: +SKIP
    """
    check_arguments(rank_perturbations, locals())
    check_choice("metric", metric, ("cosine", "pearson", "l1", "l2"))
    check_choice("by", by, ("mean", "cells"))
    check_type("screened", screened, AnnData)
    check_key(screened.layers, ScreenKeys().effect, "layers")
    found = screened.layers[ScreenKeys().effect]
    predicted = np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float64)
    good = np.asarray(np.isfinite(predicted).all(axis=1))
    if not good.all():
        raise ValueError(
            f"Expected finite effects of all candidates, found NaN or infinite numbers for {int((~good).sum())} of "
            f"{len(good)} (first: {str(screened.obs_names[int(good.argmin())])!r}). Leave them out, or screen them again."
        )
    cells = RowSource(adata, layer=layer)
    check_log_values(cells)
    labels, source, targets = _one_spelling(adata, condition_key, source, targets)
    states = _states(labels, source, targets)
    columns = _shared_columns(adata, screened)
    candidates = {name: set(condition_genes(name)) for name in screened.obs_names}
    perturbed: set[str] = set().union(*candidates.values()) if exclude_perturbed else set()
    kept = ~screened.var_names.isin(list(perturbed))
    columns = columns[kept]
    if not kept.any():
        raise ValueError("Expected genes that no candidate perturbs, found none. Pass exclude_perturbed=False.")
    effects = predicted[:, kept]
    start = _mean(cells, labels == source, columns)
    frames = []
    for state in states:
        changes = cells.take(np.flatnonzero(labels == state))[:, columns].toarray().astype(np.float64) - start
        frames.append(_ranked(state, changes, effects, candidates, metric=metric, by=by))
    ranking = pd.concat(frames, ignore_index=True)
    if (undefined := ranking["score"].isna()).any():
        first = ranking[undefined].iloc[0]
        warn_user(
            f"Expected a {metric} of every candidate, found none of {int(undefined.sum())} (first: "
            f"{first['perturbation']!r} for {first['state']!r}), because nothing changes there. They are ranked last."
        )
    return ranking


def _one_spelling(
    adata: AnnData, key: str, source: str, targets: str | Sequence[str] | None
) -> tuple[NDArray[Any], str, list[str] | None]:
    """State of each cell, and the states asked for, spelled alike; states need not be conditions."""
    wanted = None if targets is None else [targets] if isinstance(targets, str) else list(targets)
    labels = read_labels(adata, key)
    if not all("+" in kind or kind == CONTROL for kind in pd.unique(labels)):
        return labels, source, wanted
    labels = read_conditions(adata, key)
    spelled = {condition_key(kind): kind for kind in pd.unique(labels)}

    def shown(state: str) -> str:
        with suppress(ValueError):
            return spelled.get(condition_key(state), state)
        return state

    return labels, shown(source), None if wanted is None else [shown(state) for state in wanted]


def _ranked(
    state: str,
    changes: NDArray[np.float64],
    effects: NDArray[np.float64],
    candidates: dict[str, set[str]],
    *,
    metric: Similarity,
    by: str,
) -> pd.DataFrame:
    frame = pd.DataFrame({"state": state, "perturbation": list(candidates)})
    frame["score"] = _similar(effects, changes.mean(axis=0, keepdims=True), metric)[:, 0]
    sorting = ["score"]
    if by == "cells":
        scores = _similar(effects, changes, metric)
        # A cell that is as the source is votes for nobody.
        voting = ~np.isnan(scores).all(axis=0)
        nearest = np.nan_to_num(scores[:, voting], nan=-np.inf).argmax(axis=0)
        frame["votes"] = np.bincount(nearest, minlength=len(candidates))
        sorting = ["votes", "score"]
    # A state need not be a condition, so its name is not read as strictly as one.
    genes = {part for part in state.split("+") if part not in ("", CONTROL)}
    known = "+" in state or any(genes & own for own in candidates.values())
    frame["exact"] = [own == genes for own in candidates.values()] if known else None
    frame["relevant"] = [bool(own & genes) for own in candidates.values()] if known else None
    frame = frame.sort_values(sorting, ascending=False, kind="stable", na_position="last", ignore_index=True)
    frame.insert(2, "rank", np.arange(1, len(frame) + 1))
    return frame


def _similar(effects: NDArray[np.float64], changes: NDArray[np.float64], metric: Similarity) -> NDArray[np.float64]:
    scores = pairwise(effects, changes, metric)
    return -scores if metric in _DISTANCES else scores


def _states(labels: NDArray[Any], source: str, targets: str | Sequence[str] | None) -> list[str]:
    there = sorted(set(labels))
    wanted = [targets] if isinstance(targets, str) else targets
    states = [state for state in there if state != source] if wanted is None else list(dict.fromkeys(wanted))
    if not states:
        raise ValueError(f"Expected a state other than {source!r} to reach, found none.")
    for state in (source, *states):
        if state not in there:
            raise ValueError(absent(state, there, "state"))
    return states


def _shared_columns(adata: AnnData, screened: AnnData) -> NDArray[np.int64]:
    for names in (adata.var_names, screened.var_names):
        if not names.is_unique:
            raise ValueError(
                f"Expected genes with names of their own, found {str(names[names.duplicated()][0])!r} twice. Run "
                "var_names_make_unique on both tables first."
            )
    columns = adata.var_names.get_indexer(screened.var_names)
    if (columns < 0).any():
        raise ValueError(
            f"Expected all {screened.n_vars} genes of the candidates in `adata`, found {int((columns < 0).sum())} "
            f"missing, the first being {screened.var_names[columns < 0][0]!r}."
        )
    return columns.astype(np.int64)


def _mean(cells: RowSource, mask: NDArray[np.bool_], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    # Summed in float64 whatever the matrix is in, so that candidates as good as each other keep their order.
    return np.asarray(cells.take(np.flatnonzero(mask))[:, columns].astype(np.float64).mean(axis=0)).ravel()
