"""``scGPTModel``: minibatches, terms of the loss, training and embeddings."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

import scgpt_tools as sct
from scgpt_tools import PerturbationData, scGPTModel

GENES = [f"G{i}" for i in range(40)]


@pytest.fixture
def build(config):
    """Function that makes an untrained model with other settings."""

    def make(**settings) -> scGPTModel:
        torch.manual_seed(0)
        return scGPTModel(replace(config, **settings), gene_list=GENES, device="cpu").eval()

    return make


def first(loader):
    return next(iter(loader))


# Minibatches ----------------------------------------------------------------------------------------------------------


def test_minibatches_are_tokens_as_the_model_was_trained_on(build, adata):
    model = build()
    batch = first(model.prepare_dataloader(adata, batch_size=8, return_split="all"))
    assert list(batch) == ["src", "values", "masked_values", "src_key_padding_mask", "index"]
    assert (batch["src"][:, 0] == model.vocab.cls_id).all()
    real = ~batch["src_key_padding_mask"]
    expressed = adata.X[batch["index"].numpy()].getnnz(axis=1)
    assert real.sum(dim=1).tolist() == (expressed + 1).tolist()
    assert (batch["src"][~real] == model.vocab.pad_id).all()
    assert torch.equal(batch["values"], batch["masked_values"])
    assert batch["values"][:, 1:][real[:, 1:]].min() >= 1


def test_genes_outside_the_vocabulary_are_left_out(config, adata):
    model = scGPTModel(config, gene_list=GENES[:30], device="cpu")
    batch = first(model.prepare_dataloader(adata, return_split="all"))
    used = set(batch["src"].unique().tolist())
    assert used <= set(model.vocab.ids([*GENES[:30], "<cls>", "<pad>"]).tolist())


def test_hidden_values_are_where_the_network_sees_the_mask(build, adata):
    batch = first(build().prepare_dataloader(adata, mask_ratio=0.5, return_split="all"))
    hidden = batch["masked_values"] == -1
    assert torch.equal(batch["values"], batch["target_values"])
    assert torch.equal(batch["masked_values"][~hidden], batch["target_values"][~hidden])
    lengths = (~batch["src_key_padding_mask"]).sum(dim=1) - 1
    assert torch.equal(hidden.sum(dim=1), lengths // 2)
    assert not hidden[:, 0].any()


@pytest.mark.parametrize("wanted", [None, "all", "train", "val", "valid", "test"])
def test_parts(build, adata, wanted):
    loaders = build().prepare_dataloader(adata, batch_size=16, return_split=wanted)
    part = adata.obs["split"].to_numpy()
    expected = {"train": "train", "val": "val", "valid": "val", "test": "test"}
    if wanted is None:
        assert list(loaders) == ["train", "val", "test"]
        loaders, expected = loaders["train"], {None: "train"}
    rows = np.concatenate([batch["index"].numpy() for batch in loaders])
    everything = np.arange(adata.n_obs)
    assert sorted(rows) == sorted(everything if wanted == "all" else everything[part == expected[wanted]])
    in_order = bool((np.diff(rows) > 0).all())
    assert in_order == (wanted not in (None, "train"))


def test_without_parts_there_is_one(build, adata):
    del adata.obs["split"]
    model = build()
    assert list(model.prepare_dataloader(adata)) == ["all"]
    with pytest.raises(ValueError, match=r"Found no part in obs\['split'\] named 'train'"):
        model.prepare_dataloader(adata, return_split="train")


def test_only_training_is_shuffled_and_every_walk_begins_anew(build, adata):
    loaders = build().prepare_dataloader(adata, batch_size=8, mask_ratio=0.4)

    def walk(name):
        return [batch["masked_values"] for batch in loaders[name]], [batch["index"] for batch in loaders[name]]

    next(iter(loaders["val"]))
    (values, rows), (values_again, rows_again) = walk("val"), walk("val")
    assert all(torch.equal(a, b) for a, b in zip(values + rows, values_again + rows_again, strict=True))
    orders = [torch.cat(walk("train")[1]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_smaller_last_minibatch_can_be_dropped(build, adata):
    model = build()
    kept = model.prepare_dataloader(adata, batch_size=7, return_split="train")
    dropped = model.prepare_dataloader(adata, batch_size=7, return_split="train", drop_last=True)
    assert len(kept) == len(dropped) + 1
    assert {len(batch["src"]) for batch in dropped} == {7}


def test_threads_change_nothing(build, adata):
    model = build()
    loaders = [model.prepare_dataloader(adata, return_split="train", num_workers=n, mask_ratio=0.2) for n in (0, 2)]
    for plain, ahead in zip(*loaders, strict=True):
        assert all(torch.equal(plain[name], ahead[name]) for name in plain)


def test_batches_have_one_number_in_all_parts(build, adata):
    """PerturbLab numbers them part by part."""
    adata.obs["batch"] = np.where((adata.obs["split"] == "train") & (np.arange(adata.n_obs) % 3 == 0), "a", "b")
    model = build(do_dab=True, num_batch_labels=2)
    numbers = {}
    for loader in model.prepare_dataloader(adata).values():
        for batch in loader:
            for row, number in zip(batch["index"].tolist(), batch["batch_labels"].tolist(), strict=True):
                numbers.setdefault(adata.obs["batch"].iloc[row], set()).add(number)
    assert numbers == {"a": {0}, "b": {1}}
    assert model.cell_model.config.batch_names == ("a", "b")


def test_the_table_is_not_changed(build, dataset):
    before = dataset.adata.copy()
    model = build(n_cls=3, label_key="kind", do_dab=True, num_batch_labels=2)
    model.prepare_dataloader(dataset)
    model.train_model(dataset, epochs=1, CLS=True)
    model.predict_embeddings(dataset)
    after = dataset.adata
    assert list(after.obs) == list(before.obs)
    assert (after.X != before.X).nnz == 0
    assert not after.obsm
    assert not after.uns


def test_mask_values():
    values = torch.tensor([[0.0, 1, 2, 3, 4], [5, 0, 0, 6, 0]])
    hidden = scGPTModel.mask_values(values, mask_ratio=0.5, mask_value=-7)
    assert ((hidden == -7).sum(dim=1) == torch.tensor([2, 1])).all()
    assert torch.equal(hidden == 0, values == 0)
    assert torch.equal(scGPTModel.mask_values(values), scGPTModel.mask_values(values))


# Loss -----------------------------------------------------------------------------------------------------------------


def test_terms_of_the_loss(build, adata):
    """The formulas written down once more."""
    model = build(
        explicit_zero_prob=True, do_dab=True, num_batch_labels=2, n_cls=3, label_key="kind", dab_weight=0.5, dropout=0.0
    )
    batch = first(model.prepare_dataloader(adata, mask_ratio=0.4, return_split="train"))
    flags = {"CLS": True, "CCE": True, "MVC": True, "ECS": True}
    output = model.forward(batch, **flags)
    found = model.compute_loss(batch, output, **flags)

    hidden = batch["masked_values"] == -1
    target = batch["target_values"]
    cells = F.normalize(output["cell_emb"], dim=1)
    cosine = (cells @ cells.T).fill_diagonal_(0).clamp(min=0)
    p = output["mlm_zero_probs"][hidden]
    likelihood = torch.where(target[hidden] > 0, p.log(), (1 - p).log())
    expected = {
        "loss_mse": F.mse_loss(output["mlm_output"][hidden], target[hidden]),
        "loss_zero_prob": -likelihood.mean(),
        "loss_gepc": F.mse_loss(output["mvc_output"][hidden], target[hidden]),
        "loss_cls": F.cross_entropy(output["cls_output"], batch["celltype_labels"]),
        "loss_cce": output["loss_cce"],
        "loss_ecs": 10 * (1 - (cosine - 0.3).square()).mean(),
        "loss_dab": 0.5 * F.cross_entropy(output["dab_output"], batch["batch_labels"]),
    }
    assert list(found) == ["loss", *expected]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(found["loss"], sum(expected.values()))


def test_outputs_are_computed_where_none_are_given(build, adata):
    model = build()
    batch = first(model.prepare_dataloader(adata, mask_ratio=0.4, return_split="train"))
    given = model.compute_loss(batch, model(batch, MVC=True), MVC=True)
    assert torch.equal(given["loss"], model.compute_loss(batch, MVC=True)["loss"])


def test_a_loss_needs_something_to_learn(build, adata):
    model = build()
    batch = first(model.prepare_dataloader(adata, return_split="train"))
    with pytest.raises(ValueError, match="Pass `mask_ratio` above 0"):
        model.compute_loss(batch)
    with pytest.raises(ValueError, match="Call `forward` with CCE=True"):
        model.compute_loss(batch, model.forward(batch), CCE=True)


def test_another_mask_value_than_that_of_the_minibatch_is_refused(build, adata):
    model = build()
    batch = first(model.prepare_dataloader(adata, mask_ratio=0.4, mask_value=-2, return_split="train"))
    with pytest.raises(ValueError, match="mask_value=-1 marks as hidden, found none. Pass mask_value=-2"):
        model.compute_loss(batch)
    assert torch.isfinite(model.compute_loss(batch, mask_value=-2)["loss"])
    batch["masked_values"] = batch["target_values"]
    with pytest.raises(ValueError, match="hides nothing; pass a larger `mask_ratio`"):
        model.compute_loss(batch)


# Training -------------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_best_weights_stay(build, adata, tmp_path):
    model = build()
    history = model.train_model(adata, epochs=3, lr=3e-3, MVC=True, save_dir=tmp_path, save_interval=1)
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert history["valid_loss"][-1] < history["valid_loss"][0]
    assert all(seconds > 0 for seconds in history["epoch_times"])
    assert not model.model.training
    best = 1 + int(np.argmin(history["valid_loss"]))
    kept = [scGPTModel.from_pretrained(tmp_path / name, device="cpu") for name in ("best", f"epoch_{best}")]
    embeddings = [each.predict_embeddings(adata) for each in (model, *kept)]
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    np.testing.assert_array_equal(embeddings[0], embeddings[2])
    assert (tmp_path / "checkpoint_epoch1_batch1" / "model.pt").is_file()


def test_minibatches_are_logged(build, adata, caplog):
    with caplog.at_level(logging.INFO, logger="scgpt_tools.wrappers"):
        build().train_model(adata, epochs=1, batch_size=8, log_interval=2)
    lines = [record.getMessage() for record in caplog.records if "minibatch" in record.getMessage()]
    n_batches = -(-int((adata.obs["split"] == "train").sum()) // 8)
    assert len(lines) == n_batches // 2
    assert re.fullmatch(r"epoch 1, minibatch 2: loss \d+\.\d{4}", lines[0])


def test_training_is_reproducible_by_seed(build, adata):
    def trained(seed):
        model = build()
        model.train_model(adata, epochs=1, lr=1e-3, seed=seed)
        return model.predict_embeddings(adata)

    np.testing.assert_array_equal(trained(3), trained(3))
    assert not np.array_equal(trained(3), trained(4))


def test_training_without_parts_validates_on_nothing(build, adata):
    del adata.obs["split"]
    history = build().train_model(adata, epochs=1)
    assert len(history["train_loss"]) == 1
    assert history["valid_loss"] == []


def test_classes_are_learnt(build, adata):
    """PerturbLab has the head and no labels."""
    first_half = np.arange(adata.n_obs) % 2 == 0
    adata.X = sp.csr_matrix(adata.X.toarray() * (first_half[:, None] == (np.arange(adata.n_vars) < 20)))
    adata.obs["kind"] = np.where(first_half, "high", "low")
    model = build(n_cls=2, label_key="kind", dropout=0.0)
    del adata.obs["split"]
    history = model.train_model(adata, epochs=15, lr=3e-3, mask_ratio=0.0, CLS=True)
    assert history["train_loss"][-1] < 0.5 * history["train_loss"][0]
    assert model.cell_model.config.heads.cell_type.names == ("high", "low")
    sct.tl.annotate(adata, model.cell_model)


@pytest.mark.parametrize("settings", [{"do_dab": True}, {"use_batch_labels": True}, {"domain_spec_batchnorm": True}])
def test_batches_are_trained_on(build, adata, settings):
    model = build(num_batch_labels=2, **settings)
    history = model.train_model(adata, epochs=1, ECS=True)
    assert np.isfinite(history["train_loss"]).all()
    batch = first(model.prepare_dataloader(adata, mask_ratio=0.2, return_split="test"))
    assert torch.isfinite(model.compute_loss(batch)["loss"])


def test_classes_belong_to_the_model_by_name(build, adata, tmp_path):
    """Two tables with three types each, one of them in both, get five numbers."""
    first_table, second = adata.copy(), adata.copy()
    second.obs["kind"] = second.obs["kind"].replace({"one": "four", "three": "five"})
    first_table.obs["batch"] = "left"
    second.obs["batch"] = "right"
    model = build(n_cls=5, label_key="kind", do_dab=True, num_batch_labels=3)

    def numbers(model, table):
        batch = first(model.prepare_dataloader(table, batch_size=999, return_split="all"))
        kinds = table.obs["kind"].to_numpy()[batch["index"].numpy()]
        return dict(zip(kinds, batch["celltype_labels"].tolist(), strict=True)), set(batch["batch_labels"].tolist())

    assert numbers(model, first_table) == ({"one": 0, "three": 1, "two": 2}, {0})
    model.train_model(first_table, epochs=1, CLS=True)
    kept = scGPTModel.from_pretrained(model.save(tmp_path / "kept"), device="cpu")
    for again in (model, kept):
        assert numbers(again, second) == ({"five": 3, "four": 4, "two": 2}, {1})
        assert numbers(again, first_table) == ({"one": 0, "three": 1, "two": 2}, {0})
        assert again.cell_model.config.heads.cell_type.names == ("one", "three", "two", "five", "four")
        assert again.config.known_batches == ("left", "right")
    second.obs["kind"] = "six"
    with pytest.raises(ValueError, match="Found no class of obs\\['kind'\\] named 'six'"):
        model.prepare_dataloader(second)
    second.obs["batch"] = np.where(np.arange(second.n_obs) % 2, "third", "fourth")
    with pytest.raises(ValueError, match="found 4: .* of which the model has seen \\['left', 'right'\\] before"):
        build(n_cls=1, do_dab=True, num_batch_labels=3, known_batches=("left", "right")).prepare_dataloader(second)


def test_another_number_of_classes_begins_without_names(build, adata, tmp_path):
    model = build(n_cls=3, label_key="kind")
    model.train_model(adata, epochs=1, CLS=True)
    folder = model.save(tmp_path / "three")
    assert scGPTModel.from_pretrained(folder, device="cpu").config.known_classes == ("one", "three", "two")
    assert scGPTModel.from_pretrained(folder, device="cpu", n_cls=4).config.known_classes is None


def test_parts_for_batches_need_their_number(build):
    for settings in ({"do_dab": True}, {"use_batch_labels": True}, {"domain_spec_batchnorm": True}):
        with pytest.raises(ValueError, match="^Expected `num_batch_labels`, the number of technical batches"):
            build(**settings)


def test_a_run_of_a_wrapper_goes_on_with_its_question_only(build, adata, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = build(n_cls=3, label_key="kind")
    model.train_model(adata, epochs=1, CLS=True, save_dir="~/run")
    assert len(model.train_model(adata, epochs=2, CLS=True, save_dir=tmp_path / "run", resume=True)["train_loss"]) == 2
    adata.obs["kind"] = adata.obs["kind"].replace({"one": "uno"})
    with pytest.raises(ValueError, match="class names \\['one', 'three', 'two'\\], found \\['three', 'two', 'uno'\\]"):
        build(n_cls=3, label_key="kind").train_model(adata, epochs=2, CLS=True, save_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"CLS": "False"}, {"epochs": 0}, {"lr": np.nan}, {"batch_size": 1.5}, {"grad_clip": -1.0}, {"seed": -1},
        {"scheduler_step": 0}, {"scheduler_gamma": 0.0}, {"use_amp": "no"}, {"save_dir": 3}, {"log_interval": 0},
        {"mask_ratio": "0.4"}, {"schedule": "triangle"},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_training_are_checked(build, adata, arguments):
    with pytest.raises((TypeError, ValueError), match="^Expected "):
        build().train_model(adata, **arguments)


@pytest.mark.parametrize(
    "settings",
    [{"do_mvc": "False"}, {"dropout": 1.0}, {"dab_weight": -1.0}, {"ecs_threshold": 2.0}, {"n_cls": True},
     {"n_cls": 2, "known_classes": ("a", "b", "c")}, {"n_cls": 2, "known_classes": ("a", "a")}],
    ids=str,
)  # fmt: skip
def test_settings_are_checked(settings):
    with pytest.raises((TypeError, ValueError), match="^Expected `"):
        sct.scGPTConfig(**settings)


def test_bins_as_categories(build, adata):
    model = build(input_emb_style="category", n_input_bins=13, pad_value=11)
    batch = first(model.prepare_dataloader(adata, mask_ratio=0.3, mask_value=12, return_split="train"))
    assert batch["target_values"].max() < 13
    assert torch.isfinite(model.compute_loss(batch, mask_value=12)["loss"])
    with pytest.raises(ValueError, match="row of the value table, 0 to 12"):
        model.prepare_dataloader(adata, mask_ratio=0.3)


@pytest.mark.parametrize(
    ("settings", "arguments", "error", "message"),
    [
        ({"do_mvc": False}, {"MVC": True}, ValueError, "do_mvc=True for MVC=True"),
        ({}, {"CLS": True}, ValueError, "found n_cls=1"),
        ({"n_cls": 2, "label_key": "kind"}, {"CLS": True}, ValueError, r"at most n_cls=2 values in obs\['kind'\]"),
        ({"do_dab": True, "num_batch_labels": 1}, {}, ValueError, "at most num_batch_labels=1"),
        ({"do_dab": True, "num_batch_labels": 2, "batch_label_key": "donor"}, {}, KeyError, "donor"),
        ({}, {"mask_ratio": 0.0}, ValueError, "at least one objective"),
        ({}, {"mask_ratio": 1.0}, ValueError, "mask_ratio"),
        ({}, {"save_interval": 5}, ValueError, "Expected `save_dir`"),
        ({}, {"log_interval": 0}, ValueError, "log_interval"),
        ({}, {"patiense": 5}, TypeError, "Did you mean 'patience'"),
    ],
)
def test_training_that_cannot_be_is_refused(build, adata, settings, arguments, error, message):
    with pytest.raises(error, match=message):
        build(**settings).train_model(adata, epochs=1, **arguments)


def test_forward_refuses_a_head_that_is_not_there(build, adata):
    model = build(do_mvc=False)
    batch = first(model.prepare_dataloader(adata, return_split="all"))
    with pytest.raises(ValueError, match="do_mvc=True"):
        model.forward(batch, MVC=True)


def test_parts_without_training_cells_are_refused(build, adata):
    adata.obs["split"] = "test"
    with pytest.raises(ValueError, match=r"part in obs\['split'\] named 'train'"):
        build().train_model(adata, epochs=1)


# Embeddings -----------------------------------------------------------------------------------------------------------


def test_cell_embeddings_equal_those_of_tl_embed(folder, adata):
    model = scGPTModel.from_pretrained(folder, device="cpu")
    for normalize in (True, False):
        sct.tl.embed(adata, folder, normalize=normalize)
        ours = model.predict_embeddings(PerturbationData(adata), batch_size=5, normalize=normalize)
        np.testing.assert_allclose(ours, adata.obsm["X_scGPT"], atol=1e-6)


def test_gene_embeddings_equal_those_of_tl_embed_genes(folder, adata):
    adata.var_names = [*adata.var_names[:-1], "UNKNOWN"]
    model = scGPTModel.from_pretrained(folder, device="cpu")
    sct.tl.embed_genes(adata, folder)
    found = model.predict_embeddings(adata, embedding_type="gene")
    np.testing.assert_array_equal(found, adata.varm["X_scGPT_genes"])
    assert np.isnan(found[-1]).all()
    assert model.predict_embeddings(embedding_type="gene").shape == (len(model.vocab), 16)


def test_embedding_needs_no_conditions_and_no_batches(build, adata):
    bare = adata.copy()
    bare.obs = bare.obs[[]]
    model = build(do_dab=True, num_batch_labels=2)
    np.testing.assert_array_equal(model.predict_embeddings(PerturbationData(bare)), model.predict_embeddings(adata))


@pytest.mark.parametrize("style", ["cls", "avg-pool", "w-pool"])
def test_a_cell_does_not_feel_its_neighbours(build, adata, style):
    model = build(cell_emb_style=style)
    together = model.predict_embeddings(adata)
    np.testing.assert_allclose(model.predict_embeddings(adata[:3]), together[:3], atol=1e-6)


def test_embeddings_of_nothing_are_refused(build, adata):
    model = build()
    with pytest.raises(ValueError, match="embedding_type"):
        model.predict_embeddings(adata, embedding_type="protein")
    with pytest.raises(ValueError, match="Expected `dataset`"):
        model.predict_embeddings()
    with pytest.raises(TypeError, match="to be an AnnData or a MuData|Expected an AnnData"):
        model.predict_embeddings(adata.X)


def test_genes_without_columns_are_refused(folder, adata):
    model = scGPTModel.from_pretrained(folder, gene_list=["TP53"], device="cpu")
    with pytest.raises(ValueError, match="Expected columns of the 1 genes"):
        model.predict_embeddings(adata)
