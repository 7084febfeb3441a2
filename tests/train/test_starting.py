"""What a family says that its models become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scgpt_tools import testing
from scgpt_tools.models import FAMILIES, CellModel, families
from scgpt_tools.train.starting import modality_config, perturbation_config, perturbation_model


@pytest.fixture
def toy(monkeypatch) -> CellModel:
    """A model of a family without other forms."""
    plain = replace(FAMILIES["scgpt"], name="toy", perturbation=None, modalities=None)
    monkeypatch.setattr(families, "FAMILIES", FAMILIES | {"toy": plain})
    vocabulary = testing.tiny_vocabulary()
    config = FAMILIES["scgpt"](vocabulary, dim=8, layers=1, heads=2, hidden=8)
    return CellModel(replace(config, family="toy"), vocabulary)


def test_a_family_without_a_form_for_perturbations_is_refused(toy):
    with pytest.raises(ValueError, match="can learn perturbations, found one of the family 'toy'"):
        perturbation_config(toy)


def test_a_family_without_a_form_for_modalities_is_refused(toy):
    tokenizer = FAMILIES["scgpt_multiomic"](toy.vocabulary, modalities=["rna", "prot"], dim=8, heads=2).tokenizer
    with pytest.raises(ValueError, match="can learn several modalities, found one of the family 'toy'"):
        modality_config(toy.config, tokenizer)


def test_a_family_says_what_its_models_become(toy, monkeypatch):
    """The form is the family's, with its tokens and head; what it has in common with the model is taken over."""
    calls = []

    def become(config, vocabulary, *, head, dropout, flag):
        calls.append((vocabulary, head, dropout, flag))
        return replace(config, pooling="mean")

    monkeypatch.setitem(families.FAMILIES, "toy", replace(families.FAMILIES["toy"], perturbation=become))
    tuned = perturbation_model(toy, dropout=0.1, flag=1)
    assert calls == [(toy.vocabulary, None, 0.1, 1)]
    assert (tuned.config.family, tuned.config.pooling) == ("toy", "mean")
    assert set(tuned.transfer.used) == set(toy.state_dict())


def test_defaults_of_a_family_that_nobody_reads_are_refused(make_model, monkeypatch):
    from dataclasses import replace

    from scgpt_tools.models.families import FAMILIES
    from scgpt_tools.train.starting import of_family

    family = replace(FAMILIES["scgpt"], finetuning={"annotate": {"dropout": 0.3}, "perturb": {"dropout": 0.3}})
    monkeypatch.setitem(FAMILIES, "scgpt", family)
    assert of_family(make_model(), "perturb") == {"dropout": 0.3}
    with pytest.raises(TypeError, match="default of the family 'scgpt' for 'annotate' named 'dropout'"):
        of_family(make_model(), "annotate")
