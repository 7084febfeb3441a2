"""From and to files: nothing is lost, everything that does not fit is named, and other readers can read it."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools import scGPTConfig, scGPTModel, scGPTPerturbationModel
from scgpt_tools.models import CellModel, TransformerModel, load_pretrained
from scgpt_tools.models.config import ClassifierConfig, ReferenceCellsConfig

GENES = [f"G{i}" for i in range(40)]

SETTINGS = [
    {"n_cls": 4, "nlayers_cls": 2, "label_key": "kind", "dropout": 0.3},
    {"do_dab": True, "num_batch_labels": 2, "dab_weight": 0.5, "batch_label_key": "batch"},
    {"n_cls": 3, "known_classes": ("one", "two"), "do_dab": True, "num_batch_labels": 2, "known_batches": ("left",)},
    {"use_batch_labels": True, "num_batch_labels": 2, "do_mvc": False},
    {"domain_spec_batchnorm": True, "num_batch_labels": 2, "ecs_threshold": 0.8, "ecs_loss_weight": 3.0},
    {"domain_spec_batchnorm": "batchnorm"},
    {"input_emb_style": "category", "n_input_bins": 13, "pad_value": 11},
    {"input_emb_style": "scaling", "n_input_bins": 21, "pad_value": -2},
    {"cell_emb_style": "avg-pool", "explicit_zero_prob": True},
    {"cell_emb_style": "w-pool", "mvc_decoder_style": "concat query"},
    {"use_fast_transformer": True, "pre_norm": True, "use_generative_training": True},
    {"max_seq_len": 12, "ntoken": 100, "specials": ("<mask>", "<pad>"), "special_first": False},
    {"pad_token": "<fill>", "scgpt_mode": "embedding", "name": "mine", "model_series": "scgpt", "pert_pad_id": 1},
    {"perturbation_delimiter": "_", "decoder_activation": "ReLU", "decoder_adaptive_bias": True},
]


@pytest.mark.parametrize("kind", [scGPTModel, scGPTPerturbationModel])
@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda settings: "-".join(f"{name}={value}" for name, value in settings.items())
)
def test_saved_models_come_back_with_all_their_settings(config, tmp_path, kind, settings):
    model = kind(replace(config, **settings), gene_list=GENES, device="cpu").eval()
    model.save(tmp_path)
    again = kind.from_pretrained(tmp_path, device="cpu")
    assert again.config == model.config
    assert again.cell_model.config == model.cell_model.config
    assert again.vocab == model.vocab
    before, after = model.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", [scGPTModel, scGPTPerturbationModel])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ",".join(f"{k}={v}" for k, v in settings.items()))
def test_networks_come_back_without_the_record_of_settings(config, tmp_path, kind, settings):
    """As from folders that other functions of this package, or other packages, wrote."""
    model = kind(replace(config, **settings), gene_list=GENES, device="cpu").eval()
    model.save(tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    del args["scgpt_tools"]["wrapper"]
    (tmp_path / "args.json").write_text(json.dumps(args))
    again = kind.from_pretrained(tmp_path, device="cpu")
    assert again.cell_model.config == model.cell_model.config
    before, after = model.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in (
        "ecs_threshold",
        "batch_label_key",
        "label_key",
        "dab_weight",
        "ecs_loss_weight",
        "d_hid",
        "pert_pad_id",
    ):
        assert getattr(again.config, name) == getattr(model.config, name)


def test_settings_of_these_tests_are_all_there_are():
    told = {name for settings in SETTINGS for name in settings} | {"d_model", "nhead", "d_hid", "nlayers", "do_mvc"}
    # Only one value is possible, or the value has no effect.
    others = {"vocab", "fast_transformer_backend", "use_default_gene_vocab", "model_name", "model_type"}
    assert told | others == {each.name for each in fields(scGPTConfig)}


def test_the_rest_of_the_package_reads_a_saved_model(config, adata, tmp_path):
    model = scGPTModel(config, gene_list=GENES, device="cpu").eval()
    model.save(tmp_path)
    sct.tl.embed(adata, tmp_path)
    np.testing.assert_allclose(model.predict_embeddings(adata), adata.obsm["X_scGPT"], atol=1e-6)


def test_scgpts_own_classes_read_a_saved_model(config, tmp_path):
    """By the keys that its scripts look up in ``args.json``, and the tensors under its names."""
    model = scGPTModel(config, gene_list=GENES, device="cpu")
    model.save(tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    sizes = [args[key] for key in ("embsize", "nheads", "d_hid", "nlayers", "n_layers_cls")]
    network = TransformerModel(len(vocab), *sizes, n_cls=args["n_cls"], vocab=vocab, do_mvc=args["MVC"])
    load_pretrained(network, torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert network.load_report.missing == ()
    assert args["batch_label_key"] == "batch"


def test_saving_replaces_the_weights_of_a_folder(folder):
    model = scGPTModel.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        model.cell_model.embedder.genes.table.weight.add_(1.0)
    model.save(folder)
    again = scGPTModel.from_pretrained(folder, device="cpu")
    assert torch.equal(again.cell_model.embedder.genes.table.weight, model.cell_model.embedder.genes.table.weight)
    assert not (folder / "best_model.pt").exists()


def test_releases_of_others_are_not_replaced(folder):
    """What was downloaded stays what it was."""
    args = json.loads((folder / "args.json").read_text())
    del args["scgpt_tools"]
    (folder / "args.json").write_text(json.dumps(args))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="args.json, vocab.json, best_model.pt of something else"):
        scGPTModel.from_pretrained(folder, device="cpu").save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_home_is_expanded(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = scGPTModel(config, gene_list=GENES, device="cpu")
    assert model.save("~/mine") == tmp_path / "mine"
    assert scGPTModel.from_pretrained("~/mine", device="cpu").vocab == model.vocab


def test_native_folders_are_read_and_never_shadowed(pretrained, adata, tmp_path):
    pretrained.save(tmp_path)
    model = scGPTModel.from_pretrained(tmp_path, device="cpu")
    sct.tl.embed(adata, pretrained)
    np.testing.assert_allclose(model.predict_embeddings(adata), adata.obsm["X_scGPT"], atol=1e-6)
    with pytest.raises(ValueError, match="Choose another folder"):
        model.save(tmp_path)


def test_own_genes_travel_with_the_model(folder, adata, tmp_path):
    model = scGPTModel.from_pretrained(folder, gene_list=["G3", "G5", "G7", "NEW"], device="cpu")
    model.save(tmp_path / "mine")
    again = scGPTModel.from_pretrained(tmp_path / "mine", device="cpu")
    assert again.gene_list == ("G3", "G5", "G7", "NEW")
    np.testing.assert_array_equal(again.predict_embeddings(adata), model.predict_embeddings(adata))
    everything = scGPTModel.from_pretrained(folder, device="cpu")
    assert not np.allclose(everything.predict_embeddings(adata), model.predict_embeddings(adata))


def test_new_genes_are_named_and_trained_rows_kept(folder, pretrained, caplog):
    with caplog.at_level(logging.WARNING):
        model = scGPTModel.from_pretrained(folder, gene_list=["G1", "NEW1", "NEW2"], device="cpu")
    assert "2 genes are new to released; their rows are not trained: NEW1, NEW2." in caplog.text
    rows = model.cell_model.embedder.genes.table.weight
    assert torch.equal(rows[: len(pretrained.vocabulary)], pretrained.embedder.genes.table.weight)


def test_loading_is_reproducible_and_leaves_the_global_generator_alone(folder):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = scGPTModel.from_pretrained(folder, n_cls=3, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second = scGPTModel.from_pretrained(folder, n_cls=3, device="cpu")
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_parts_that_start_from_scratch_are_named(folder, caplog):
    with caplog.at_level(logging.WARNING):
        scGPTModel.from_pretrained(folder, do_dab=True, num_batch_labels=2, device="cpu")
    assert "starting from scratch" in caplog.text
    assert "heads.batch" in caplog.text


def test_a_base_model_becomes_a_perturbation_model_and_says_what_it_took_over(folder, pretrained, caplog):
    with caplog.at_level(logging.WARNING):
        model = scGPTPerturbationModel.from_pretrained(folder, device="cpu")
    assert torch.equal(model.cell_model.embedder.genes.table.weight, pretrained.embedder.genes.table.weight)
    assert "left behind: embedder.generation (1 tensors), heads.expression (6 tensors)" in caplog.text


def test_a_perturbation_model_is_no_model_of_cells(folder, tmp_path):
    scGPTPerturbationModel.from_pretrained(folder).save(tmp_path / "generator")
    with pytest.raises(
        ValueError, match=r"Expected a checkpoint for scGPTModel.*left behind: .*embedder\.perturbation"
    ):
        scGPTModel.from_pretrained(tmp_path / "generator")


def test_settings_that_belong_to_the_weights_cannot_change(folder):
    with pytest.raises(ValueError, match=r"found \['d_model'\], which belong to the checkpoint"):
        scGPTModel.from_pretrained(folder, d_model=32)
    with pytest.raises(TypeError, match="n_classes"):
        scGPTModel.from_pretrained(folder, n_classes=3)


def test_files_of_perturblab_are_read(config, tmp_path):
    """It writes every setting by its own name, those of other kinds of model included."""
    model = scGPTModel(config, gene_list=GENES, device="cpu")
    model.save(tmp_path)
    args = json.loads((tmp_path / "args.json").read_text())
    del args["scgpt_tools"]
    (tmp_path / "args.json").write_text(json.dumps(args | {"ecs_threshold": 0.7, "batch_label_key": "donor"}))
    again = scGPTModel.from_pretrained(tmp_path, device="cpu")
    assert (again.config.ecs_threshold, again.config.batch_label_key, again.config.d_hid) == (0.7, "donor", 16)


def test_downloads_can_be_forced(hub, pretrained):
    for _ in range(2):
        scGPTModel.from_pretrained("scgpt-human", device="cpu")
    (weights,) = {request.path for request in hub.requests if "/stored/" in request.path}
    assert len(hub.asked("GET", weights)) == 1
    scGPTModel.from_pretrained("scgpt-human", force_download=True, resume_download=True, device="cpu")
    assert len(hub.asked("GET", weights)) == 2


def test_without_genes_there_is_no_model(config):
    with pytest.raises(ValueError, match=r"Expected `gene_list`.*found neither.*from_pretrained"):
        scGPTModel(config)


@pytest.mark.parametrize(
    ("settings", "genes", "error", "message"),
    [
        ({"ntoken": 2}, ["A", "B", "C"], ValueError, "`ntoken` to be at least 3"),
        ({}, "A", TypeError, "found one string, 'A'"),
        ({}, [], ValueError, "Expected genes in `gene_list`, found none"),
        ({"nhead": 3}, ["A"], ValueError, "multiple of the number of heads"),
        ({"do_dab": True}, ["A"], ValueError, "`num_batch_labels`"),
        ({"input_emb_style": "rank"}, ["A"], ValueError, "input_emb_style"),
    ],
)
def test_settings_that_cannot_be_are_refused(config, settings, genes, error, message):
    with pytest.raises(error, match=message):
        scGPTModel(replace(config, **settings), gene_list=genes)


def test_settings_check_their_numbers():
    with pytest.raises(ValueError, match="d_model"):
        scGPTConfig(d_model=0)
    with pytest.raises(ValueError, match="ntoken"):
        scGPTConfig(ntoken=0)


def test_a_device_that_is_not_there_is_replaced(config, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        model = scGPTModel(config, gene_list=GENES, device="cuda")
    assert model.device.type == "cpu"
    assert "There is no device 'cuda' here" in caplog.text


def test_a_wrapped_model_is_the_packages_own(folder):
    model = scGPTModel.from_pretrained(folder, device="cpu")
    assert isinstance(model.cell_model, CellModel)
    assert model.cell_model is model.model.cell_model
    assert repr(model) == "scGPTModel('released', 45 tokens, 16 wide)"
    assert model.train().model.training
    assert not model.eval().model.training


def test_an_annotator_that_keeps_cells_of_its_training_is_read(pretrained, tmp_path):
    """They are left behind: what it answers does not depend on them."""
    heads = pretrained.config.heads.replace(
        cell_type=ClassifierConfig(classes=2, names=("B", "T")),
        reference_cells=ReferenceCellsConfig(cells=3, held_out=2),
    )
    folder = pretrained.adapt(heads=heads).save(tmp_path / "annotator")
    model = scGPTModel.from_pretrained(folder, device="cpu")
    assert set(model.cell_model.heads) == set(heads) - {"reference_cells"}
    assert scGPTModel.from_pretrained(model.save(tmp_path / "again"), device="cpu").config == model.config
