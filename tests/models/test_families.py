"""The table of families: what each answers, and rows that other packages add."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from scgpt_tools import _plugins, testing
from scgpt_tools.models import FAMILIES, CellModel, families
from scgpt_tools.models.config import HEADS
from scgpt_tools.models.families import Family, embedding_key, family_named, gene_embedding_key
from scgpt_tools.objectives import check_objectives

TOY = Family(name="toy", config=FAMILIES["scgpt"].config, key="X_toy")


@pytest.fixture
def installed(monkeypatch):
    """Give entry points to the table as a fresh interpreter would see them."""
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    monkeypatch.setattr(_plugins, "_READ", set())

    def install(**entries: str) -> None:
        found = [EntryPoint(name=name, value=value, group=families.GROUP) for name, value in entries.items()]
        monkeypatch.setattr(_plugins, "entry_points", lambda *, group: found if group == families.GROUP else [])

    return install


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_named_as_their_models(name):
    needs = {"modalities": 2} if name == "scgpt_multiomic" else {}
    config = FAMILIES[name](testing.tiny_vocabulary(), dim=8, heads=2, **needs)
    assert FAMILIES[name].name == config.family == name
    assert (embedding_key(config), gene_embedding_key(config)) == (FAMILIES[name].key, f"{FAMILIES[name].key}_genes")


@pytest.mark.parametrize("name", ["scgpt", "scgpt_perturbation", "scgpt_multiomic"])
def test_the_keys_of_scgpt_stay(name):
    assert FAMILIES[name].key == "X_scGPT"


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_terms_can_be_built(name):
    for terms in FAMILIES[name].objectives.values():
        built = check_objectives(terms)
        assert [term.name for term in built] == [term["name"] for term in terms]


def test_an_unknown_family_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no family of models 'scgpd'. Did you mean 'scgpt'"):
        family_named("scgpd")


def test_a_package_adds_a_family(installed):
    installed(toy=f"{__name__}:TOY")
    assert family_named("toy") is TOY
    config = replace(FAMILIES["scgpt"](testing.tiny_vocabulary()), family="toy")
    assert (embedding_key(config), gene_embedding_key(config)) == ("X_toy", "X_toy_genes")


def test_heads_that_a_package_adds_are_there_when_a_model_is_read(installed, tmp_path, monkeypatch):
    (tmp_path / "added_family.py").write_text(
        "from dataclasses import replace\n"
        "from scgpt_tools.models.config import HEADS, ExpressionConfig\n"
        "from scgpt_tools.models.families import FAMILIES\n"
        "HEADS['added'] = ExpressionConfig\n"
        "TOY = replace(FAMILIES['scgpt'], name='toy')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    vocabulary = testing.tiny_vocabulary()
    model = CellModel(FAMILIES["scgpt"](vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
    model.save(tmp_path / "model")
    installed(toy="added_family:TOY")
    assert "added" not in HEADS
    CellModel.from_pretrained(tmp_path / "model", device="cpu")
    assert HEADS.pop("added")


def test_embeddings_of_a_family_that_is_not_installed_have_its_name():
    assert embedding_key(replace(FAMILIES["scgpt"](testing.tiny_vocabulary()), family="toy")) == "X_toy"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"scgpt": f"{__name__}:TOY"}, "there is one of that name already"),
        ({"toy": "no_such_package:TOY"}, "cannot be imported .ModuleNotFoundError"),
        ({"toy": "scgpt_tools:tl"}, "it is <module"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_left_out_once(installed, entry, message):
    installed(**entry)
    with pytest.warns(UserWarning, match=message):
        assert family_named("scgpt") is FAMILIES["scgpt"]
    with pytest.raises(ValueError, match="no family of models 'toy'"):
        family_named("toy")
