"""Objectives from configuration files, and the recipes of the originals."""

from __future__ import annotations

import dataclasses

import pytest

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.objectives import (
    OBJECTIVES,
    RECIPES,
    ContrastiveCells,
    ElasticSimilarity,
    MaskedExpression,
    Objective,
    check_objectives,
)


def test_specs_become_objectives():
    built = check_objectives(
        [{"name": "masked_expression"}, {"name": "elastic_similarity", "weight": 10, "threshold": 0.6}]
    )
    assert built == (MaskedExpression(), ElasticSimilarity(weight=10.0, threshold=0.6))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_is_found_by_its_name(name):
    (objective,) = check_objectives([{"name": name, "weight": 2}])
    assert objective.name == name
    assert objective.weight == 2
    assert from_dict(Objective, to_dict(objective)) == objective


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"name": "masked_expresion"}], "masked_expression"),
        ([{"name": "masked_expression", "wieght": 1}], "weight"),
        ([{"weight": 1}], "name"),
        ([{"name": "masked_expression"}, {"name": "masked_expression"}], "once"),
        ([{"name": "masked_expression", "weight": 0}], "above 0"),
        ([{"name": "masked_expression", "weight": -1}], "weight"),
        ([{"name": "masked_expression", "from_step": 10}], "first step"),
        ([{"name": "elastic_similarity", "threshold": 2.0}], "threshold"),
        ([{"name": "contrastive_cells", "temperature": 0.0}], "temperature"),
        ([], "at least one"),
    ],
)
def test_wrong_specs_are_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        check_objectives(specs)


def test_a_term_from_outside_is_found_by_its_name(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(MaskedExpression):
        name = "mine"

    monkeypatch.setitem(OBJECTIVES, "mine", Mine)
    assert check_objectives([{"name": "mine"}]) == (Mine(),)


def test_objectives_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ContrastiveCells().weight = 3.0


@pytest.mark.parametrize("task", sorted(RECIPES))
def test_recipes_are_lists_that_can_be_trained(task):
    recipe = RECIPES[task]
    assert check_objectives(recipe.objectives) == recipe.objectives
    assert recipe.source


def test_recipes_have_the_weights_of_the_originals():
    weights = {objective.name: objective.weight for objective in RECIPES["integrate"].objectives}
    assert weights == {
        "masked_expression": 1,
        "zero_likelihood": 1,
        "masked_expression_from_cell": 1,
        "zero_likelihood_from_cell": 1,
        "elastic_similarity": 10,
        "batch_adversary": 1,
    }
    assert [objective.name for objective in RECIPES["annotate"].objectives] == ["cell_type"]
    assert {objective.from_step for objective in RECIPES["pretrain"].objectives} == {0, 1000}
