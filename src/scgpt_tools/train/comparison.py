"""A look at a classifier of cell types after training: is it better than chance, and than plain methods?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from scgpt_tools._warnings import warn_user
from scgpt_tools.data.classes import UNKNOWN
from scgpt_tools.metrics.annotation import agreement
from scgpt_tools.models.calibration import draw_cells
from scgpt_tools.models.gene_classifier import N_GENES, GeneClassifier, log_normalised, variable_columns
from scgpt_tools.tokens.units import describe_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellDataModule, CellTable
    from scgpt_tools.models.cell_model import CellModel
    from scgpt_tools.train.known_cells import LookedAt

logger = logging.getLogger(__name__)

MODEL, LINEAR, NEIGHBOURS, MAJORITY = (
    "fine-tuned model",
    "logistic regression on genes",
    "nearest neighbours on PCA",
    "most frequent class",
)
# Cells that plain methods are fitted to, at most.
_FITTED = 5_000
_COMPONENTS, _NEAREST = 50, 10
_SHUFFLES = 1_000
# How rarely a classifier that knows nothing passes for one that does.
_LEVEL = 0.05


class NoBetterThanChanceWarning(UserWarning):
    """A classifier was trained that cannot be told from one that answers without a look at the cell."""


def compared(
    model: CellModel, data: CellDataModule, looked_at: LookedAt, classes: tuple[str, ...], *, baselines: bool, seed: int
) -> pd.DataFrame:
    """Scores of a classifier and of plain methods on the cells that it was validated on, and a word about them.

    Without such cells those that it was trained on are scored, which says whether it has learnt anything, and no plain
    method.  One row each: ``accuracy``, ``macro_f1`` and the number of ``cells``.
    """
    assert data.label is not None  # noqa: S101 - the task has a column of classes
    rng = np.random.default_rng(seed)
    train = data.train[data.label[data.train] != UNKNOWN]
    train = train[draw_cells(data.label[train], _FITTED, rng)]
    validates = looked_at.held_out.size > 0
    cells, vectors = (
        (looked_at.held_out, looked_at.held_out_vectors) if validates else (looked_at.train, looked_at.vectors)
    )
    true = data.label[cells]
    answers = {MODEL: _answers(model, vectors)}
    if baselines and validates and not data.tables[0].features.parts:
        answers |= _plain_answers(data.tables[0], data.label, train, cells, classes, seed)
    answers[MAJORITY] = np.full(cells.size, np.bincount(data.label[train]).argmax())
    table = pd.DataFrame(
        [_scores(true, found) for found in answers.values()], index=pd.Index(list(answers), name="method")
    )
    where = "held-out" if validates else "training"
    rows = ", ".join(f"{name} {row.accuracy:.3f} ({row.macro_f1:.3f})" for name, row in table.iterrows())
    logger.info("Accuracy (macro F1) on %d %s cells: %s.", cells.size, where, rows)
    _warn_of_chance(true, answers[MODEL], table, where, rng)
    return table


def _answers(model: CellModel, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    head: Any = model.heads["cell_type"]
    with torch.inference_mode():
        return head.logits(torch.from_numpy(vectors).to(model.device)).argmax(dim=1).cpu().numpy()


def _plain_answers(
    table: CellTable,
    label: NDArray[np.int64],
    train: NDArray[np.int64],
    cells: NDArray[np.int64],
    classes: tuple[str, ...],
    seed: int,
) -> dict[str, NDArray[np.int64]]:
    """What a linear classifier and neighbours say, from the genes that the model reads."""
    columns = np.unique(table.features.columns)
    learnt, new = (table.source.take(rows) for rows in (train, cells))
    # A few cells may look like something else.
    unit = describe_values(learnt[:256]).unit
    known, asked = (log_normalised(X, unit)[:, columns] for X in (learnt, new))
    chosen = variable_columns(known, N_GENES)
    known, asked = known[:, chosen], asked[:, chosen]
    genes = [str(column) for column in columns[chosen]]
    linear = GeneClassifier.fit(known, label[train], genes=genes, classes=classes)
    ids = linear.vocabulary.ids(genes)
    pca = PCA(min(_COMPONENTS, *known.shape), random_state=seed % 2**32).fit(known.toarray())
    nearest = KNeighborsClassifier(min(_NEAREST, len(train)))
    nearest.fit(pca.transform(known.toarray()), label[train])
    return {
        LINEAR: linear.probabilities(asked, ids).argmax(axis=1),
        NEIGHBOURS: nearest.predict(pca.transform(asked.toarray())),
    }


def _scores(true: NDArray[np.int64], found: NDArray[np.int64]) -> dict[str, float]:
    scores = agreement(true.astype(str), found.astype(str))
    return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "cells": len(true)}


def _warn_of_chance(
    true: NDArray[np.int64], found: NDArray[np.int64], table: pd.DataFrame, where: str, rng: np.random.Generator
) -> None:
    """Warn if answers agree with the truth no more than the same answers do that are dealt out to the cells by chance."""
    right = int((true == found).sum())
    dealt = np.array([(rng.permutation(found) == true).sum() for _ in range(_SHUFFLES)])
    chance = (1 + int((dealt >= right).sum())) / (_SHUFFLES + 1)
    if chance <= _LEVEL:
        return
    sizes = np.unique(true, return_counts=True)[1]
    # In how many orders the same classes can be dealt out, as a logarithm.
    orders = gammaln(len(true) + 1) - gammaln(sizes + 1).sum()
    if orders < -np.log(_LEVEL):
        warn_user(
            f"Expected {where} cells that tell a good classifier from chance, found {len(true)} in which even one that is always "
            f"right could not be told from it ({len(sizes)} classes; {right} are right). Take more cells, of several "
            "classes, or hold out others with `validation`.",
            NoBetterThanChanceWarning,
        )
        return
    plain = [name for name in (LINEAR, NEIGHBOURS) if name in table.index]
    beside = "".join(f", {name} {table.accuracy[name]:.0%}" for name in plain)
    warn_user(
        f"Expected a classifier that does better than chance, found one that is right in {right} of {len(true)} {where} "
        f"cells ({table.accuracy[MODEL]:.0%}; the most frequent class {table.accuracy[MAJORITY]:.0%}{beside}), as often as "
        f"its answers would be by chance (p = {chance:.2g}). Do not use it: train for more steps (leave out `epochs` to go on "
        "until held-out cells get no better), raise `lr`, or hold out more cells with `validation` where these are few.",
        NoBetterThanChanceWarning,
    )
