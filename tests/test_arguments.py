"""Former names of arguments."""

from __future__ import annotations

import inspect

import pytest

from scgpt_tools._arguments import check_arguments, renamed


@renamed(label="label_key", seed="rng")
def named(table: object, label_key: str | None = None, *, rng: int = 0) -> tuple[str | None, int]:
    check_arguments(named, locals())
    return label_key, rng


def test_a_former_name_is_taken_with_a_warning_at_the_call():
    with pytest.warns(FutureWarning, match="Expected `label_key`, found its former name `label`") as seen:
        assert named(None, label="cell_type") == ("cell_type", 0)  # type: ignore[call-arg]
    assert seen[0].filename == __file__


def test_the_names_of_today_pass_in_silence():
    assert named(None, "cell_type", rng=3) == ("cell_type", 3)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((None,), {"label_key": "a", "label": "b"}), ((None, "a"), {"label": "b"})]
)
def test_both_names_are_refused(args, kwargs):
    with pytest.raises(TypeError, match="Expected `label_key` alone, found its former name `label`"):
        named(*args, **kwargs)


def test_the_signature_is_that_of_the_function_and_its_arguments_are_checked():
    assert list(inspect.signature(named).parameters) == ["table", "label_key", "rng"]
    with (
        pytest.warns(FutureWarning, match="`rng`"),
        pytest.raises(ValueError, match="Expected `rng` to be at least 0"),
    ):
        named(None, seed=-1)  # type: ignore[call-arg]
