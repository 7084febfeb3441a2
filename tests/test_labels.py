"""Labels of cells as tables have them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgpt_tools._labels import missing_labels, spelled_labels


def test_no_value_and_blank_texts_are_missing():
    column = pd.Series(["B", "", " ", None, np.nan, "T"], dtype=object)
    assert missing_labels(column).tolist() == [False, True, True, True, True, False]


def test_whole_numbers_are_spelled_without_a_point():
    assert spelled_labels(pd.Series([1.0, 2.0])).tolist() == ["1", "2"]
    assert spelled_labels(pd.Series([1.0, 2.5])).tolist() == ["1.0", "2.5"]


def test_what_is_no_label_is_named():
    with pytest.raises(TypeError, match=r"Expected texts or numbers as labels in 'kind', found \['B'\], a list"):
        missing_labels(pd.Series(["B", ["B"]], name="kind", dtype=object))
