from __future__ import annotations

from pathlib import Path

import pytest

from scgpt_tools._files import as_path, checksum_of, replace_file, written_aside


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("folder", "~/run") == tmp_path / "run" == as_path("folder", Path("~/run"))


@pytest.mark.parametrize("value", ["", "  ", "a\0b", b"bytes"])
def test_texts_that_are_no_paths_are_refused(value):
    with pytest.raises((TypeError, ValueError), match="Expected `folder` to be"):
        as_path("folder", value)


@pytest.mark.parametrize("value", [None, 3, ["run"]])
def test_other_kinds_are_refused(value):
    with pytest.raises(TypeError, match="Expected `folder` to be a path, found"):
        as_path("folder", value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_aside(path) as aside:
        aside.write_text("half")
        raise OSError("full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_takes_its_place(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda aside: aside.write_text("new"))
    assert path.read_text() == "new"
    assert checksum_of(path) == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
    assert list(tmp_path.iterdir()) == [path]
