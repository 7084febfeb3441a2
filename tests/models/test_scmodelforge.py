"""Checkpoints of scModelForge: folders, files of training, adapters, what is written, and what is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from scgpt_tools import testing
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.models.config import ClassifierConfig, RegressorConfig
from scgpt_tools.models.families.scmodelforge import SPECIALS, scmodelforge_tokens
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = Vocabulary([*SPECIALS, *(f"G{number}" for number in range(12))])
TINY = {"dim": 16, "layers": 2, "heads": 2, "hidden": 24, "final_norm": False}
TOKENS = scmodelforge_tokens(length=20)


def original(name: str) -> CellModel:
    """A model that the original could have."""
    config = FAMILIES[name](VOCABULARY, **TINY, tokenizer=TOKENS)
    if name == "scmodelforge_causal":
        from scgpt_tools.models.config import Named, TokenClassesConfig

        config = replace(
            config,
            encoder=replace(config.encoder, both_ways_for_cells=True),
            heads=Named(genes=TokenClassesConfig(), bins=TokenClassesConfig(classes=7)),
        )
    if name == "scmodelforge_autoencoder":
        decoder = replace(config.heads["expression"], genes=False, positions=20, dim=8, hidden=32)
        config = replace(config, heads=config.heads.replace(expression=decoder))
    torch.manual_seed(0)
    return CellModel(config, VOCABULARY, name=name).eval()


@pytest.fixture(params=["scmodelforge", "scmodelforge_causal", "scmodelforge_autoencoder"])
def model(request) -> CellModel:
    return original(request.param)


def embedding(model: CellModel) -> torch.Tensor:
    with torch.no_grad():
        return model.embed_cells(testing.tiny_batch(original("scmodelforge")))


def test_there_and_back(model, tmp_path):
    again = CellModel.from_pretrained(model.export(tmp_path), device="cpu")
    assert (again.checksum, again.config) == (model.checksum, model.config)
    assert torch.equal(embedding(again), embedding(model))
    model.export(tmp_path)


def test_without_our_own_words(model, tmp_path):
    """As the original writes it: sizes come from the tensors, the rest from its settings."""
    folder = model.export(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    del content["scgpt_tools"]
    (folder / "config.json").write_text(json.dumps(content))
    again = CellModel.from_pretrained(folder, device="cpu")
    assert again.checksum == model.checksum
    assert again.config.encoder == model.config.encoder
    assert torch.equal(embedding(again), embedding(model))
    with pytest.raises(FileExistsError, match="config.json"):
        model.export(folder)


@dataclass
class Settings:
    """As the original's, which are saved as objects among the hyper-parameters."""

    hidden_dim: int = 16
    num_heads: int = 2
    pooling: str = "mean"


def test_a_file_of_training(tmp_path):
    """Nothing in it is run, and the settings among its hyper-parameters are read."""
    model = original("scmodelforge")
    folder = model.export(tmp_path / "folder")
    weights = {f"model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    content = {"state_dict": weights, "hyper_parameters": {"model_config": Settings()}, "epoch": 3}
    torch.save(content, tmp_path / "epoch3.ckpt")
    again = CellModel.from_pretrained(tmp_path / "epoch3.ckpt", vocabulary=folder / "gene_vocab.json", device="cpu")
    assert again.checksum == model.checksum
    assert (again.config.encoder.heads, again.config.pooling) == (2, "mean")


def test_without_settings_the_usual_number_of_heads_is_taken_with_a_warning(tmp_path):
    model = original("scmodelforge")
    folder = model.export(tmp_path)
    (folder / "config.json").unlink()
    with pytest.warns(UserWarning, match="num_heads"):
        again = CellModel.from_pretrained(folder / "model.safetensors", device="cpu")
    assert again.config.encoder.heads == 8


@pytest.mark.parametrize("hidden", [None, 10])
def test_a_fine_tuned_file(tmp_path, hidden):
    model = original("scmodelforge")
    folder = model.export(tmp_path / "folder")
    weights = {f"backbone.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.manual_seed(1)
    if hidden is None:
        weights |= {"head.net.1.weight": torch.randn(3, 16), "head.net.1.bias": torch.randn(3)}
    else:
        weights |= {"head.net.0.weight": torch.randn(hidden, 16), "head.net.0.bias": torch.randn(hidden)}
        weights |= {"head.net.3.weight": torch.randn(3, hidden), "head.net.3.bias": torch.randn(3)}
    save_file(weights, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    del content["scgpt_tools"]["checksums"]
    (folder / "config.json").write_text(json.dumps(content))
    again = CellModel.from_pretrained(folder, device="cpu")
    head = again.config.heads["cell_type"]
    assert isinstance(head, ClassifierConfig)
    assert (head.classes, head.width, head.norm) == (3, hidden, False)
    assert torch.equal(embedding(again), embedding(model))


def test_vocabularies_with_holes(tmp_path):
    model = original("scmodelforge")
    folder = model.export(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    del content["scgpt_tools"]
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "gene_vocab.json").write_text(json.dumps({"A": 4, "B": 7}))
    again = CellModel.from_pretrained(folder, device="cpu")
    assert again.vocabulary.tokens[4:] == ("A", "<unused 5>", "<unused 6>", "B")
    (folder / "gene_vocab.json").write_text(json.dumps({"A": 2}))
    with pytest.raises(ValueError, match="whole numbers from 4 on"):
        CellModel.from_pretrained(folder, device="cpu")
    (folder / "gene_vocab.json").write_text(json.dumps({"A": 99}))
    with pytest.raises(ValueError, match="at most 16 tokens"):
        CellModel.from_pretrained(folder, device="cpu")


def test_settings_of_another_model_are_refused(tmp_path):
    folder = original("scmodelforge").export(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["model_type"] = "masked_autoencoder"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'transformer_encoder', which the tensors are of"):
        CellModel.from_pretrained(folder, device="cpu")


def test_what_the_original_has_no_words_for_is_refused(tmp_path):
    plain = FAMILIES["scmodelforge"](VOCABULARY, **TINY | {"final_norm": True})
    with pytest.raises(ValueError, match="a norm after the last layer"):
        CellModel(plain, VOCABULARY).export(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scmodelforge_causal", {"both_ways_for_cells": False}),
        ("scmodelforge_causal", {"causal": False}),
        ("scmodelforge", {"causal": True}),
        ("scmodelforge", {"norm": "post"}),
        ("scmodelforge", {"padding_mask": False}),
        ("scmodelforge", {"eps": 1e-05}),
        ("scmodelforge_autoencoder", {"sees_hidden": True}),
    ],
)
def test_an_encoder_that_the_original_runs_otherwise_is_refused(tmp_path, name, change):
    model = original(name)
    changed = CellModel(replace(model.config, encoder=replace(model.config.encoder, **change)), VOCABULARY)
    key, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        changed.export(tmp_path)


def test_norms_are_the_originals(model, tmp_path):
    """Its norms add 1e-12 to variances, which matters where these are small, as before the decoder's first layer."""
    again = CellModel.from_pretrained(model.export(tmp_path), device="cpu")
    norms = [part for part in again.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert len(norms) >= 5
    assert {part.eps for part in norms} == {1e-12}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_heads_of_cells_read_what_embeds_cells(pooling, tmp_path):
    """A head for cells is trained on the same cells that it is asked about later, which the causal model embeds both ways."""
    model = original("scmodelforge_causal")
    heads = model.config.heads.replace(cell_type=ClassifierConfig(classes=3))
    model = model.adapt(heads=heads, pooling=pooling).eval()
    batch = testing.tiny_batch(original("scmodelforge"))
    with torch.no_grad():
        cells = model.embed_cells(batch)
        assert torch.allclose(model(batch, ("cell_type",)).cell, cells, atol=1e-6)
        assert torch.allclose(
            model(batch, ("cell_type",))["cell_type"], model.heads["cell_type"].logits(cells), atol=1e-6
        )
        looking_back = model(batch, ("cell_type", "genes"))
        assert torch.equal(looking_back["genes"], model(batch)["genes"])
    assert not torch.allclose(looking_back.cell, cells, atol=1e-3)


def tuned_file(tmp_path, hyper_parameters, extra):
    """A file of fine-tuning, and the vocabulary beside it."""
    folder = original("scmodelforge").export(tmp_path / "folder")
    weights = {f"model.backbone.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    content = {"state_dict": weights | extra, "hyper_parameters": hyper_parameters}
    torch.save(content, tmp_path / "tuned.ckpt")
    return tmp_path / "tuned.ckpt", {"vocabulary": folder / "gene_vocab.json", "device": "cpu"}


@pytest.mark.parametrize("alpha", [4, None])
def test_the_scale_of_adapters_is_read_from_hyper_parameters(tmp_path, alpha):
    before = "model.backbone.encoder.layers.0.linear1"
    adapter = {
        f"{before}.lora_A.default.weight": torch.ones(2, 16),
        f"{before}.lora_B.default.weight": torch.ones(24, 2),
    }
    lora = {"rank": 2} if alpha is None else {"rank": 2, "alpha": alpha}
    path, options = tuned_file(tmp_path, {"model_config": {"num_heads": 2}, "finetune": {"lora": lora}}, adapter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = CellModel.from_pretrained(path, **options)
    assert any("lora.alpha" in str(warning.message) for warning in caught) == (alpha is None)
    name = "encoder.blocks.0.feed_forward.expand.weight"
    change = again.state_dict()[name] - original("scmodelforge").state_dict()[name]
    torch.testing.assert_close(change, torch.full((24, 16), float(alpha or 16)))


def test_a_head_of_a_regression_predicts_numbers(tmp_path):
    head = {"model.head.net.1.weight": torch.zeros(2, 16), "model.head.net.1.bias": torch.tensor([1.0, 3.0])}
    path, options = tuned_file(tmp_path, {"model_config": {"num_heads": 2}, "task": "regression"}, head)
    again = CellModel.from_pretrained(path, **options)
    assert "cell_type" not in again.config.heads
    assert again.config.heads.find("targets", RegressorConfig).names == ("0", "1")
    assert again.heads["targets"].logits(torch.zeros(4, 16)).tolist() == [[1.0, 3.0]] * 4


def test_a_head_of_another_task_is_left_out(tmp_path):
    head = {"model.head.net.1.weight": torch.ones(1, 16), "model.head.net.1.bias": torch.ones(1)}
    path, options = tuned_file(tmp_path, {"model_config": {"num_heads": 2}, "task": "survival"}, head)
    with pytest.warns(UserWarning, match="of the task 'survival': it is left out"):
        again = CellModel.from_pretrained(path, **options)
    assert not {"cell_type", "targets"} & set(again.config.heads)
    assert set(again.transfer.dropped) >= {"head.net.1.weight", "head.net.1.bias"}


def test_what_the_settings_leave_open_is_warned_of(tmp_path):
    folder = original("scmodelforge").export(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    del content["scgpt_tools"], content["model_config"]["num_heads"]
    content["tokenizer_config"] |= {"strategy": "binned_expression", "binning_method": "quantile"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="`num_heads`"), pytest.warns(UserWarning, match="found 'quantile'"):
        assert CellModel.from_pretrained(folder, device="cpu").config.encoder.heads == 8
