from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest

from scgpt_tools.vocabulary import SPECIALS, Vocabulary

GENES = ["TP53", "ACTB", "CD3D", "ACTB", "GAPDH", "MS4A1"]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(["B", "A", "<pad>", "<cls>"])


def test_ids_follow_the_order_given(vocabulary):
    assert [vocabulary[token] for token in ("B", "A", "<pad>", "<cls>")] == [0, 1, 2, 3]
    assert (vocabulary.pad_id, vocabulary.cls_id) == (2, 3)
    assert list(vocabulary) == list(vocabulary.tokens) == ["B", "A", "<pad>", "<cls>"]
    assert "A" in vocabulary
    assert "a" not in vocabulary


def test_order_of_the_file_does_not_matter(tmp_path, vocabulary):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"<cls>": 3, "A": 1, "<pad>": 2, "B": 0}))
    assert Vocabulary.from_file(path) == vocabulary


def test_save_and_read_keep_everything(tmp_path):
    before = Vocabulary(["gène", 'quote"', "line\nbreak", "X", "C"], pad="X", cls="C")
    before.save(tmp_path / "vocab.json")
    after = Vocabulary.from_file(str(tmp_path / "vocab.json"), pad="X", cls="C")
    assert after == before
    assert after.checksum == before.checksum
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))["gène"] == 0


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"A": 0, "B": 2}, "0 to 1, each once, found 2 for 'B'"),
        ({"A": 1, "B": 1}, "found 1 for 'B', which 'A' has too"),
        ({"A": -1, "B": 0}, "found -1 for 'A'"),
        ({"A": 0.0}, "whole numbers as ids, found 0.0 for 'A'"),
        ({"A": "0"}, "whole numbers as ids, found '0' for 'A'"),
        ({"A": False}, "whole numbers as ids, found False for 'A'"),
    ],
)
def test_ids_with_holes_are_refused(mapping, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_mapping(mapping)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE html><html>", "to hold JSON"),
        ('["A", "B"]', "one object, token to id, found a list"),
        ('{"": 0}', "to have a name"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path, content, message):
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(path)


def test_binary_content_is_refused(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(ValueError, match="to hold JSON"):
        Vocabulary.from_file(path)


def test_pickles_are_never_read(tmp_path):
    path = tmp_path / "vocab.pkl"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match="as JSON, found 'vocab.pkl'"):
        Vocabulary.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        Vocabulary.from_file(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (["A", "B", "A"], ValueError, "every token once, found 1 of them again: 'A'"),
        (["A", ""], ValueError, "empty string"),
        (["A", 1], TypeError, "found 1 of type int"),
        (["A", None], TypeError, "found None of type NoneType"),
        ("ABC", TypeError, "one string, 'ABC'"),
    ],
)
def test_bad_tokens_are_refused(tokens, error, message):
    with pytest.raises(error, match=message):
        Vocabulary(tokens)


def test_genes_are_ordered_by_frequency_then_code_point():
    made = Vocabulary.from_genes(GENES, specials=())
    assert made.tokens == ("ACTB", "CD3D", "GAPDH", "MS4A1", "TP53")
    assert Vocabulary.from_genes(["b", "a", "B", "b"], specials=()).tokens == ("b", "B", "a")


@pytest.mark.parametrize("first", [True, False])
def test_specials_keep_their_order_on_either_side(first):
    made = Vocabulary.from_genes([*GENES, "<cls>"], special_first=first)
    genes = ("ACTB", "CD3D", "GAPDH", "MS4A1", "TP53")
    assert made.tokens == ((*SPECIALS, *genes) if first else (*genes, *SPECIALS))


def test_the_order_of_a_gene_list_does_not_matter():
    assert Vocabulary.from_genes(["A", "C", "B"]) == Vocabulary.from_genes(["B", "A", "C"])


def test_extending_appends_only_what_is_absent(vocabulary):
    longer = vocabulary.extended(["A", "C", "D", "C"])
    assert longer.tokens == (*vocabulary.tokens, "C", "D")
    assert vocabulary.tokens == ("B", "A", "<pad>", "<cls>")
    assert vocabulary.extended(["A"]) is vocabulary


def test_missing_specials_are_appended_in_the_originals_order(vocabulary):
    assert Vocabulary(["A"]).with_specials().tokens == ("A", "<pad>", "<cls>", "<eoc>")
    assert vocabulary.with_specials().tokens == (*vocabulary.tokens, "<eoc>")
    assert Vocabulary(["A"], pad="P", cls="C").with_specials().tokens == ("A", "P", "C", "<eoc>")


def test_no_padding_token_is_an_error_not_a_guess():
    with pytest.raises(ValueError, match=r"to hold '<pad>', found none. `with_specials\(\)`"):
        _ = Vocabulary(["A"]).pad_id


@pytest.mark.parametrize(
    "names",
    [
        ["A", "nope", "B", "A"],
        np.array(["A", "nope", "B", "A"]),
        pd.Index(["A", "nope", "B", "A"]),
        pd.Series(["A", "nope", "B", "A"], dtype="category"),
        pd.Series(["A", None, "B", "A"], dtype="string"),
        pd.Series(["A", np.nan, "B", "A"], dtype=object),
        (name for name in ["A", "nope", "B", "A"]),
    ],
)
def test_ids_of_any_collection(vocabulary, names):
    found = vocabulary.ids(names)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [1, -1, 0, 1])


def test_unknown_names_get_the_asked_id_or_an_error(vocabulary):
    np.testing.assert_array_equal(vocabulary.ids(["A", "x"], unknown=vocabulary.pad_id), [1, 2])
    with pytest.raises(KeyError, match=r"found 1 others: 'x'"):
        vocabulary.ids(["A", "x"], unknown=None)
    with pytest.raises(KeyError, match="no token 'x'"):
        vocabulary["x"]
    assert vocabulary.ids([]).shape == (0,)


def test_one_string_is_not_taken_for_letters(vocabulary):
    for call in (vocabulary.ids, vocabulary.extended, Vocabulary.from_genes):
        with pytest.raises(TypeError, match="one string, 'AB'"):
            call("AB")


def test_specials_are_no_genes():
    made = Vocabulary(["A", "<pad>", "cell", "<mask>", "<x"], cls="cell")
    assert made.specials == ("<pad>", "cell", "<mask>")


def test_it_does_not_change(vocabulary):
    with pytest.raises(AttributeError, match="does not change"):
        vocabulary.tokens = ("A",)
    with pytest.raises(AttributeError, match="does not change"):
        vocabulary.anything = 1


def test_equal_content_is_equal_and_hashes_alike(vocabulary):
    twin = Vocabulary(np.array(vocabulary.tokens))
    assert twin == vocabulary
    assert hash(twin) == hash(vocabulary)
    assert {twin, vocabulary} == {vocabulary}
    assert type(twin.tokens[0]) is str
    assert vocabulary != Vocabulary(vocabulary.tokens, cls="A")
    assert vocabulary != list(vocabulary.tokens)


def test_checksum_sees_order_and_roles(vocabulary):
    checksums = {
        vocabulary.checksum,
        Vocabulary(vocabulary.tokens[::-1]).checksum,
        Vocabulary(vocabulary.tokens, pad="A").checksum,
        Vocabulary(vocabulary.tokens[:-1]).checksum,
        Vocabulary(["BA", *vocabulary.tokens[2:]]).checksum,
    }
    assert len(checksums) == 5
    assert Vocabulary(list(vocabulary.tokens)).checksum == vocabulary.checksum


def test_copies_and_pickles_are_equal(vocabulary):
    _ = vocabulary.checksum, vocabulary.specials
    for twin in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert twin == vocabulary
        assert twin["A"] == 1


def test_repr_says_size_and_first_tokens(vocabulary):
    assert repr(vocabulary) == "Vocabulary(4 tokens: 'B', 'A', '<pad>', ...)"


def test_a_full_size_vocabulary_is_in_the_order_of_its_ids(tmp_path):
    tokens = [f"GENE{number}" for number in range(60_694)] + list(SPECIALS)
    order = np.random.default_rng(0).permutation(len(tokens))
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({tokens[index]: int(index) for index in order}))
    assert Vocabulary.from_file(path).tokens == tuple(tokens)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Vocabulary(["A", "B"]).save("~/vocab.json")
    assert Vocabulary.from_file("~/vocab.json").tokens == ("A", "B")
    assert (tmp_path / "vocab.json").is_file()


def test_tokens_can_be_written():
    with pytest.raises(ValueError, match="letters that files can keep, found half a letter"):
        Vocabulary(["A", "\ud800"])
