"""Splits of conditions: GEARS' draws, and ours that depend on names only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scgpt_tools.data.cell_splits import rank
from scgpt_tools.screens.splits import (
    GEARS_METHODS,
    SplitOptions,
    condition_hash,
    custom_split,
    seen_groups,
    split_conditions,
)
from scgpt_tools.screens.splits_stable import METHODS, first_share
from scgpt_tools.tokens.perturbations import condition_genes

GENES = [f"G{i:02d}" for i in range(30)]
SINGLES = [f"{gene}+ctrl" for gene in GENES[:24]]
DOUBLES = [f"{GENES[i]}+{GENES[(i * 7 + 5) % 30]}" for i in range(28)]
CONDITIONS = ["ctrl", *SINGLES, *DOUBLES]
TRIPLES = ["G00+G01+G02", "G03+G04+G05", "G06+G07+G08"]


def genes_of(conditions) -> set[str]:
    return {gene for condition in conditions for gene in condition_genes(condition)}


def _every_split():
    for draw, methods in (("gears", GEARS_METHODS), ("stable", METHODS)):
        for method in methods:
            yield pytest.param(draw, method, id=f"{draw}-{method}")


EVERY_SPLIT = list(_every_split())


def split_of(draw, method, conditions=None, **options):
    if conditions is None:
        conditions = ["ctrl", *SINGLES] if method == "simulation_single" else CONDITIONS
    return split_conditions(conditions, method, draw=draw, options=SplitOptions(**options))


@pytest.mark.parametrize(("draw", "method"), EVERY_SPLIT)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_condition_has_one_place(draw, method, seed):
    split = split_of(draw, method, rng=seed)
    conditions = ["ctrl", *SINGLES] if method == "simulation_single" else CONDITIONS
    assert sorted([*split.train, *split.val, *split.test, *split.dropped]) == sorted(conditions)
    assert ("ctrl" in split.train) == (method != "no_split")
    if method not in ("no_test",):
        assert split.test


@pytest.mark.parametrize(("draw", "method"), EVERY_SPLIT)
def test_the_seed_decides(draw, method):
    assert split_of(draw, method, rng=5) == split_of(draw, method, rng=5)
    if method != "no_split":
        assert any(split_of(draw, method, rng=5) != split_of(draw, method, rng=seed) for seed in (6, 7))


@pytest.mark.parametrize(("draw", "method"), EVERY_SPLIT)
def test_global_random_state_is_not_touched(draw, method):
    before = np.random.get_state()[1].copy()
    split_of(draw, method)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("method", METHODS)
def test_stable_splits_do_not_depend_on_order_or_spelling(method):
    conditions = ["ctrl", *SINGLES] if method == "simulation_single" else CONDITIONS
    one = split_of("stable", method, conditions)
    other = split_of("stable", method, [_other_spelling(condition) for condition in reversed(conditions)])
    for part in ("train", "val", "test"):
        assert one.digest(part) == other.digest(part)


def _other_spelling(condition: str) -> str:
    return "+".join(reversed(condition.split("+")))


@pytest.mark.parametrize("draw", ["gears", "stable"])
def test_simulation_never_trains_on_a_held_out_gene(draw):
    split = split_of(draw, "simulation")
    groups = split.subgroups["test"]
    unseen = genes_of(groups["unseen_single"]) | genes_of(groups["combo_seen0"])
    assert unseen
    assert unseen.isdisjoint(genes_of([*split.train, *split.val]))


@pytest.mark.parametrize("method", ["simulation", "single", "combo_seen0", "combo_seen1", "combo_seen2"])
def test_stable_subgroups_say_what_training_saw(method):
    split = split_of("stable", method, [*CONDITIONS, *TRIPLES], test_fraction=0.3)
    seen = genes_of(split.train)
    for part in ("val", "test"):
        for group, members in split.subgroups[part].items():
            for condition in members:
                n_seen = sum(gene in seen for gene in condition_genes(condition))
                assert group.endswith("single") or group.endswith(f"seen{n_seen}")
    assert sorted(member for own in split.subgroups["test"].values() for member in own) == sorted(split.test)


def test_stable_combo_seen1_holds_out_no_unseen_pair():
    split = split_of("stable", "combo_seen1", test_fraction=0.5)
    tested = genes_of(condition for condition in split.test if condition in SINGLES)
    doubles = [condition for condition in split.test if condition in DOUBLES]
    assert doubles
    assert all(len(tested.intersection(condition_genes(condition))) == 1 for condition in doubles)


def test_gears_combo_seen1_keeps_its_fault():
    """Doubles of two held-out genes are tested there, although no gene of them was seen."""
    named = tuple(condition_genes(DOUBLES[0]))
    assert DOUBLES[0] in split_of("gears", "combo_seen1", test_genes=named).test
    assert DOUBLES[0] in split_of("stable", "combo_seen1", test_genes=named).dropped


def test_stable_sets_have_the_size_asked_for():
    split = split_of("stable", "random", test_fraction=0.25, val_fraction=0.5)
    n = len(CONDITIONS) - 1
    assert len(split.test) == round(n * 0.25)
    assert len(split.val) == round((n - len(split.test)) * 0.5)


def test_stable_splits_move_little_when_a_condition_goes():
    full = split_of("stable", "random", test_fraction=0.5)
    gone = split_of("stable", "random", [c for c in CONDITIONS if c != full.test[0]], test_fraction=0.5)
    assert len(set(full.test) ^ set(gone.test)) <= 3


def test_triples_need_our_own_draw():
    with pytest.raises(ValueError, match="draw='stable'"):
        split_of("gears", "simulation", [*CONDITIONS, *TRIPLES])
    split = split_of("stable", "simulation", [*CONDITIONS, *TRIPLES], train_genes=0.5)
    assert any(group.startswith("combo3_seen") for group in split.subgroups["test"])


@pytest.mark.parametrize("draw", ["gears", "stable"])
def test_named_genes_are_held_out(draw):
    split = split_of(draw, "simulation", test_genes=("G03", "G10"))
    assert not {"G03", "G10"} & genes_of([*split.train, *split.val])
    assert {"G03+ctrl", "G10+ctrl"} <= set(split.test)


@pytest.mark.parametrize("draw", ["gears", "stable"])
def test_named_combinations_are_held_out(draw):
    named = (DOUBLES[3], _other_spelling(DOUBLES[5]) if draw == "stable" else DOUBLES[5])
    split = split_of(draw, "combo_seen2", test_conditions=named)
    assert set(split.test) == {DOUBLES[3], DOUBLES[5]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_genes": ("G99",)}, "Found no perturbed gene 'G99'"),
        ({"test_conditions": ("G00+G99",)}, "Found no condition 'G00\\+G99'"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split_of("gears", "simulation", **options)


def test_too_many_named_genes_are_refused():
    with pytest.raises(ValueError, match="only_test_genes=True"):
        split_of("gears", "simulation", test_genes=tuple(GENES[:20]), train_genes=0.75)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONDITIONS, "simulations"), "Expected `method`"),
        ((CONDITIONS, "random"), "Expected `method`"),
        ((["ctrl"], "simulation"), "at least one perturbed"),
        ((CONDITIONS, "simulation_single"), "single perturbations only"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_conditions(*arguments)


@pytest.mark.parametrize("bad", [{"train_genes": 1.5}, {"val_fraction": -0.1}])
def test_shares_are_checked(bad):
    with pytest.raises(ValueError, match="lie in"):
        SplitOptions(**bad)


def test_a_text_is_not_a_list_of_genes():
    with pytest.raises(TypeError, match="list of texts"):
        SplitOptions(test_genes="G01_G02")


def test_hash_names_a_set_of_perturbations():
    assert condition_hash(["A+B", "C+ctrl"]) == condition_hash(["ctrl+C", "B+A", "A+B"])
    assert condition_hash(["A+B", "C+ctrl"]) != condition_hash(["A+B"])
    assert len({split_of("gears", "simulation", rng=seed).digest() for seed in range(1, 6)}) == 5


def test_custom_parts():
    split = custom_split(["ctrl", "A+ctrl", "B+A", "C+ctrl"], train=["ctrl", "A"], test=["A+B"])
    assert (split.train, split.test, split.dropped) == (("ctrl", "A+ctrl"), ("B+A",), ("C+ctrl",))
    assert split.subgroups["test"]["combo_seen1"] == ("B+A",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [({"train": ["X+ctrl"]}, "Found no condition"), ({"train": ["A"], "test": ["ctrl+A"]}, "in one part")],
)
def test_custom_parts_are_checked(parts, message):
    with pytest.raises(ValueError, match=message):
        custom_split(["ctrl", "A+ctrl"], **parts)


def test_seen_groups():
    groups = seen_groups(["A", "B+C", "A+B", "X+Y", "X", "A+B+X"], ["ctrl", "A+ctrl", "B+D", "C"])
    assert groups == {
        "combo_seen0": ("X+Y",),
        "combo_seen1": (),
        "combo_seen2": ("B+C", "A+B"),
        "unseen_single": ("X",),
        "seen_single": ("A",),
        "combo3_seen2": ("A+B+X",),
    }


def test_rankings_look_random():
    orders = np.array([[rank(GENES, seed, "test").index(gene) for gene in GENES] for seed in range(200)])
    assert np.abs(orders.mean(axis=0) - 14.5).max() < 2.5
    assert rank(GENES, 1, "test") != rank(GENES, 1, "val")


@pytest.mark.parametrize(("share", "n"), [(0.0, 0), (0.01, 1), (0.5, 5), (0.99, 9), (1.0, 10)])
def test_first_share_keeps_something_on_both_sides(share, n):
    assert len(first_share(list("abcdefghij"), share)) == n


@pytest.mark.parametrize("screen", ["norman", "adamson"])
def test_published_groups_of_scgenept(screen):
    """Of the repository's files only the genes that its groups call unseen are taken; who belongs where follows."""
    published = json.loads((Path(__file__).parents[1] / "golden" / "scgenept" / "subgroups.json").read_text())[screen]
    unseen: set[str] = set()
    for part in ("test_subgroup", "val_subgroup"):
        groups = {name: set(group) for name, group in published[part].items()}
        held = set().union(*groups.values())
        unseen |= genes_of(groups["unseen_single"])
        every = {gene for own in published.values() for group in own.values() for gene in genes_of(group)}
        found = seen_groups(sorted(held), [f"{gene}+ctrl" for gene in sorted(every - unseen)])
        assert {name: set(group) for name, group in found.items()} == groups
    sizes = {part: [len(group) for group in published[part].values()] for part in published}
    expected = {
        "norman": {"test_subgroup": [9, 52, 18, 37], "val_subgroup": [0, 11, 5, 14]},
        "adamson": {"test_subgroup": [0, 0, 0, 22], "val_subgroup": [0, 0, 0, 7]},
    }
    assert sizes == expected[screen]
