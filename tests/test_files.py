from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scgpt_tools._files import (
    as_path,
    checksum_of,
    placed,
    read_json,
    read_steadily,
    replace_file,
    settle,
    written_aside,
    written_together,
)


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


# Files that belong together -------------------------------------------------------------------------------------------


def save(folder, content: str, names=("one", "two"), **options) -> None:
    with written_together(folder, **options) as aside:
        for name in names:
            (aside / name).write_text(content)


def contents(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def stop_before_moving(monkeypatch) -> None:
    """As if the process was killed after the step in which new files take their place."""
    calls = []

    def settle_once(folder):
        calls.append(folder)
        if len(calls) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("scgpt_tools._files.settle", settle_once)


def test_files_take_their_place_together_and_others_stay(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for content in ("old", "new"):
        save(tmp_path / "folder", content)
        (tmp_path / "folder" / "mine").write_text("mine")
    assert contents(tmp_path / "folder") == {"one": "new", "two": "new", "mine": "mine"}
    assert contents(tmp_path / "folder").keys() == {"one", "two", "mine"}


def test_a_failed_save_leaves_the_old_files_and_nothing_else(tmp_path):
    save(tmp_path, "old")
    with pytest.raises(OSError, match="full"), written_together(tmp_path) as aside:
        (aside / "one").write_text("half")
        raise OSError("full")
    assert contents(tmp_path) == {"one": "old", "two": "old"}


def test_files_of_another_name_can_be_removed_in_the_same_step(tmp_path):
    save(tmp_path, "old", ("one", "other"))
    save(tmp_path, "new", ("one", "two"), instead_of=("one", "other", "never there"))
    assert contents(tmp_path) == {"one": "new", "two": "new"}


def test_who_comes_after_a_kill_finds_the_new_files(tmp_path, monkeypatch):
    save(tmp_path, "old", ("one", "other"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_before_moving(patched)
        save(tmp_path, "new", instead_of=("other",))
    assert (tmp_path / "one").read_text() == "old"
    # As a reader who may not write sees it, then as everybody does.
    assert {
        name: placed(tmp_path, name) and placed(tmp_path, name).read_text() for name in ("one", "two", "other")
    } == {
        "one": "new",
        "two": "new",
        "other": None,
    }
    settle(tmp_path)
    assert contents(tmp_path) == {"one": "new", "two": "new"}


def test_who_saves_after_a_kill_loses_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_before_moving(patched)
        save(tmp_path, "first")
    save(tmp_path, "second", ("two",))
    assert contents(tmp_path) == {"one": "first", "two": "second"}


def test_what_was_replaced_while_it_was_read_is_read_again(tmp_path):
    save(tmp_path, "old")
    seen = []

    def read() -> tuple[str, str]:
        first = (tmp_path / "one").read_text()
        if not seen:
            save(tmp_path, "newer")
        seen.append(first)
        return first, (tmp_path / "two").read_text()

    assert read_steadily(tmp_path, ("one", "two"), read) == ("newer", "newer")
    assert seen == ["old", "newer"]


def test_files_that_never_rest_are_said_to(tmp_path):
    save(tmp_path, "old")
    numbers = iter(range(1000))
    with pytest.raises(OSError, match="to rest while they are read"):
        read_steadily(tmp_path, ("one",), lambda: save(tmp_path, "x" * next(numbers)))


def test_another_writer_may_be_gone_before_it_is_looked_for(tmp_path, monkeypatch):
    rename, refused = Path.rename, []

    def once(self, target):
        if not refused:
            refused.append(target)
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    save(tmp_path, "new")
    assert len(refused) == 1
    assert set(contents(tmp_path).values()) == {"new"}


def test_several_threads_save_to_one_folder(tmp_path):
    def write(number: int) -> None:
        for _ in range(10):
            save(tmp_path, str(number))

    def read() -> tuple[str, ...]:
        return tuple(placed(tmp_path, name).read_text() for name in ("one", "two"))

    save(tmp_path, "0")
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(write, number) for number in range(3)]
        while not all(task.done() for task in done):
            first, second = read_steadily(tmp_path, ("one", "two"), read)
            assert first == second
    for task in done:
        task.result()
    assert set(contents(tmp_path)) == {"one", "two"}
    assert len(set(contents(tmp_path).values())) == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    host = platform.node().replace(".", "-")
    dead, alive = (tmp_path / f".files.{host}.{pid}.0123abcd.partial" for pid in (finished.pid, os.getpid()))
    others = tmp_path / ".files.elsewhere.7.0123abcd.partial"
    foreign = tmp_path / ".mine.partial"
    for folder in (dead, alive, others, foreign):
        folder.mkdir()
        (folder / "one").write_text("half")
    save(tmp_path, "new")
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, others.name, foreign.name, "one", "two"}
    os.utime(others, (0, 0))
    save(tmp_path, "new")
    assert not others.exists()


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b'{"a": 1', "no JSON from line 1, column 8 on"),
        (b"[1]", "one object, found a list"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b'{"a": NaN}', "the number NaN, which JSON does not have"),
        (b'{"a": [-Infinity]}', "the number -Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too many digits"),
    ],
)
def test_files_that_are_no_json_are_refused_in_our_words(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"Expected {path} to hold JSON")


def test_large_files_are_refused_unread(tmp_path):
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than the 64 megabytes"):
        read_json(path)
