"""The model class: what it adapts to, and where it lives."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

import scgpt_tools as sct
from scgpt_tools import testing
from scgpt_tools.models import FAMILIES, CellModel, ModelConfig, precision
from scgpt_tools.models.config import (
    AdversaryConfig,
    ClassifierConfig,
    ContextConfig,
    ExpressionConfig,
    Named,
)
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = testing.tiny_vocabulary()
SCGPT = FAMILIES["scgpt"](VOCABULARY, dim=16, layers=2, heads=2, hidden=24, dropout=0.1)


def build(config: ModelConfig = SCGPT, vocabulary: Vocabulary | None = VOCABULARY) -> CellModel:
    torch.manual_seed(0)
    return CellModel(config, vocabulary, name="tiny").eval()


@pytest.fixture
def model() -> CellModel:
    return build()


@pytest.fixture
def batch(model):
    return testing.tiny_batch(model)


# Adapting -------------------------------------------------------------------------------------------------------------


def test_new_heads_leave_the_base_alone(model, batch, caplog):
    before = model.checksum
    heads = SCGPT.heads.replace(cell_type=ClassifierConfig(classes=3, names=("B", "T", "NK")))
    with caplog.at_level(logging.INFO, logger="scgpt_tools"):
        adapted = model.adapt(heads=heads)
    assert "starting from scratch: heads.cell_type (10 tensors); left behind: nothing." in caplog.text
    assert {key.split(".")[1] for key in adapted.transfer.missing} == {"cell_type"}
    assert set(adapted.transfer.used) == set(model.state_dict())
    assert model.checksum == before
    assert set(model.heads) == {"expression", "expression_from_cell"}
    assert adapted.config == replace(SCGPT, heads=heads)
    assert adapted(batch)["cell_type"].shape == (4, 3)
    for key, tensor in model.state_dict().items():
        assert torch.equal(adapted.state_dict()[key], tensor)
    torch.testing.assert_close(adapted(batch).cell, model(batch).cell)


def test_an_adapted_model_shares_no_memory(model):
    adapted = model.adapt(heads=SCGPT.heads.replace(batch=AdversaryConfig(classes=2)))
    before = model.checksum
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(1)
    assert model.checksum == before


def test_a_head_can_be_taken_away(model, batch):
    assert set(model.adapt(heads=Named(expression=ExpressionConfig()))(batch).predictions) == {"expression"}


def test_a_head_of_another_shape_starts_from_scratch(model, caplog):
    with caplog.at_level(logging.INFO, logger="scgpt_tools"):
        adapted = model.adapt(context=ContextConfig(batches=2))
    assert "context.batch" in caplog.text
    assert "heads.expression (1 tensors: (16, 16) where the model has (16, 32))" in caplog.text
    assert adapted.heads["expression"].value[0].weight.shape == (16, 32)
    assert torch.equal(adapted.heads["expression"].value[2].weight, model.heads["expression"].value[2].weight)


def test_an_extended_vocabulary_keeps_its_rows(model, batch, tmp_path):
    longer = VOCABULARY.extended(["NEW1", "NEW2"])
    adapted = model.adapt(longer)
    assert adapted.vocabulary == longer
    assert adapted.config.n_tokens == 29
    old, new = model.embedder.genes.table.weight, adapted.embedder.genes.table.weight
    assert torch.equal(new[:27], old)
    assert new[27:].abs().max() <= 0.1
    assert new[27:].any(dim=1).all()
    torch.testing.assert_close(adapted(batch).tokens, model(batch).tokens)
    assert CellModel.from_pretrained(adapted.save(tmp_path), device="cpu").vocabulary == longer


def test_a_vocabulary_takes_spare_rows_first(batch):
    spare = build(replace(SCGPT, n_tokens=28))
    assert spare.adapt(VOCABULARY.extended(["NEW"])).config.n_tokens == 28
    assert spare.adapt(VOCABULARY.extended(["NEW", "NEWER"])).config.n_tokens == 29


@pytest.mark.parametrize("tokens", [["A", "<pad>"], [*VOCABULARY.tokens[::-1]], list(VOCABULARY.tokens[:-1])])
def test_another_vocabulary_is_refused(model, tokens):
    with pytest.raises(ValueError, match="begins with the model's own tokens"):
        model.adapt(Vocabulary(tokens))


def test_another_width_starts_from_scratch(model):
    adapted = model.adapt(dim=32)
    assert adapted.embedder.genes.table.weight.shape == (27, 32)


def test_mode_and_device_are_kept(model):
    assert not model.adapt().training
    assert model.train().adapt().training
    assert model.adapt().device == model.device


def test_fields_that_no_configuration_has_are_refused(model):
    with pytest.raises(TypeError, match="head"):
        model.adapt(head=Named())


# Devices --------------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_where_it_is_wanted(model, tmp_path, monkeypatch):
    folder = model.save(tmp_path)
    monkeypatch.setattr(precision, "_devices", lambda: ["cpu", "meta"])
    with sct.settings.override(device="meta"):
        assert CellModel.from_pretrained(folder).device.type == "meta"
        assert CellModel.from_pretrained(folder, device="cpu").device.type == "cpu"


def test_loading_draws_nothing(model, tmp_path):
    """The network is built without memory, so making it costs no random numbers."""
    folder = model.save(tmp_path)
    before = torch.get_rng_state()
    CellModel.from_pretrained(folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_is_called_by_its_folder(model, tmp_path):
    model.save(tmp_path / "my-model")
    assert CellModel.from_pretrained(tmp_path / "my-model", device="cpu").name == "my-model"


# Averages with the start ----------------------------------------------------------------------------------------------


def moved(model: CellModel, **changes) -> CellModel:
    """As after fine-tuning: other numbers, and what the task brought along."""
    tuned = model.adapt(**changes)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(1.0)
    return tuned.eval()


def test_an_average_lies_between_the_start_and_the_tuned_model(model, batch):
    heads = SCGPT.heads.replace(cell_type=ClassifierConfig(classes=3, names=("B", "T", "NK")))
    tuned = moved(model, heads=heads)
    before = tuned.checksum
    mean = tuned.average_with(model, share=0.25)
    start, own, found = (each.state_dict() for each in (model, tuned, mean))
    for name, tensor in start.items():
        torch.testing.assert_close(found[name], 0.25 * tensor + 0.75 * own[name])
    new = [name for name in own if name.startswith("heads.cell_type.")]
    assert len(new) == 10
    assert all(torch.equal(found[name], own[name]) for name in new)
    torch.testing.assert_close(tuned.average_with(model, share=1)(batch).cell, model(batch).cell)
    torch.testing.assert_close(tuned.average_with(model, share=0)(batch).cell, tuned(batch).cell)
    assert tuned.checksum == before


def test_an_average_keeps_the_rows_of_new_genes(model):
    tuned = moved(model, vocabulary=VOCABULARY.extended(["NEW1", "NEW2"]))
    mean, n = tuned.average_with(model), len(VOCABULARY)
    rows, own, start = (each.embedder.genes.table.weight for each in (mean, tuned, model))
    torch.testing.assert_close(rows[:n], (own[:n] + start) / 2)
    assert torch.equal(rows[n:], own[n:])


def test_an_average_of_models_of_other_parts_is_refused(model):
    wider = build(FAMILIES["scgpt"](VOCABULARY, dim=32, layers=2, heads=2, hidden=24))
    with pytest.raises(ValueError, match=r"was fine-tuned from, found 'tiny', in which 'embedder.*' has the shape"):
        moved(model).average_with(wider)
    first = next(token for token in VOCABULARY.tokens if not token.startswith("<"))
    other = Vocabulary("OTHER" if token == first else token for token in VOCABULARY.tokens)
    with pytest.raises(ValueError, match="whose vocabulary is another"):
        moved(model).average_with(build(vocabulary=other))
    with pytest.raises(ValueError, match="`share` to lie in"):
        moved(model).average_with(model, share=2)
    with pytest.raises(TypeError, match="`start` to be CellModel"):
        moved(model).average_with("scgpt-demo")


def test_models_that_were_taken_for_each_other_are_not_averaged(model):
    heads = SCGPT.heads.replace(cell_type=ClassifierConfig(classes=3, names=("B", "T", "NK")))
    with pytest.raises(ValueError, match=r"more parts: heads.cell_type \(10 tensors\). Call `average_with`"):
        model.average_with(moved(model, heads=heads))


def test_parts_that_only_the_start_has_are_left_out_and_said(model, caplog):
    tuned = moved(model, heads=SCGPT.heads.replace(cell_type=ClassifierConfig(classes=3, names=("B", "T", "NK"))))
    start = model.adapt(heads=SCGPT.heads.replace(other=ClassifierConfig(classes=2, names=("B", "T"))))
    with caplog.at_level("INFO", logger="scgpt_tools"):
        mean = tuned.average_with(start)
    assert mean.config == tuned.config
    assert "left out of their mean: heads.other (10 tensors)" in caplog.text
