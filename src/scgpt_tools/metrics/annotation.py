"""How well predicted cell types agree with known ones.

Means over classes run over the classes of the truth: a class that only the prediction knows has no recall, and the cells
that were put there already count as missed where they belong.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from scgpt_tools._arguments import check_arguments
from scgpt_tools._labels import missing_labels, spelled_labels
from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Normalize: TypeAlias = Literal["truth", "predicted", "none"]
"""Divide by the cells of each true class, of each predicted class, or not at all."""


# What a cell without a prediction is called in tables.
_NONE = "no prediction"
# Labels that a message names.
_SHOWN = 5


class AnnotationScores(NamedTuple):
    """Agreement of predicted and true classes, each 0 to 1; more is better."""

    accuracy: float
    """Share of the cells whose prediction is right."""
    macro_precision: float
    macro_recall: float
    """Mean of the shares of each class that were found; a classifier that always answers alike has one over C."""
    macro_f1: float
    assigned: float
    """Share of the cells that got a class at all."""


def score_annotation(
    truth: ArrayLike, predicted: ArrayLike, *, unassigned: str | None = "unassigned"
) -> AnnotationScores:
    """Score predicted cell types.

    Parameters
    ----------
    truth
        Known class of each cell; cells without one (a missing value, or a text that is empty or white space) are left out.
    predicted
        Predicted class of each cell, in the same order; one that is missing counts as none.
    unassigned
        What stands for no prediction, as a missing value or an empty text does; such cells count as missed.

    Returns
    -------
    Accuracy, and precision, recall and F1 as plain means over the classes of the truth.

    Raises
    ------
    ValueError
        If lengths differ, both are series of the same cells in another order, or no cell has a known class.

    Warns
    -----
    UserWarning
        If truth and prediction have no label in common, or some that differ in case or white space only: labels count as equal
        if they are spelled alike, numbers as text.
    """
    check_arguments(score_annotation, locals())
    true, guess = _known(truth, predicted)
    _warn_of_spelling(true, guess, unassigned)
    return agreement(true, guess, unassigned=unassigned)


def agreement(true: NDArray[np.str_], guess: NDArray[np.str_], *, unassigned: str | None = None) -> AnnotationScores:
    """The scores of labels that are all known and spelled alike."""
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, guess, labels=np.unique(true), average="macro", zero_division=0.0
    )
    return AnnotationScores(
        accuracy=float(np.mean(true == guess)),
        macro_precision=float(precision),
        macro_recall=float(recall),
        macro_f1=float(f1),
        assigned=float(np.mean((guess != unassigned) & (guess != _NONE))),
    )


def class_scores(truth: ArrayLike, predicted: ArrayLike) -> pd.DataFrame:
    """Score each cell type by itself.

    Parameters
    ----------
    truth
        Known class of each cell; cells without one (a missing value, or a text that is empty or white space) are left out.
    predicted
        Predicted class of each cell, in the same order; one that is missing counts as none.

    Returns
    -------
    ``precision``, ``recall``, ``f1`` and number of ``cells`` of each class of the truth, indexed by class.
    """
    check_arguments(class_scores, locals())
    true, guess = _known(truth, predicted)
    _warn_of_spelling(true, guess, "unassigned")
    classes = np.unique(true)
    precision, recall, f1, cells = precision_recall_fscore_support(true, guess, labels=classes, zero_division=0.0)
    index = pd.Index(classes, name="class")
    return pd.DataFrame({"precision": precision, "recall": recall, "f1": f1, "cells": cells}, index=index)


def confusion_table(truth: ArrayLike, predicted: ArrayLike, *, normalize: Normalize = "truth") -> pd.DataFrame:
    """Cross-tabulate true and predicted cell types.

    Parameters
    ----------
    truth
        Known class of each cell; cells without one (a missing value, or a text that is empty or white space) are left out.
    predicted
        Predicted class of each cell, in the same order; one that is missing counts as none.
    normalize
        What the counts are divided by.

    Returns
    -------
    One row per true and one column per predicted class; classes that both have come first, in the same order.
    """
    check_arguments(confusion_table, locals())
    check_choice("normalize", normalize, get_args(Normalize))
    true, guess = _known(truth, predicted)
    rows, found = np.unique(true), np.unique(guess)
    columns = [*(name for name in rows if name in found), *(name for name in found if name not in rows)]
    table = pd.crosstab(pd.Series(true, name="truth"), pd.Series(guess, name="predicted"))
    table = table.reindex(index=rows, columns=columns)
    table.index.name, table.columns.name = "truth", "predicted"
    if normalize == "truth":
        return table.div(table.sum(axis=1), axis=0)
    return table.div(table.sum(axis=0), axis=1) if normalize == "predicted" else table


def _known(truth: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Both as text, spelled as in training, for the cells whose class is known."""
    if len(truth) != len(predicted):  # type: ignore[arg-type]
        raise ValueError(f"Expected one prediction per cell, found {len(predicted)} for {len(truth)} cells.")  # type: ignore[arg-type]
    _check_order(truth, predicted)
    true, guess = (pd.Series(np.asarray(labels, dtype=object)) for labels in (truth, predicted))
    known = ~missing_labels(true)
    if not known.any():
        raise ValueError(f"Expected cells whose class is known, found none among {len(true)}.")
    true, guess = true[known], guess[known]
    answered = ~missing_labels(guess)
    labels = [true, guess[answered]]
    both = pd.concat(labels)
    if all(isinstance(label, Real) and not isinstance(label, bool) for label in both):
        # Whether numbers are whole is a question about both.
        texts = np.split(spelled_labels(both.map(float)).to_numpy(dtype=object), [len(true)])
    else:
        texts = [spelled_labels(each).to_numpy(dtype=object) for each in labels]
    names = np.full(len(guess), _NONE, dtype=object)
    names[answered] = texts[1]
    return texts[0].astype(str), names.astype(str)


def _check_order(truth: Any, predicted: Any) -> None:
    """Refuse series of the same cells in another order, which are compared cell by cell."""
    if not (isinstance(truth, pd.Series) and isinstance(predicted, pd.Series)):
        return
    one, other = truth.index, predicted.index
    if not one.equals(other) and one.is_unique and other.is_unique and one.isin(other).all():
        raise ValueError(
            f"Expected the cells of both in the same order, found {str(one[0])!r} and {str(other[0])!r} first. Put them in one: "
            "predicted.loc[truth.index]."
        )


def _warn_of_spelling(true: NDArray[np.str_], guess: NDArray[np.str_], unassigned: str | None = None) -> None:
    """Say where labels cannot agree."""
    ours, theirs = (set(labels.tolist()) - {unassigned, _NONE} for labels in (true, guess))
    plain = {label.strip().casefold(): label for label in sorted(theirs - ours)}
    alike = [(label, plain[key]) for label in sorted(ours - theirs) if (key := label.strip().casefold()) in plain]
    if alike:
        one, other = alike[0]
        warn_user(
            f"Expected truth and prediction to spell their labels alike, found {len(alike)} that differ in case or white space "
            f"only, such as {one!r} and {other!r}, which count as different. Rename those of one."
        )
    elif theirs and not ours & theirs:
        warn_user(
            f"Expected truth and prediction to have labels in common, found none: {_some(ours)} and {_some(theirs)}. No cell is "
            "right. Rename those of one, or compare other columns."
        )


def _some(labels: set[str]) -> str:
    few = sorted(labels)[:_SHOWN]
    return f"{', '.join(map(repr, few))}{', ...' if len(labels) > _SHOWN else ''}"
