from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.data.parts import read_parts


@pytest.mark.parametrize(
    "column",
    [
        ["train", "val", None, "test"],
        ["train", "val", "  ", "test"],
        pd.Categorical(["train", "val", None, "test"], categories=["train", "val", "test", "Valid"]),
        pd.array(["train", "val", None, "test"], dtype="string"),
    ],
    ids=["text", "blank", "categories", "strings"],
)
def test_the_three_parts_and_none(column):
    assert read_parts(pd.DataFrame({"split": column}), "split").tolist() == ["train", "val", None, "test"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("valid", "val"),
        ("validation", "val"),
        ("Val", "val"),
        ("VAL", "val"),
        (" val", "val"),
        ("Train", "train"),
        ("train ", "train"),
        ("TEST", "test"),
        ("heldout", None),
        (True, None),
        (1, None),
        ("nan", None),
    ],
)
def test_another_word_is_refused_by_name(word, meant):
    column = np.array(["train", "val", word, word], dtype=object)
    with pytest.raises(ValueError, match=r"^Expected 'train', 'val' or 'test' in obs\['part'\]") as caught:
        read_parts(pd.DataFrame({"part": column}), "part")
    assert f"found {word!r} (2 cells)" in str(caught.value)
    assert meant is None or f"replace({{{word!r}: {meant!r}}})" in str(caught.value)


def test_a_column_without_any_part_is_refused():
    with pytest.raises(ValueError, match="found no part of any cell"):
        read_parts(pd.DataFrame({"part": [None, ""]}), "part")


def test_an_absent_column_is_named_with_those_there():
    with pytest.raises(KeyError, match="Did you mean 'part'"):
        read_parts(pd.DataFrame({"part": ["train"]}), "parts")


def test_further_words_have_to_be_allowed():
    obs = pd.DataFrame({"part": ["train", "valid", "unseen lines"]})
    assert read_parts(obs, "part", also=("valid",), others=True).tolist() == ["train", "valid", "unseen lines"]
    with pytest.raises(ValueError, match=re.escape("found 'valid' (1 cells)")):
        read_parts(obs, "part", others=True)
    with pytest.raises(ValueError, match="found 'unseen lines'"):
        read_parts(obs, "part", also=("valid",))


def test_a_list_among_the_parts_is_refused():
    with pytest.raises(ValueError, match=r"one label of each cell in obs\['part'\], found \['train'\] in row 1"):
        read_parts(pd.DataFrame({"part": ["train", ["train"]]}), "part", others=True)
