from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.data.classes import UNKNOWN, read_classes


@pytest.mark.parametrize(
    "column",
    [
        ["T", "B", "T", "NK"],
        pd.Categorical(["T", "B", "T", "NK"], categories=["T", "NK", "B", "DC"]),
        pd.array(["T", "B", "T", "NK"], dtype="string"),
    ],
    ids=["text", "categories", "strings"],
)
def test_names_are_those_that_occur_sorted(column):
    classes = read_classes(pd.DataFrame({"kind": column}), "kind")
    assert classes.names == ("B", "NK", "T")
    assert classes.codes.tolist() == [2, 0, 2, 1]


def test_numbers_are_read_as_text():
    assert read_classes(pd.DataFrame({"batch": [10, 2, 10]}), "batch").names == ("10", "2")


def test_given_names_keep_their_numbers():
    obs = pd.DataFrame({"kind": ["T", "B"]})
    assert read_classes(obs, "kind", names=("T", "DC", "B")).codes.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"Found no class of obs\['kind'\] named 'B'.*'T', 'DC'"):
        read_classes(obs, "kind", names=("T", "DC"))


def test_cells_without_a_class():
    obs = pd.DataFrame({"kind": pd.Categorical(["T", None, "B"])})
    assert read_classes(obs, "kind", allow_unknown=True).codes.tolist() == [1, UNKNOWN, 0]
    with pytest.raises(ValueError, match="of every cell, found none for 1 cells"):
        read_classes(obs, "kind")
    with pytest.raises(ValueError, match="of at least one cell, found none for 2 cells"):
        read_classes(pd.DataFrame({"kind": [np.nan, None]}), "kind", allow_unknown=True)


def test_an_absent_column_is_named_with_those_there():
    with pytest.raises(KeyError, match="Did you mean 'kind'"):
        read_classes(pd.DataFrame({"kind": ["T"]}), "kinds")
