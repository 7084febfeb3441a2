"""scGPT's ``GeneVocab``: how it is made, and what it answers.

Each row of a case says in ``make`` how the original was built, and after ``then`` which of its mutating methods were
called.  Ours never changes, so such a call becomes a new vocabulary; the default for unknown tokens, which the original
keeps as hidden state, is a number beside it.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from scgpt_tools.vocabulary import PAD, Vocabulary

Default = int | None
State = tuple[Vocabulary, Default]


def run(folder: Path, case: dict[str, Any]) -> None:
    for row in case["table"]:
        if row.get("expect_error"):
            with pytest.raises((ValueError, KeyError, TypeError)):
                check(row, made(row))
        else:
            check(row, made(row))


def check(row: dict[str, Any], state: State) -> None:
    vocabulary, default = state
    if "tokens" in row:
        assert list(vocabulary.tokens) == row["tokens"], row["make"]
        assert [vocabulary[token] for token in row["tokens"]] == list(range(len(row["tokens"])))
    if "length" in row:
        assert len(vocabulary) == row["length"]
    if "default_index" in row:
        assert default == row["default_index"], row["make"]
    if "lookup_unknown" in row:
        assert vocabulary.ids(["no such token"], unknown=default).tolist() == [row["lookup_unknown"]]
    if row.get("default_index", 0) is None:
        with pytest.raises(KeyError):
            vocabulary.ids(["no such token"], unknown=default)
    if "lookup" in row:
        assert vocabulary.ids(row["lookup"]["query"], unknown=default).tolist() == row["lookup"]["ids"]
    read_again(vocabulary)


def read_again(vocabulary: Vocabulary) -> None:
    """Whatever was built survives the original's file format."""
    with TemporaryDirectory() as folder:
        vocabulary.save(Path(folder) / "vocab.json")
        assert Vocabulary.from_file(Path(folder) / "vocab.json") == vocabulary


def made(row: dict[str, Any]) -> State:
    maker, *steps = re.split(r"\s+then\s+|(?<=\))\s*,\s*(?:and\s+)?", row["make"])
    vocabulary = construct(maker, row)
    state = vocabulary, default_of(vocabulary, row.get("default_token", PAD))
    for step in steps:
        state = changed(state, step)
    return state


def construct(maker: str, row: dict[str, Any]) -> Vocabulary:
    method = maker.partition("(")[0].removeprefix("GeneVocab").removeprefix(".")
    if method in ("from_dict", "from_file"):
        return from_mapping(row.get("dict") or row["file"], as_file=method == "from_file")
    assert method == "", f"no runner for {maker!r}"
    genes = row["genes"] if "genes" in row else row["list"]
    return Vocabulary.from_genes(
        genes, specials=row.get("specials") or (), special_first=row.get("special_first", True)
    )


def from_mapping(mapping: dict[str, int], *, as_file: bool) -> Vocabulary:
    if not as_file:
        return Vocabulary.from_mapping(mapping)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(mapping))
        return Vocabulary.from_file(path)


def default_of(vocabulary: Vocabulary, token: str) -> Default:
    return vocabulary[token] if token in vocabulary else None


def changed(state: State, step: str) -> State:
    """One call such as ``append_token("X")`` or ``insert_token("X", 2)``."""
    vocabulary, default = state
    call = re.fullmatch(r"\.?(\w+)\((.*)\)", step.strip())
    assert call is not None, f"no runner for the step {step!r}"
    arguments = ast.literal_eval(f"({call[2]},)") if call[2] else ()
    match call[1], arguments:
        case "append_token", (token,):
            return Vocabulary((*vocabulary.tokens, token)), default
        case "insert_token", (token, place):
            # The default of the original is an index, not a token: it stays while tokens behind the place move.
            return Vocabulary((*vocabulary.tokens[:place], token, *vocabulary.tokens[place:])), default
        case "set_default_index", (index,):
            return vocabulary, index
        case "set_default_token", (token,):
            return vocabulary, vocabulary[token]
    raise AssertionError(f"no runner for the step {step!r}")


RUNNERS = {"GeneVocab": run}
