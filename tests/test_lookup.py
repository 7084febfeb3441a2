from __future__ import annotations

import pytest

from scgpt_tools._lookup import absent, lookup
from scgpt_tools._optional import optional

TABLE = {"expression": 1, "classifier": 2}


def test_lookup_returns_the_entry():
    assert lookup(TABLE, "classifier", "head") == 2


def test_lookup_names_what_exists_and_the_nearest_spelling():
    with pytest.raises(ValueError, match=r"no head 'expresion'\. Did you mean 'expression'\?.*'classifier'"):
        lookup(TABLE, "expresion", "head")


def test_what_is_no_key_at_all_is_refused_like_an_unknown_one():
    with pytest.raises(ValueError, match=r"no head \['expression'\]"):
        lookup(TABLE, ["expression"], "head")


def test_lookup_raises_the_error_asked_for():
    with pytest.raises(KeyError, match="no layer 'counts'"):
        lookup({}, "counts", "layer", error=KeyError)


def test_a_long_listing_is_cut_and_counted():
    message = absent("x", [f"gene{i}" for i in range(25)], "gene")
    assert "'gene19', ... (5 more)." in message
    assert "gene20" not in message


def test_an_empty_table_says_so():
    assert absent("x", [], "layer") == "Found no layer 'x'. There is none."


def test_optional_returns_the_module():
    assert optional("json.decoder", extra="train").__name__ == "json.decoder"


def test_optional_prints_the_line_that_installs():
    with pytest.raises(ImportError, match="extra 'train' of scgpt-tools"):
        optional("surely_absent.part", extra="train")


def test_optional_leaves_errors_of_the_package_itself(tmp_path, monkeypatch):
    (tmp_path / "halfway_installed.py").write_text("import surely_absent")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'surely_absent'"):
        optional("halfway_installed", extra="train")
