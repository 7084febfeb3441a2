"""``scGPTPerturbationModel``: pairs, flags, training and predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools import PerturbationData, scGPTConfig, scGPTPerturbationModel
from scgpt_tools.screens.annotations import checksum_of_cells

GENES = [f"G{i}" for i in range(40)]


@pytest.fixture
def build(config):
    """Function that makes an untrained model with other settings."""

    def make(genes=GENES, **settings) -> scGPTPerturbationModel:
        torch.manual_seed(0)
        return scGPTPerturbationModel(replace(config, **settings), gene_list=genes, device="cpu").eval()

    return make


def dense(matrix):
    return np.asarray(matrix.todense(), dtype=np.float32)


def test_minibatches_are_pairs_with_flags(build, dataset):
    dataset.pair_cells()
    adata, model = dataset.adata, build()
    for batch in model.prepare_dataloader(dataset, batch_size=16, return_split="train"):
        assert list(batch) == [
            "src", "values", "target_values", "input_pert_flags", "src_key_padding_mask", "index",
        ]  # fmt: skip
        rows = batch["index"].numpy()
        np.testing.assert_array_equal(batch["src"][0].numpy(), model.vocab.ids(adata.var_names))
        np.testing.assert_array_equal(batch["target_values"].numpy(), dense(adata.X[rows]))
        controls = adata.obsm["ctrl_indices"][rows, 0]
        np.testing.assert_array_equal(batch["values"].numpy(), dense(adata.X[controls]))
        for flags, condition in zip(batch["input_pert_flags"], adata.obs["condition"].iloc[rows], strict=True):
            flagged = {str(name) for name in adata.var_names[flags.numpy() == 1]}
            assert flagged == set(condition.split("+")) - {"ctrl"}


def test_cells_are_paired_where_they_are_not_and_the_table_stays(build, adata):
    batch = next(iter(build().prepare_dataloader(adata, return_split="all")))
    assert "ctrl_indices" not in adata.obsm
    controls = dense(adata[adata.obs["condition"] == "ctrl"].X)
    assert all((controls == values).all(axis=1).any() for values in batch["values"].numpy())


def test_the_loss_is_the_squared_error_over_all_genes(build, adata):
    model = build()
    batch = next(iter(model.prepare_dataloader(adata, return_split="train")))
    output = model.forward(batch)
    losses = model.compute_loss(batch, output)
    assert list(losses) == ["loss", "loss_mse"]
    torch.testing.assert_close(losses["loss"], (output["mlm_output"] - batch["target_values"]).square().mean())
    torch.testing.assert_close(model.compute_loss(batch)["loss"], losses["loss"])
    assert model(batch, CLS=True, ECS=True, MVC=True).keys() >= {"cls_output", "loss_ecs", "mvc_output"}


def test_default_settings_can_train_and_predict(adata):
    """Those of PerturbLab cannot: ``n_input_bins=None`` fails in its network."""
    config = scGPTConfig(d_model=16, nhead=2, d_hid=16, nlayers=1)
    torch.manual_seed(0)
    model = scGPTPerturbationModel(config, gene_list=GENES, device="cpu")
    history = model.train_model(adata, epochs=3, lr=3e-3)
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert len(history["valid_loss"]) == 3
    assert model.predict_perturbation(adata).shape == adata.shape


def test_predictions_equal_those_of_tl_predict_perturbation(build, dataset):
    dataset.pair_cells(num_samples=3)
    model, adata = build(genes=GENES[:36]), dataset.adata
    found = model.predict_perturbation(dataset, batch_size=7)
    sct.tl.predict_perturbation(adata, None, model.cell_model)
    np.testing.assert_allclose(found, adata.layers["predicted"], atol=1e-6)
    unknown = dense(adata.X[adata.obsm["ctrl_indices"][:, 0]])[:, 36:]
    np.testing.assert_array_equal(found[:, 36:], unknown)
    tensor = model.predict_perturbation(dataset, return_numpy=False)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), found, atol=1e-6)


def test_predictions_that_are_not_finite_are_refused(build, dataset):
    model = build()
    with torch.no_grad():
        model.cell_model.embedder.genes.table.weight[3] = torch.nan
    with pytest.raises(ValueError, match="Expected the weights of .* to be finite"):
        model.predict_perturbation(dataset)


def test_predictions_are_not_drawn(build, dataset):
    """With zero probabilities the original samples them in eval mode."""
    model = build(explicit_zero_prob=True)
    np.testing.assert_array_equal(model.predict_perturbation(dataset), model.predict_perturbation(dataset))


def test_a_perturbation_changes_the_prediction(build, dataset):
    model = build()
    model.train_model(dataset, epochs=1, lr=1e-2)
    controls = dataset.adata[dataset.adata.obs["condition"] == "ctrl"].copy()
    told = controls.copy()
    told.obs["condition"] = ["G0+ctrl", *["ctrl"] * (told.n_obs - 1)]
    told.obsm["ctrl_indices"] = np.r_[1, 1 : told.n_obs][:, None]
    controls.obsm["ctrl_indices"] = np.arange(controls.n_obs)[:, None]
    for table in (told, controls):
        table.uns["ctrl_indices"] = {"cells": checksum_of_cells(table)}
    assert not np.allclose(model.predict_perturbation(told)[0], model.predict_perturbation(controls)[1])


def test_training_is_reproducible_by_seed(build, adata):
    def trained(seed):
        model = build()
        model.train_model(adata, epochs=1, lr=1e-3, seed=seed)
        return model.predict_perturbation(adata)

    np.testing.assert_array_equal(trained(3), trained(3))
    assert not np.array_equal(trained(3), trained(4))


def test_checkpoints_of_a_run_predict_the_same(build, adata, tmp_path):
    model = build()
    history = model.train_model(adata, epochs=2, lr=1e-3, save_dir=tmp_path)
    best = 1 + int(np.argmin(history["valid_loss"]))
    for name in ("best", f"epoch_{best}"):
        again = scGPTPerturbationModel.from_pretrained(tmp_path / name, device="cpu")
        np.testing.assert_array_equal(again.predict_perturbation(adata), model.predict_perturbation(adata))


def test_long_cells_train_on_some_genes_and_predict_all(build, adata):
    model = build(max_seq_len=10)
    batch = next(iter(model.prepare_dataloader(adata, return_split="train")))
    assert batch["src"].shape[1] == 10
    assert model.predict_perturbation(adata).shape == adata.shape
    assert np.isfinite(model.predict_perturbation(adata)).all()


def test_other_spellings_of_conditions(build, adata):
    plain = build().predict_perturbation(adata)
    labels = adata.obs["condition"].astype(str).str.replace("+ctrl", "").str.replace("+", "_")
    adata.obs["perturbation"] = labels.replace("ctrl", "control").to_numpy()
    del adata.obs["condition"]
    found = build(perturbation_delimiter="_").predict_perturbation(PerturbationData(adata, control_tag="control"))
    np.testing.assert_array_equal(found, plain)


def test_ignored_cells_are_nowhere(build, adata):
    labels = adata.obs["condition"].astype(str).to_numpy(dtype=object)
    labels[:5] = "unassigned"
    adata.obs["condition"] = labels
    dataset = PerturbationData(adata, ignore_tags=["unassigned"])
    model = build()
    found = model.predict_perturbation(dataset)
    assert np.isnan(found[:5]).all()
    assert np.isfinite(found[5:]).all()
    rows = torch.cat([batch["index"] for batch in model.prepare_dataloader(dataset, return_split="all")])
    assert sorted(rows.tolist()) == list(range(5, adata.n_obs))


def test_genes_that_the_model_cannot_be_told_of_are_named(build, adata):
    """PerturbLab asks its model for no perturbation instead."""
    without = adata[:, [name for name in adata.var_names if name not in ("G0", "G3")]].copy()
    model = build()
    with pytest.raises(ValueError, match="no column for G0, G3"):
        model.predict_perturbation(without)
    with pytest.warns(UserWarning, match=r"\d conditions .* are left out.*no column for G0, G3"):
        model.train_model(without, epochs=1)
    with pytest.warns(UserWarning, match="no column for G0, G3"):
        loader = model.prepare_dataloader(without, return_split="all")
    conditions = without.obs["condition"].to_numpy()
    rows = torch.cat([batch["index"] for batch in loader]).numpy()
    assert set(conditions[rows]) == {c for c in set(conditions) if not {"G0", "G3"} & set(c.split("+"))}


def test_genes_without_a_token_are_named(build, adata):
    with pytest.raises(ValueError, match="no token for G7"):
        build(genes=[name for name in GENES if name != "G7"]).predict_perturbation(adata)


@pytest.mark.parametrize("flag", ["CLS", "CCE", "MVC", "ECS"])
def test_other_terms_are_refused(build, adata, flag):
    model = build()
    with pytest.raises(ValueError, match=rf"found \['{flag}'\]"):
        model.train_model(adata, **{flag: True})
    batch = next(iter(model.prepare_dataloader(adata, return_split="all")))
    with pytest.raises(ValueError, match=rf"found \['{flag}'\]"):
        model.compute_loss(batch, **{flag: True})


def test_refusals(build, adata):
    model = build(do_mvc=False)
    with pytest.raises(ValueError, match="`mask_ratio` to be 0"):
        model.prepare_dataloader(adata, mask_ratio=0.4)
    batch = next(iter(model.prepare_dataloader(adata, return_split="all")))
    with pytest.raises(ValueError, match="do_mvc=True"):
        model.forward(batch, MVC=True)
    with pytest.raises(ValueError, match="Expected control cells, labelled 'ctrl' or 'control' in obs"):
        model.predict_perturbation(adata[adata.obs["condition"] != "ctrl"])
    adata.obs = adata.obs.drop(columns="condition")
    with pytest.raises(KeyError, match="perturb_col"):
        model.predict_perturbation(adata)


def test_counts_are_warned_about(build, adata):
    adata.X.data = np.expm1(adata.X.data).round()
    with pytest.warns(UserWarning, match="Expected log-normalised"):
        build().predict_perturbation(adata)
