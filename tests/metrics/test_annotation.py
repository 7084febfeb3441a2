from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

import scgpt_tools as sct

TRUTH = ["B", "B", "B", "T", "T", "NK"]


def test_right_predictions_score_one():
    scores = sct.metrics.score_annotation(TRUTH, TRUTH)
    assert scores == (1.0, 1.0, 1.0, 1.0, 1.0)


def test_scores_are_those_of_sklearn_over_the_classes_of_the_truth(rng):
    truth, guess = rng.choice(list("abcd"), 200), rng.choice(list("abcd"), 200)
    scores = sct.metrics.score_annotation(truth, guess)
    assert scores.accuracy == pytest.approx(accuracy_score(truth, guess))
    assert scores.macro_precision == pytest.approx(precision_score(truth, guess, average="macro"))
    assert scores.macro_recall == pytest.approx(recall_score(truth, guess, average="macro"))
    assert scores.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro"))


def test_a_constant_answer_recalls_one_class_of_three():
    scores = sct.metrics.score_annotation(TRUTH, ["B"] * 6)
    assert scores.accuracy == 0.5
    assert scores.macro_recall == pytest.approx(1 / 3)


def test_a_class_that_only_the_prediction_knows_is_no_class_of_its_own():
    one = sct.metrics.score_annotation(TRUTH, ["B", "B", "B", "T", "DC", "NK"])
    other = sct.metrics.score_annotation(TRUTH, ["B", "B", "B", "T", "unassigned", "NK"])
    assert one.macro_f1 == other.macro_f1 == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert one.assigned == 1.0
    assert other.assigned == pytest.approx(5 / 6)


def test_cells_of_unknown_type_do_not_count():
    truth = pd.Series([*TRUTH, np.nan, None], dtype="category")
    assert sct.metrics.score_annotation(truth, [*TRUTH, "B", "T"]) == (1.0,) * 5


def test_blank_labels_are_no_class():
    truth, predicted = [*TRUTH, "", "  "], ["", *TRUTH[1:], "B", "T"]
    scores = sct.metrics.score_annotation(truth, predicted)
    assert (scores.accuracy, scores.assigned) == (5 / 6, 5 / 6)
    assert list(sct.metrics.class_scores(truth, predicted).index) == ["B", "NK", "T"]
    table = sct.metrics.confusion_table(truth, predicted, normalize="none")
    assert list(table.index) == ["B", "NK", "T"]
    assert list(table.columns) == ["B", "NK", "T", "no prediction"]
    with pytest.raises(ValueError, match="none among 2"):
        sct.metrics.score_annotation(["", np.nan], ["B", "T"])


def test_whole_numbers_are_the_classes_that_training_calls_them():
    """Missing values make a column of whole numbers floats."""
    assert sct.metrics.score_annotation([1.0, 2.0, np.nan], ["1", "2", "2"]).accuracy == 1
    assert sct.metrics.score_annotation(["1", "2", "2"], [1.0, 2.0, np.nan]).accuracy == pytest.approx(2 / 3)
    assert sct.metrics.score_annotation([1.5, 2.0], ["1.5", "2.0"]).accuracy == 1


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([1, 2, 2], ["1", "2", "2"]),
        (pd.Categorical([2, 1, 1], categories=[2, 1]), pd.Categorical(["2", "1", "1"], categories=["1", "2", "3"])),
        ([1.0, 2.5, 2.5], [1, 2.5, 2.5]),
        ([1.0, 1.0, 2.5], pd.Series([1.0, 1.0, np.nan])),
        ([True, False, False], ["True", "False", "False"]),
        (pd.array([1, 2, 2], dtype="Int64"), np.array(["1", "2", "2"])),
    ],
    ids=["numbers", "categories", "fractions", "fractions of one", "truths", "nullable"],
)
def test_labels_of_other_types_are_compared_by_their_spelling(truth, predicted):
    right = 1 - pd.isna(pd.Series(predicted)).mean()
    assert sct.metrics.score_annotation(truth, predicted).accuracy == pytest.approx(right)
    assert sct.metrics.class_scores(truth, predicted)["precision"].max() == 1


def test_labels_that_cannot_agree_are_said():
    with pytest.warns(
        UserWarning, match=r"labels in common, found none: 'B', 'NK', 'T' and '0', '1'\. No cell is right"
    ):
        scores = sct.metrics.score_annotation(TRUTH, [0, 0, 0, 1, 1, 1])
    assert scores.accuracy == 0
    with pytest.warns(UserWarning, match="found 1 that differ in case or white space only, such as 'NK' and 'nk '"):
        sct.metrics.score_annotation(TRUTH, [*TRUTH[:-1], "nk "])
    with pytest.warns(UserWarning, match="labels in common, found none"):
        sct.metrics.class_scores(TRUTH, [0, 0, 0, 1, 1, 1])
    # Nothing was named, which is no question of spelling; and other groups may stand in a table beside types.
    assert sct.metrics.score_annotation(TRUTH, ["unassigned"] * 6).assigned == 0
    sct.metrics.confusion_table(TRUTH, [0, 0, 0, 1, 1, 1])


def test_the_same_cells_in_another_order_are_refused():
    truth = pd.Series(TRUTH, index=[f"cell{place}" for place in range(6)])
    with pytest.raises(
        ValueError, match=r"in the same order, found 'cell0' and 'cell5' first.*predicted\.loc\[truth\.index\]"
    ):
        sct.metrics.score_annotation(truth, truth[::-1])
    assert sct.metrics.score_annotation(truth, truth[::-1].to_numpy()).accuracy < 1
    assert sct.metrics.score_annotation(truth, truth.reset_index(drop=True)).accuracy == 1


def test_each_class_by_itself():
    table = sct.metrics.class_scores(TRUTH, ["B", "B", "T", "T", "T", "T"])
    assert table.loc["B"].to_dict() == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 0.8, "cells": 3})
    assert table.loc["T", "precision"] == 0.5
    assert table.loc["NK", "f1"] == 0


@pytest.mark.parametrize(("normalize", "axis"), [("truth", 1), ("predicted", 0)])
def test_normalised_confusion_sums_to_one(normalize, axis):
    table = sct.metrics.confusion_table(TRUTH, ["B", "B", "T", "T", "T", "DC"], normalize=normalize)
    np.testing.assert_allclose(table.sum(axis=axis), 1)


def test_confusion_counts_stand_in_the_same_order_on_both_sides():
    table = sct.metrics.confusion_table(TRUTH, ["T", "B", "B", "T", "T", "A new one"], normalize="none")
    assert list(table.index) == ["B", "NK", "T"]
    assert list(table.columns) == ["B", "T", "A new one"]
    assert table.loc["B"].tolist() == [2, 1, 0]
    assert table.loc["NK"].tolist() == [0, 0, 1]
    assert table.to_numpy().sum() == 6


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [(["B"], ["B", "T"], "one prediction per cell"), ([None, np.nan], ["B", "T"], "none among 2")],
)
def test_what_cannot_be_scored_is_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        sct.metrics.score_annotation(truth, predicted)
