"""Low-rank adapters: where they are, what they train, and that nothing of them is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.nn.linear import Linear
from scgpt_tools.train.lora import LoraConfig, adapters
from scgpt_tools.train.randomness import own_random_numbers
from scgpt_tools.vocabulary import Vocabulary


def shapes(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


def test_adapters_begin_as_nothing_and_leave_nothing(make_model, cells):
    model = make_model(dropout=0.0).eval()
    before, expected = shapes(model), sct.tl.embed(cells, model, copy=True).obsm["X_scGPT"]
    attributes = set(vars(model))
    with adapters(model, LoraConfig(rank=2)):
        inside = sct.tl.embed(cells, model, copy=True).obsm["X_scGPT"]
        assert any("lora" in name for name in model.state_dict())
    np.testing.assert_allclose(inside, expected, atol=1e-6)
    np.testing.assert_allclose(sct.tl.embed(cells, model, copy=True).obsm["X_scGPT"], expected, atol=1e-6)
    assert shapes(model) == before
    assert set(vars(model)) == attributes
    assert type(model.encoder.blocks[0].attention.query) is Linear


@pytest.mark.parametrize("family", ["scgpt", "scmodelforge"])
def test_adapters_act_in_eval_mode_as_they_do_once_merged(cells, family):
    vocabulary = Vocabulary.from_genes(cells.var_names, FAMILIES[family].specials)
    sizes = {"dim": 16, "layers": 2, "heads": 2, "hidden": 16, "dropout": 0.1}
    with own_random_numbers(0):
        model = CellModel(FAMILIES[family](vocabulary, **sizes), vocabulary).eval()
    before = sct.tl.embed(cells, model, key_added="X", copy=True).obsm["X"]
    with own_random_numbers(1), adapters(model, LoraConfig(rank=2, alpha=8)):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        inside = sct.tl.embed(cells, model, key_added="X", copy=True).obsm["X"]
    np.testing.assert_allclose(sct.tl.embed(cells, model, key_added="X", copy=True).obsm["X"], inside, atol=1e-5)
    assert np.abs(inside - before).max() > 0.01


@pytest.mark.parametrize("targets", [("query", "value"), ("out",), ("expand", "contract")])
def test_only_the_named_maps_are_adapted(make_model, targets):
    model = make_model()
    with adapters(model, LoraConfig(rank=3, targets=targets)):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        adapted = {name.split(".")[4] for name in trained if "lora" in name}
        others = {name.split(".")[0] for name in trained if "lora" not in name}
        ranks = {parameter.shape[0] for name, parameter in model.named_parameters() if "lora_A" in name}
    assert adapted == set(targets)
    assert others == {"heads"}
    assert ranks == {3}


def test_a_change_of_low_rank_is_all_that_training_adds(make_model, cells):
    base = make_model(dropout=0.0).eval()
    model = sct.train.finetune(
        cells, base, task="annotate", label_key="kind", lora=LoraConfig(rank=2), epochs=2, lr=1e-2, accelerator="cpu"
    )
    plain = sct.train.finetune(cells, base, task="annotate", label_key="kind", epochs=2, lr=1e-2, accelerator="cpu")
    name = "encoder.blocks.0.attention.query.weight"
    ranks = [
        torch.linalg.matrix_rank((own.get_parameter(name) - base.get_parameter(name)).detach(), tol=1e-6).item()
        for own in (model, plain)
    ]
    assert 1 <= ranks[0] <= 2 < ranks[1]
    assert {key for key in shapes(model) if "lora" in key} == set()


def test_a_folder_of_an_adapted_model_is_an_ordinary_one(make_model, cells, tmp_path):
    model = sct.train.finetune(
        cells, make_model(), task="annotate", label_key="kind", lora=2, epochs=1, accelerator="cpu"
    )
    again = sct.CellModel.from_pretrained(model.save(tmp_path / "adapted"), device="cpu")
    assert again.checksum == model.checksum


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "`rank` to be at least 1"),
        ({"alpha": 0.0}, "`alpha` to be larger than 0"),
        ({"dropout": 1.0}, "`dropout` to lie in"),
        ({"targets": ()}, "at least one linear map"),
        ({"targets": ("query", 1)}, r"`targets.*to be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LoraConfig(**settings)


def test_maps_that_the_encoder_lacks_are_refused(make_model):
    model = make_model()
    with (
        pytest.raises(ValueError, match="no linear map of the encoder 'queries'. Did you mean 'query'"),
        adapters(model, LoraConfig(targets=("queries",))),
    ):
        pass
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_peft_the_extra_is_named(make_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match="extra 'peft' of scgpt-tools"), adapters(make_model(), LoraConfig()):
        pass
