"""One perturbation on paper."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

import scgpt_tools as sct
from scgpt_tools.pl.perturbation import KINDS
from screen_tables import screen


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


def test_several_models_stand_side_by_side(cells):
    cells.layers["other"] = cells.layers["predicted"] * 2
    ax = sct.pl.perturbation_de(cells, "G0", predicted=["predicted", "other"], n_genes=3, show=False)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["control (40 cells)", "observed (20 cells)", "predicted (20 cells)", "other (20 cells)"]
    assert len(ax.patches) == 12
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert len(diamonds) == 6
    assert len({line.get_markerfacecolor() for line in diamonds}) == 2
    with pytest.raises(KeyError, match="absent"):
        sct.pl.perturbation_de(cells, "G0", predicted=["predicted", "absent"], show=False)
    with pytest.raises(ValueError, match="at most 5"):
        sct.pl.perturbation_de(cells, "G0", predicted=list("abcdef"), show=False)


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
    assert ax.get_title(loc="right") == "Pearson 1.00"
    assert len(ax.texts) == 3


def test_names_and_legend_of_the_scatter_hide_nothing(cells):
    ax = sct.pl.perturbation_scatter(cells, "G0+G1", n_labels=8, show=False)
    figure = ax.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    legend = ax.get_legend().get_window_extent()
    points = np.concatenate([ax.transData.transform(drawn.get_offsets()) for drawn in ax.collections])
    assert not any(legend.contains(*point) for point in points)


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


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def predicted_only(adata, name="G9", layer="predicted_G9"):
    """What tl.predict_perturbation leaves of a perturbation that no cell has."""
    values = np.full(adata.shape, np.nan, dtype=np.float32)
    controls = (adata.obs["condition"] == "ctrl").to_numpy()
    values[controls] = adata.X.toarray()[controls]
    values[controls, 5] += 3
    values[controls, 9] -= 2
    adata.layers[layer] = values
    adata.uns["predicted"] = {"layers": np.array([layer]), "perturbations": np.array([name])}
    return adata


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("layer", ["predicted", "predicted_G9"])
def test_a_perturbation_that_no_cell_has_is_shown_beside_the_controls(cells, ranked, layer):
    if not ranked:
        del cells.uns["perturbation_de"]
    del cells.layers["predicted"]
    ax = sct.pl.perturbation_de(predicted_only(cells, layer=layer), "G9", n_genes=3, show=False)
    assert texts(ax) == ["control (40 cells)", "predicted (40 cells)"]
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == ["G5", "G9 *"]
    assert ax.get_xlabel() == "genes with the largest predicted change"
    assert ax.get_title(loc="left") == "G9 (no observed cells)"
    with pytest.raises(ValueError, match="found predictions only"):
        sct.pl.perturbation_scatter(cells, "G9", show=False)


def test_without_a_ranking_the_prediction_chooses_the_genes(cells):
    del cells.uns["perturbation_de"]
    cells.layers["predicted"][:, [7, 3]] += [2, 1]
    ax = sct.pl.perturbation_de(cells, "G0", n_genes=2, show=False)
    assert [len(medians(ax, kind)) for kind in KINDS] == [2, 2, 2]
    assert ax.get_xlabel() == "genes with the largest predicted change"
    change = np.abs(
        cells.layers["predicted"][cells.obs["condition"] == "G0+ctrl"].mean(axis=0)
        - cells.X[(cells.obs["condition"] == "ctrl").to_numpy()].toarray().mean(axis=0)
    )
    assert [label.get_text().split(" ")[0] for label in ax.get_xticklabels()] == [
        f"G{i}" for i in np.argsort(-change, kind="stable")[:2]
    ]
    assert sct.pl.perturbation_de(cells, "G0", genes=["G3"], show=False).get_xlabel() == ""


def test_the_order_of_genes_does_not_matter(cells):
    predicted_only(cells, name="G1+G0", layer="predicted_G1+G0")
    ax = sct.pl.perturbation_de(cells, "G0+G1", show=False)
    assert texts(ax) == ["control (40 cells)", "observed (20 cells)", "predicted (40 cells)"]


def test_controls_need_no_labels(cells):
    controls = cells[cells.obs["condition"] == "ctrl"].copy()
    predicted_only(controls)
    del controls.obs["condition"]
    assert texts(sct.pl.perturbation_de(controls, "G9", condition_key=None, show=False)) == [
        "control (40 cells)",
        "predicted (40 cells)",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "G8"}, "Found no perturbation, of cells or predicted, 'G8'"),
        ({"perturbation": "ctrl"}, "to name genes"),
        ({"perturbation": ["G0"]}, "to be a text"),
        ({"genes": "G0"}, "list of texts"),
        ({"genes": []}, "at least 1"),
        ({"n_genes": 0}, "at least 1"),
        ({"predicted": None}, "to be a list of texts"),
        ({"layer": ["X"]}, "to be a text"),
        ({"figsize": 3}, "a width and a height"),
        ({"show": "no"}, "True or False"),
    ],
    ids=str,
)
def test_other_arguments_are_refused(cells, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sct.pl.perturbation_de(cells, **{"perturbation": "G0", "show": False} | options)
