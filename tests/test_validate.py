from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools._validate import as_generator, check_choice, check_fraction, check_integer, check_key, check_type


def test_good_values_come_back():
    assert check_choice("pooling", "cls", ("cls", "mean")) == "cls"
    assert check_type("model", "name", (str, dict)) == "name"
    assert check_integer("batch_size", np.int64(3)) == 3
    assert check_fraction("ratio", 1) == 1.0
    assert check_key({"counts": 0}, "counts", "layers") == "counts"


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: check_choice("pooling", "max", ("cls", "mean")), ValueError, "`pooling` to be one of 'cls', 'mean'"),
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
        (lambda: as_generator("seed"), TypeError, "`rng` to be a seed"),
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
