from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from scgpt_tools.config import from_dict, from_yaml, to_dict, to_yaml


@dataclass(frozen=True)
class Part:
    dim: int
    norm: Literal["post", "pre"] = "post"
    dropout: float = 0.0


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part
    other: Part | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    pair: tuple[str, float] = ("x", 1.0)
    ratio: float | tuple[float, ...] = 0.4
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    flag: bool | None = None
    free: Any = None


FULL = Whole(
    name="scgpt",
    part=Part(dim=8, norm="pre", dropout=0.1),
    other=Part(dim=4),
    parts={"gene": Part(dim=2)},
    sizes=(1, 2),
    pair=("y", 2.0),
    ratio=(0.25, 0.5),
    folder=Path("weights"),
    notes=["a"],
    flag=True,
    free={"k": 1},
)
PLAIN = {"name": "scgpt", "part": {"dim": 8}}


@pytest.mark.parametrize("config", [FULL, Whole(name="small", part=Part(dim=1))])
def test_round_trip(config, tmp_path):
    assert from_dict(Whole, to_dict(config)) == config
    to_yaml(config, tmp_path / "run.yaml")
    assert from_yaml(Whole, tmp_path / "run.yaml") == config


def test_defaults_fill_what_is_absent():
    assert from_dict(Whole, PLAIN) == Whole(name="scgpt", part=Part(dim=8))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"nam": 1}, ValueError, "no field of Whole named 'nam'. Did you mean 'name'"),
        ({"part": {}}, ValueError, r"Part to be given \['dim'\]"),
        ({"part": {"dim": 8, "nrm": "pre"}}, ValueError, "no field of Part named 'nrm'. Did you mean 'norm'"),
        ({"part": {"dim": 8, "norm": "both"}}, ValueError, "`part.norm` to be one of .* found 'both'"),
        ({"part": {"dim": 8.5}}, TypeError, "`part.dim` to be int, found 8.5"),
        ({"part": {"dim": True}}, TypeError, "`part.dim` to be int, found True"),
        ({"part": {"dim": 8, "dropout": "a lot"}}, TypeError, "`part.dropout` to be float"),
        ({"part": 3}, TypeError, "`part` to be Part, found 3"),
        ({"other": 3}, TypeError, "`other` to be Part, found 3"),
        ({"parts": {"gene": {"dim": "x"}}}, TypeError, "`parts.gene.dim` to be int"),
        ({"sizes": "12"}, TypeError, "`sizes` to be tuple"),
        ({"sizes": [1, "x"]}, TypeError, r"`sizes\[1\]` to be int"),
        ({"pair": ["x"]}, ValueError, "`pair` to have 2 entries, found 1"),
        ({"notes": [1]}, TypeError, r"`notes\[0\]` to be str"),
        ({"ratio": "x"}, TypeError, "`ratio` to be float | tuple"),
        ({"flag": "yes"}, TypeError, "`flag` to be bool"),
        ({"name": None}, TypeError, "`name` to be str, found None"),
    ],
)
def test_bad_values_are_refused_with_their_place(change, error, message):
    with pytest.raises(error, match=message):
        from_dict(Whole, {**PLAIN, **change})


def test_only_a_mapping_is_a_configuration():
    with pytest.raises(TypeError, match="`Part` to be a mapping"):
        from_dict(Part, [("dim", 8)])


def test_integers_pass_for_floats_and_become_floats():
    dropout = from_dict(Part, {"dim": 1, "dropout": 1}).dropout
    assert isinstance(dropout, float)


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("-.5E3", -500.0), ("1.0e-4", 1e-4), ("0.25", 0.25)])
def test_yaml_numbers_may_be_written_as_in_python(tmp_path, text, number):
    (tmp_path / "part.yaml").write_text(f"dim: 8\ndropout: {text}\n")
    assert from_yaml(Part, tmp_path / "part.yaml").dropout == number


def test_an_empty_file_is_an_empty_configuration(tmp_path):
    (tmp_path / "part.yaml").write_text("")
    with pytest.raises(ValueError, match=r"Part to be given \['dim'\]"):
        from_yaml(Part, tmp_path / "part.yaml")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_numbers_are_finite(value):
    with pytest.raises(ValueError, match="`dropout` to be a finite number"):
        from_dict(Part, {"dim": 8, "dropout": value})


def test_whole_numbers_have_64_bits():
    with pytest.raises(ValueError, match="`dim` to be a number of 64 bits, found 10000"):
        from_dict(Part, {"dim": 10**30})
    with pytest.raises(ValueError, match="`dim` to be a number of 64 bits, found a int"):
        from_dict(Part, {"dim": 10**5000})


def test_long_values_are_shown_in_part():
    with pytest.raises(TypeError, match="`dim` to be int, found") as caught:
        from_dict(Part, {"dim": "x" * 10**6})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dim: [1", "a fault at line 1, column 8"),
        ("dim: *nothing", "a fault at line 1, column 6: found undefined alias"),
        ("dim: !!python/object/apply:os.system ['true']", "a fault at line 1, column 6: could not determine a constr"),
        ("dim: 8\ndim: 9", "'dim' twice"),
        ("dim: \x00", "characters that YAML does not allow"),
        ("dim: " + "[" * 100_000, "nested too deeply"),
        ("dim: .nan", "`dim` to be int"),
        ("dim: 8\ndropout: .inf", "`dropout` to be a finite number"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
            f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
        ), "more than 100,000 values, those repeated by aliases included"),
        ("a: &a {k: 1}\n" + "".join(
            f"{one}: &{one}\n  <<: [{', '.join([f'*{before}'] * 9)}]\n"
            for before, one in zip("abcdefgh", "bcdefghi", strict=True)
        ), "more than 100,000 values, those repeated by aliases included"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_files_that_are_no_configuration_are_refused_in_our_words(tmp_path, text, message):
    (tmp_path / "part.yaml").write_text(text)
    with pytest.raises((TypeError, ValueError), match=message):
        from_yaml(Part, tmp_path / "part.yaml")


def test_a_few_aliases_are_read(tmp_path):
    (tmp_path / "part.yaml").write_text("dim: &size 8\ndropout: *size\n")
    assert from_yaml(Part, tmp_path / "part.yaml") == Part(dim=8, dropout=8.0)


def test_large_files_are_refused_unread(tmp_path):
    with (tmp_path / "part.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="bytes, more than the 1,048,576 that a configuration may have"):
        from_yaml(Part, tmp_path / "part.yaml")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    to_yaml(Part(dim=8), "~/part.yaml")
    assert from_yaml(Part, "~/part.yaml") == Part(dim=8) == from_yaml(Part, tmp_path / "part.yaml")


def test_a_file_that_is_absent_is_named():
    with pytest.raises(FileNotFoundError, match="Expected absent.yaml to hold YAML, found no such file"):
        from_yaml(dict, Path("absent.yaml"))
