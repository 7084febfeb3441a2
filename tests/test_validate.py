from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgpt_tools._validate import (
    as_generator,
    as_seed,
    check_choice,
    check_finite,
    check_flag,
    check_fraction,
    check_integer,
    check_key,
    check_key_name,
    check_number,
    check_text,
    check_texts,
    check_type,
)


def test_good_values_come_back():
    assert check_choice("pooling", "cls", ("cls", "mean")) == "cls"
    assert check_type("model", "name", (str, dict)) == "name"
    assert check_integer("batch_size", np.int64(3)) == 3
    assert check_fraction("ratio", 1) == 1.0
    assert check_key({"counts": 0}, "counts", "layers") == "counts"
    assert check_flag("copy", np.True_) is True
    assert check_number("scale", 3, least=0) == 3.0
    assert check_text("layer", "counts") == "counts"
    assert check_texts("keys", ("a", "b")) == ["a", "b"]
    assert check_key_name("key_added", "X_scGPT.v2") == "X_scGPT.v2"
    check_finite("the result", np.ones((2, 3)), "Never seen.")


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_choice("pooling", "max", ("cls", "mean")), ValueError, "`pooling` to be one of 'cls', 'mean'"),
        (lambda: check_choice("pooling", ["cls"], {"cls": 1}), ValueError, r"found \['cls'\]"),
        (lambda: check_key({"counts": 0}, ["counts"], "layers"), KeyError, r"no key in `layers`: \['counts'\]"),
        (
            lambda: check_key(pd.DataFrame([[1, 2]], columns=["a", "a"]), "a", "obs"),
            ValueError,
            "one column 'a' in `obs`, found 2",
        ),
        (lambda: check_type("model", 3, (str, dict)), TypeError, "`model` to be str or dict, found int"),
        (lambda: check_integer("batch_size", 2.5), TypeError, "`batch_size` to be a whole number, found 2.5"),
        (lambda: check_integer("batch_size", True), TypeError, "found True"),
        (lambda: check_integer("batch_size", 0), ValueError, "at least 1, found 0"),
        (lambda: check_fraction("ratio", "half"), TypeError, "`ratio` to be a number"),
        (lambda: check_fraction("ratio", 1.2), ValueError, r"\[0, 1\], found 1.2"),
        (lambda: check_fraction("ratio", 0, zero=False), ValueError, r"\(0, 1\]"),
        (lambda: check_fraction("ratio", float("nan")), ValueError, "found nan"),
        (lambda: check_key({"counts": 0}, "count", "layers"), KeyError, "Did you mean 'counts'"),
        (lambda: check_key({None: 0, "counts": 0}, None, "layers"), KeyError, "Available: 'counts'"),
        (lambda: check_flag("copy", "False"), TypeError, "`copy` to be True or False, found 'False'"),
        (lambda: check_flag("copy", 1), TypeError, "found 1"),
        (lambda: check_number("scale", True), TypeError, "`scale` to be a number, found True"),
        (lambda: check_number("scale", float("nan")), ValueError, "a finite number, found nan"),
        (lambda: check_number("scale", -1, least=0), ValueError, "at least 0, found -1"),
        (lambda: check_number("scale", 0, above=0), ValueError, "larger than 0, found 0"),
        (lambda: check_text("layer", ["X"]), TypeError, r"a text, found list: \['X'\]"),
        (lambda: check_text("layer", " "), ValueError, "not blank"),
        (lambda: check_texts("keys", "X_pca"), TypeError, "`keys` to be a list of texts, found 'X_pca'"),
        (lambda: check_texts("keys", ["a", 1]), TypeError, r"`keys\[1\]` to be a text, found int"),
        (
            lambda: check_texts("keys", {"a": "b" * 100}),
            TypeError,
            "`keys` to be a list of texts, found dict$|found dict\\.",
        ),
        (lambda: check_texts("keys", []), ValueError, "`keys` to name at least 1, found 0"),
        (lambda: check_key_name("key_added", "a/b"), ValueError, "without '/'"),
        (lambda: check_key_name("key_added", "."), ValueError, "not of dots alone"),
        (lambda: check_finite("it", [[1.0, 2.0], [1.0, np.nan]], "Look."), ValueError, r"1 of 2 rows .*row 1.* Look\."),
        (lambda: as_generator("seed"), TypeError, "`rng` to be a whole number"),
    ],
)
def test_bad_values_are_refused(check, error, message):
    with pytest.raises(error, match=message):
        check()


def test_generators_follow_their_seed_and_are_passed_through():
    assert as_generator(5).random() == as_generator(5).random()
    generator = np.random.default_rng(1)
    assert as_generator(generator) is generator
    assert as_generator(None).random() != as_generator(None).random()


def test_seeds():
    assert as_seed(7) == as_seed(np.int64(7)) == 7
    assert as_seed(np.random.default_rng(0)) == as_seed(np.random.default_rng(0))
    generator = np.random.default_rng(0)
    assert as_seed(generator) != as_seed(generator)
    assert as_seed(None) != as_seed(None)
    assert as_seed(2**64 - 1) < 2**63
    assert as_seed(2**33 + 5, bits=32) == 5
    assert as_seed(None, bits=32) < 2**32


@pytest.mark.parametrize(("rng", "error"), [(-1, ValueError), (True, TypeError), ("1", TypeError), (1.5, TypeError)])
def test_seeds_that_cannot_be(rng, error):
    with pytest.raises(error, match="Expected `rng`"):
        as_seed(rng)
