"""One perturbation on paper."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

import scgpt_tools as sct
from scgpt_tools.pl.perturbation import KINDS
from screens import screen


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def cells():
    """Predictions that are the truth plus one."""
    adata = screen(10)
    adata.layers["predicted"] = adata.X.toarray() + 1
    sct.pp.perturbation_de(adata)
    return adata


def medians(ax, kind):
    """Height of the middle line of each box of a kind, from the left."""
    colour = KINDS[kind].lower()
    boxes = [patch for patch in ax.patches if to_hex(patch.get_facecolor()) == colour]
    return boxes


def test_three_boxes_for_each_top_gene(cells):
    ax = sct.pl.perturbation_de(cells, "G0", n_genes=6, show=False)
    ranked = [str(name) for name in cells.uns["perturbation_de"]["names"]["G0+ctrl"][:6]]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == [f"{name} *" if name == "G0" else name for name in ranked]
    assert [len(medians(ax, kind)) for kind in KINDS] == [6, 6, 6]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["control (40 cells)", "observed (20 cells)", "predicted (20 cells)"]
    assert ax.get_title(loc="left") == "G0"


def test_boxes_show_the_change_from_the_mean_control(cells):
    ax = sct.pl.perturbation_de(cells, "G1+G0", genes=["G3"], show=False)
    dense = cells.X.toarray()[:, 3]
    conditions = cells.obs["condition"].to_numpy()
    base = dense[conditions == "ctrl"].mean()
    expected = {
        "control": dense[conditions == "ctrl"] - base,
        "observed": dense[conditions == "G0+G1"] - base,
        "predicted": dense[conditions == "G0+G1"] + 1 - base,
    }
    for kind, values in expected.items():
        (box,) = medians(ax, kind)
        heights = box.get_path().vertices[:, 1]
        assert [heights.min(), heights.max()] == pytest.approx(np.quantile(values, [0.25, 0.75]), abs=1e-5)


def test_layers_of_one_perturbation_stand_at_the_controls(cells):
    values = np.full(cells.shape, np.nan, dtype=np.float32)
    controls = (cells.obs["condition"] == "ctrl").to_numpy()
    values[controls] = 2.0
    cells.layers["predicted_G0"] = values
    ax = sct.pl.perturbation_de(cells, "G0+ctrl", show=False)
    assert "predicted (40 cells)" in [text.get_text() for text in ax.get_legend().get_texts()]
    cells.layers["predicted"] = values
    cells.uns["predicted"] = {"layers": np.array(["predicted"]), "perturbations": np.array(["G0"])}
    with pytest.raises(ValueError, match=r"Expected predictions of 'G1\+ctrl'.*found those of 'G0'"):
        sct.pl.perturbation_de(cells, "G1", show=False)


def test_scatter_has_a_point_for_each_gene(cells):
    ax = sct.pl.perturbation_scatter(cells, "G0+G1", n_labels=3, show=False)
    dense, conditions = cells.X.toarray().astype(float), cells.obs["condition"].to_numpy()
    change = dense[conditions == "G0+G1"].mean(axis=0) - dense[conditions == "ctrl"].mean(axis=0)
    genes, perturbed = (np.asarray(points.get_offsets()) for points in ax.collections)
    np.testing.assert_allclose(genes, np.column_stack([change, change + 1])[2:], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(perturbed, np.column_stack([change, change + 1])[:2], rtol=1e-4, atol=1e-6)
    texts = [text.get_text() for text in ax.texts]
    assert "Pearson 1.00" in texts
    assert len(texts) == 4


def test_figures_are_handed_over_and_axes_are_drawn_in(cells):
    figure, ax = plt.subplots()
    assert sct.pl.perturbation_scatter(cells, "G0", ax=ax, title="mine", show=False) is ax
    assert ax.get_title(loc="left") == "mine"
    assert sct.pl.perturbation_de(cells, "G0", ax=ax, return_fig=True) is figure
    assert sct.pl.perturbation_de(cells, "G0", return_fig=True, figsize=(3, 2)).get_size_inches().tolist() == [3, 2]


def test_what_is_absent_is_named(cells):
    with pytest.raises(ValueError, match=r"Expected a perturbation|G9"):
        sct.pl.perturbation_de(cells, "G9", show=False)
    with pytest.raises(KeyError, match="Did you mean 'predicted'"):
        sct.pl.perturbation_scatter(cells, "G0", predicted="predictd", show=False)
    with pytest.raises(KeyError, match="Run pp.perturbation_de first"):
        sct.pl.perturbation_de(cells, "G0", de_key="other", show=False)
    with pytest.raises(KeyError, match="gene"):
        sct.pl.perturbation_de(cells, "G0", genes=["G0", "NOPE"], show=False)
    cells.layers["predicted"][:] = np.nan
    with pytest.raises(ValueError, match="found NaN"):
        sct.pl.perturbation_de(cells, "G0", show=False)
