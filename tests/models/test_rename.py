"""Names of tensors: every one is used, dropped with a reason, or an error."""

from __future__ import annotations

import pytest
import torch

from scgpt_tools.models.formats.rename import Rule, read_names, write_names
from scgpt_tools.models.formats.scgpt import ALL_NAMES, ATTENTION_NAMES, OTHER_NAMES, from_scgpt, to_scgpt

RULES = (
    Rule("stem.", "embedder."),
    Rule("layers.{i}.qkv.weight", ("blocks.{i}.q.weight", "blocks.{i}.k.weight", "blocks.{i}.v.weight")),
    Rule("layers.{i}.out.", "blocks.{i}.out."),
    Rule("layers.{i}.scale", "blocks.{i}.scale"),
    Rule("loss.", None, "a loss object"),
)


def weights(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((6, 2), float(place)) for place, name in enumerate(names)}


THEIRS = weights("stem.a.weight", "stem.b", "layers.0.out.bias", "layers.11.out.bias", "layers.11.scale")


def test_a_dot_at_the_end_stands_for_all_that_follows():
    ours, report = read_names(THEIRS, RULES)
    assert list(ours) == [
        "embedder.a.weight", "embedder.b", "blocks.0.out.bias", "blocks.11.out.bias", "blocks.11.scale",
    ]  # fmt: skip
    assert all(torch.equal(*pair) for pair in zip(ours.values(), THEIRS.values(), strict=True))
    assert report.used["stem.b"] == ("embedder.b",)
    assert not report.dropped


def test_there_and_back():
    assert write_names(read_names(THEIRS, RULES)[0], RULES).keys() == THEIRS.keys()


def test_stacked_tensors_are_split_in_their_order_and_stacked_again():
    stacked = torch.arange(12.0).view(6, 2)
    ours, report = read_names({"layers.3.qkv.weight": stacked}, RULES)
    names = [f"blocks.3.{part}.weight" for part in "qkv"]
    assert report.used == {"layers.3.qkv.weight": tuple(names)}
    for place, name in enumerate(names):
        assert torch.equal(ours[name], stacked[2 * place : 2 * place + 2])
    shuffled = {name: ours[name] for name in reversed(names)}
    assert torch.equal(write_names(shuffled, RULES)["layers.3.qkv.weight"], stacked)


def test_split_tensors_are_views():
    stacked = torch.zeros(6, 2)
    ours, _ = read_names({"layers.0.qkv.weight": stacked}, RULES)
    stacked += 1
    assert all(tensor.eq(1).all() for tensor in ours.values())


@pytest.mark.parametrize("tensor", [torch.zeros(7, 2), torch.zeros(2, 2), torch.tensor(1.0)], ids=["7", "2", "scalar"])
def test_a_stack_that_does_not_divide_is_refused(tensor):
    with pytest.raises(ValueError, match=r"'layers\.0\.qkv\.weight' to stack 3 tensors, found the shape"):
        read_names({"layers.0.qkv.weight": tensor}, RULES)


def test_part_of_a_stack_is_refused():
    with pytest.raises(ValueError, match=r"Expected 3 tensors for 'layers\.0\.qkv\.weight', found 2"):
        write_names(weights("blocks.0.q.weight", "blocks.0.v.weight"), RULES)


def test_dropped_with_the_reason():
    ours, report = read_names(weights("loss.weight", "stem.b"), RULES)
    assert list(ours) == ["embedder.b"]
    assert report.dropped == {"loss.weight": "a loss object"}
    assert "left behind: loss.weight (1 tensors: a loss object)." in str(report)


@pytest.mark.parametrize(
    "name", ["stems.b", "stem", "layers.x.scale", "layers.1.scale.more", "a.stem.b", "layers..scale"]
)
def test_unknown_names_are_an_error(name):
    with pytest.raises(ValueError, match="1 that none of its parts takes"):
        read_names(THEIRS | weights(name), RULES)


def test_many_unknown_names_are_counted():
    names = [f"other.{number}" for number in range(9)]
    with pytest.raises(ValueError, match=r"found 9 .*other\.0, .*other\.5, \.\.\."):
        read_names(weights(*names), RULES)


def test_unknown_names_of_ours_are_an_error():
    with pytest.raises(ValueError, match=r"no name for 1 tensors: blocks\.0\.bias"):
        write_names(weights("blocks.0.bias"), RULES)


def test_two_spellings_of_one_tensor_are_an_error():
    with pytest.raises(ValueError, match="one spelling of each tensor, found 'root.b' beside 'stem.b'"):
        read_names(weights("stem.b", "root.b"), (*RULES, Rule("root.", "embedder.")))


@pytest.mark.parametrize("unknown", [{}, {"other": torch.zeros(1)}], ids=["known", "unknown"])
def test_module_prefix_of_parallel_training_is_taken_off(unknown):
    theirs = {f"module.{key}": tensor for key, tensor in (THEIRS | unknown).items()}
    ours, _ = read_names(theirs, RULES, leave_unknown=True)
    assert ours.keys() == read_names(THEIRS, RULES)[0].keys() | unknown.keys()


def test_names_with_and_without_module_are_refused():
    with pytest.raises(ValueError, match="'stem.b' more than once, with and without 'module.'"):
        read_names(weights("stem.b", "module.stem.b"), RULES)


# scGPT's dialect ------------------------------------------------------------------------------------------------------


def test_every_rule_of_the_dialect_is_used_or_gives_a_reason():
    for rule in ALL_NAMES:
        assert rule.ours is not None or rule.reason
        name = rule.theirs.replace("{i}", "4") + ("weight" if rule.theirs.endswith(".") else "")
        found = [other for other in ALL_NAMES if other.read(name) is not None]
        assert found[0] == rule, f"{name} is taken by {found[0]}"


@pytest.mark.parametrize("spelling", ATTENTION_NAMES)
def test_spellings_are_read_and_written(spelling):
    theirs = {name: torch.randn(6) for name in _attention(spelling)}
    ours, _ = from_scgpt(theirs)
    assert set(ours) == {
        f"encoder.blocks.0.attention.{part}.{kind}"
        for part in ("query", "key", "value", "out")
        for kind in ("weight", "bias")
    }
    for other in ATTENTION_NAMES:
        written = to_scgpt(ours, other)
        assert list(written) == _attention(other)
        assert all(torch.equal(a, b) for a, b in zip(written.values(), theirs.values(), strict=True))


def _attention(spelling: str) -> list[str]:
    qkv, out = {
        "torch": ("in_proj_", "out_proj."),
        "fused": ("Wqkv.", "out_proj."),
        "wrapped": ("_impl.Wqkv.", "_impl.out_proj."),
    }[spelling]
    start = "transformer_encoder.layers.0.self_attn."
    return [f"{start}{part}{kind}" for part in (qkv, out) for kind in ("weight", "bias")]


def test_two_spellings_of_attention_in_one_file_are_refused():
    both = {name: torch.randn(6) for spelling in ("torch", "fused") for name in _attention(spelling)}
    with pytest.raises(ValueError, match="one spelling"):
        from_scgpt(both)


def test_an_unknown_spelling_is_refused():
    with pytest.raises((KeyError, ValueError), match="fused"):
        to_scgpt({}, "flash")


def test_zero_probabilities_of_both_decoders():
    """The affine decoder keeps its own under another name, and the original wants a copy that it never reads."""
    names = ["heads.expression.nonzero.0.weight", "heads.expression.slope.0.weight"]
    affine = to_scgpt(weights(*names))
    assert set(affine) == {
        f"decoder.{part}" for part in ("coeff_decoder.fc.0.weight", "coeff_decoder.zero_logit.0.weight",
                                       "bias_decoder.zero_logit.0.weight")
    }  # fmt: skip
    plain = to_scgpt(weights(names[0], "heads.expression.value.0.weight"))
    assert set(plain) == {"decoder.zero_logit.0.weight", "decoder.fc.0.weight"}
    ours, report = from_scgpt(affine)
    assert set(ours) == set(names)
    assert "computes nowhere" in report.dropped["decoder.bias_decoder.zero_logit.0.weight"]


@pytest.mark.parametrize(("style", "name"), [("table", "enc_norm"), ("second", "norm")])
def test_the_norm_of_values_has_two_names(style, name):
    ours = weights(f"embedder.values.{style}.weight", "embedder.values.norm.weight")
    assert f"value_encoder.{name}.weight" in to_scgpt(ours)
    assert from_scgpt(to_scgpt(ours))[0].keys() == ours.keys()


def test_no_name_of_ours_has_two_foreign_ones_but_where_a_test_says_so():
    ours = [rule.ours for rule in OTHER_NAMES if rule.ours is not None]
    twice = {name for name in ours if ours.count(name) > 1}
    assert twice == {"embedder.values.norm.", "heads.expression.nonzero."}
