"""The object-style door under PerturbLab's names."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tools.screens.perturbation_data import PerturbationData
from screen_tables import screen


@pytest.fixture
def foreign():
    """The screen as another data set would label it."""
    adata = screen(8)
    labels = adata.obs.pop("condition").astype(str).str.removesuffix("+ctrl").str.replace("+", "_")
    adata.obs["perturbation"] = labels.replace("ctrl", "control").to_numpy()
    return adata


def test_cells_without_perturbations_can_be_wrapped(adata):
    data = PerturbationData(adata)
    assert len(data) == adata.n_obs
    assert data.split is None
    with pytest.raises(KeyError, match="Pass `perturb_col`"):
        data.pair_cells()


def test_the_steps_of_the_wrapper():
    data = PerturbationData(screen(8))
    data.pair_cells()
    data.split_data()
    assert data.adata.obsm["ctrl_indices"].shape == (len(data), 1)
    assert (data.adata.obs["condition"].iloc[data.ctrl_indices[:, 0]] == "ctrl").all()
    assert set(data.split.unique()) == {"train", "val", "test"}
    assert sum(data.part(name).n_obs for name in ("train", "val", "test")) == len(data)
    held_out = set(data.part("test").obs["condition"]) - {"ctrl"}
    assert held_out.isdisjoint(data.part("train").obs["condition"])


def test_gears_format_leaves_the_input_alone(foreign):
    data = PerturbationData(foreign, ignore_tags=("G7",))
    data.set_gears_format(delimiter="_")
    assert set(foreign.obs.columns) == {"perturbation", "cell_type", "batch"}
    assert "G7+ctrl" not in set(data.adata.obs["condition"])
    assert {"G0+G1", "G1+ctrl", "ctrl"} <= set(data.adata.obs["condition"])
    assert "gene_name" in data.adata.var
    data.compute_de_genes()
    assert "K562_G0+G1_1+1" in data.adata.uns["rank_genes_groups_cov_all"]


def test_labels_can_be_parsed_by_a_function(foreign):
    data = PerturbationData(foreign)
    data.set_gears_format(parse_fn=lambda label: sorted(label.split("_")))
    assert "G0+G1" in set(data.adata.obs["condition"])


def test_singles_are_held_out(foreign):
    data = PerturbationData(foreign)
    data.set_gears_format(delimiter="_")
    data.split_data("simulation", test_perts=["G1"])
    assert "G1+ctrl" in set(data.part("test").obs["condition"])


def test_ratios_become_shares():
    data = PerturbationData(screen(4))
    data.split_data(split_ratio=(0.5, 0.25, 0.25))
    assert data.adata.uns["split"]["params"]["method"] == "simulation"
    with pytest.raises(ValueError, match="add up to 1"):
        data.split_data(split_ratio=(0.5, 0.5, 0.5))


def test_named_parts():
    data = PerturbationData(screen(4))
    data.split_data(split_dict={"train": ["ctrl", "G0"], "test": ["G1"]})
    assert set(data.part("test").obs["condition"]) == {"G1+ctrl"}


def test_saving_and_loading(foreign, tmp_path):
    data = PerturbationData(foreign)
    data.set_gears_format(delimiter="_")
    data.split_data()
    data.pair_cells(num_samples=2)
    data.save(tmp_path / "screen.h5ad")
    again = PerturbationData.load(tmp_path / "screen.h5ad")
    np.testing.assert_array_equal(again.ctrl_indices, data.ctrl_indices)
    assert again.split.tolist() == data.split.tolist()
    assert (again.control_tag, again.perturb_col) == (("ctrl",), "condition")
    assert "perturbation_data" not in again.adata.uns


def test_a_foreign_file_is_refused(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="PerturbationData.save"):
        PerturbationData.load(tmp_path / "cells.h5ad")


def test_parts_need_a_split():
    with pytest.raises(ValueError, match="Run split_data"):
        PerturbationData(screen(4)).part("train")
