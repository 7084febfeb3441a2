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


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_blank_labels_are_missing(blank):
    for column in (["T", blank, "B"], pd.Categorical(["T", blank, "B"])):
        obs = pd.DataFrame({"kind": column}, index=["a", "b", "c"])
        codes, names = read_classes(obs, "kind", allow_unknown=True)
        assert (codes.tolist(), names) == ([1, UNKNOWN, 0], ("B", "T"))
        with pytest.raises(ValueError, match=r"of every cell, found none for 1 cells \(first: 'b'\)"):
            read_classes(obs, "kind")


def test_names_that_differ_by_white_space_are_refused():
    with pytest.raises(ValueError, match="differ by more than white space around them, found ' B' and 'B'"):
        read_classes(pd.DataFrame({"kind": ["B", " B", "T"]}), "kind")
    assert read_classes(pd.DataFrame({"kind": ["B cell", "Bcell"]}), "kind").names == ("B cell", "Bcell")


def test_a_text_that_stands_for_a_missing_value_is_a_warning():
    obs = pd.DataFrame({"kind": ["nan", "T"]})
    with pytest.warns(UserWarning, match="found the text 'nan', which counts as a class"):
        assert read_classes(obs, "kind").names == ("T", "nan")
    assert read_classes(obs, "kind", names=("T", "nan")).codes.tolist() == [1, 0]


def test_whole_numbers_stay_whole_beside_missing_values():
    obs = pd.DataFrame({"cluster": [1, 10, np.nan]})
    codes, names = read_classes(obs, "cluster", allow_unknown=True)
    assert (codes.tolist(), names) == ([0, 1, UNKNOWN], ("1", "10"))
    assert read_classes(obs[:2], "cluster", names=("1.0", "10.0")).codes.tolist() == [0, 1]
    assert read_classes(pd.DataFrame({"dose": [0.5, 1.0]}), "dose").names == ("0.5", "1.0")


@pytest.mark.parametrize("key", [["kind"], None, 3])
def test_a_column_has_one_name(key):
    with pytest.raises(TypeError, match="Expected the name of one column of `obs`, found"):
        read_classes(pd.DataFrame({"kind": ["T"]}), key)


def test_what_is_no_name_is_refused():
    obs = pd.DataFrame({"kind": ["a", ["b"], "a"]})
    with pytest.raises(ValueError, match=r"a name for each cell in obs\['kind'\], found \['b'\]"):
        read_classes(obs, "kind")
    twins = pd.DataFrame([["a", "b"]] * 2, columns=["kind", "kind"])
    with pytest.raises(ValueError, match="one column 'kind'"):
        read_classes(twins, "kind")
