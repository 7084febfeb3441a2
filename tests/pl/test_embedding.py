"""Embeddings side by side."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from scgpt_tools.pl.embedding import embedding

TYPES = ("B", "NK", "T")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def cells(rng):
    labels = np.repeat(TYPES, [30, 20, 10])
    adata = ad.AnnData(obs=pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"c{i}" for i in range(60)]))
    centres = 8 * np.eye(3)[pd.factorize(labels)[0]]
    adata.obsm["X_scGPT"] = np.hstack([centres, np.zeros((60, 2))]) + rng.normal(size=(60, 5))
    adata.obsm["X_pca"] = rng.normal(size=(60, 4))
    adata.obsm["X_flat"] = rng.normal(size=(60, 2))
    return adata


def dots(panel) -> list[PathCollection]:
    return [artist for artist in panel.collections if isinstance(artist, PathCollection)]


def drawn(panel) -> np.ndarray:
    return np.concatenate([np.asarray(artist.get_offsets()) for artist in dots(panel)])


def looks(panel) -> set[tuple[str, bytes]]:
    """Colour and shape of each kind of dot."""
    return {(to_hex(artist.get_facecolor()[0]), artist.get_paths()[0].vertices.tobytes()) for artist in dots(panel)}


def test_a_panel_for_each_embedding_with_umap_where_needed(cells):
    before = cells.copy()
    figure = embedding(cells, "cell_type", return_fig=True)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("X_scGPT", "X_pca")
    assert drawn(left).shape == (60, 2)
    # The clusters of the embedding are clusters on paper.
    centres = [np.asarray(artist.get_offsets()).mean(axis=0) for artist in dots(left)]
    spread = max(np.asarray(artist.get_offsets()).std() for artist in dots(left))
    assert min(np.linalg.norm(a - b) for a, b in zip(centres, centres[1:], strict=False)) > spread / 2
    assert set(cells.obsm) == set(before.obsm)
    assert not cells.uns
    assert not cells.obsp


def test_the_seed_decides_the_umap(cells):
    first, again, other = (
        drawn(embedding(cells, "cell_type", use_rep="X_pca", rng=rng, show=False)) for rng in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_flat_embeddings_are_drawn_as_they_are(cells):
    ax = embedding(cells, "cell_type", use_rep="X_flat", show=False)
    assert set(map(tuple, drawn(ax))) == set(map(tuple, cells.obsm["X_flat"]))


def test_the_legend_lists_all_labels_beside_the_panels(cells):
    figure = embedding(cells, "cell_type", use_rep=["X_flat", "X_flat"], titles=["a", "b"], return_fig=True)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(TYPES)
    assert legend.get_title().get_text() == "cell_type"
    figure.canvas.draw()
    box = legend.get_window_extent()
    assert not any(box.overlaps(panel.get_window_extent()) for panel in figure.axes)
    assert box.x1 <= figure.bbox.x1
    assert [panel.get_title() for panel in figure.axes] == ["a", "b"]


@pytest.mark.parametrize("n_labels", [3, 10, 30])
def test_labels_differ_in_colour_or_shape(cells, n_labels):
    cells.obs["many"] = [f"t{i % n_labels:02}" for i in range(60)]
    ax = embedding(cells, "many", use_rep="X_flat", show=False)
    assert len(dots(ax)) == n_labels
    assert len(looks(ax)) == n_labels


def test_rare_labels_are_drawn_last(cells):
    ax = embedding(cells, "cell_type", use_rep="X_flat", show=False)
    assert [len(artist.get_offsets()) for artist in dots(ax)] == [30, 20, 10]


def test_cells_without_a_label_are_grey_and_first(cells):
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_categories(["T"])
    ax = embedding(cells, "cell_type", use_rep="X_flat", show=False)
    assert to_hex(dots(ax)[0].get_facecolor()[0]) == "#bbbbbb"
    assert len(drawn(ax)) == 60


@pytest.mark.parametrize("palette", [["red", "lime", "blue"], {"T": "blue", "NK": "lime", "B": "red"}])
@pytest.mark.parametrize("where", ["argument", "uns"])
def test_a_palette_is_taken(cells, palette, where):
    if where == "uns":
        cells.uns["cell_type_colors"] = np.array(palette) if isinstance(palette, list) else palette
    ax = embedding(cells, "cell_type", use_rep="X_flat", palette=palette if where == "argument" else None, show=False)
    assert [to_hex(artist.get_facecolor()[0]) for artist in dots(ax)] == ["#ff0000", "#00ff00", "#0000ff"]


def test_axes_of_ones_own(cells):
    figure, panels = plt.subplots(1, 2)
    drawn_in = embedding(cells, "cell_type", use_rep=["X_flat", "X_flat"], ax=panels, show=False)
    assert drawn_in == list(panels)
    assert embedding(cells, "cell_type", use_rep="X_flat", ax=panels[0], show=False) is panels[0]
    assert panels[1].get_legend() is not None
    assert not figure.legends


def test_showing_returns_nothing(cells, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert embedding(cells, "cell_type", use_rep="X_flat", show=True) is None
    assert shown == [True]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"color": "celltype"}, KeyError, "Did you mean 'cell_type'"),
        ({"color": "infinite"}, KeyError, "column of `obs` or gene named 'infinite'"),
        ({"color": ["cell_type", "GENEX"]}, KeyError, "Did you mean 'GENE"),
        ({"color": "GENE1", "layer": "counts"}, KeyError, "Found no key in `layers`"),
        ({"color": ["cell_type", "score"], "titles": ["one"]}, ValueError, "as many `titles` as colours, 2"),
        ({"cmap": "no such"}, ValueError, "`cmap`"),
        ({"use_rep": "X_scgpt"}, KeyError, "Available: 'X_scGPT'"),
        ({"titles": ["one", "two"]}, ValueError, "as many `titles`"),
        ({"palette": ["red"]}, ValueError, "colour for each"),
        ({"ax": []}, ValueError, "as many `ax`"),
        ({"rng": -1}, ValueError, "at least 0"),
    ],
)
def test_bad_input_is_refused(change, error, message, cells):
    cells.obs["score"] = np.linspace(0, 1, 60)
    cells = with_genes(cells)
    with pytest.raises(error, match=message):
        embedding(cells, **({"color": "cell_type", "use_rep": "X_flat"} | change))
    assert not plt.get_fignums()


def with_genes(cells: ad.AnnData) -> ad.AnnData:
    counts = np.arange(120, dtype=np.float32).reshape(60, 2)
    return ad.AnnData(
        sp.csr_matrix(counts), obs=cells.obs, obsm=dict(cells.obsm), var=pd.DataFrame(index=["GENE1", "GENE2"])
    )


def test_genes_and_numbers_have_a_colour_bar_and_high_values_on_top(cells):
    cells = with_genes(cells)
    cells.obs["score"] = np.r_[np.nan, np.linspace(0, 1, 59)]
    figure = embedding(cells, ["cell_type", "GENE2", "score"], use_rep="X_flat", return_fig=True)
    panels = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == ["cell_type", "GENE2", "score"]
    (gene,) = dots(panels[1])
    np.testing.assert_array_equal(gene.get_array(), cells.X.toarray()[:, 1])
    missing, known = dots(panels[2])
    assert (len(missing.get_offsets()), len(known.get_offsets())) == (1, 59)
    assert len(figure.axes) == 5
    assert panels[0].get_legend() is not None


def test_several_colours_of_several_embeddings_are_a_grid(cells):
    cells = with_genes(cells)
    panels = embedding(cells, ["cell_type", "GENE1"], use_rep=["X_flat", "X_flat"], titles=["a", "b"], show=False)
    assert [panel.get_title() for panel in panels] == ["a", "b", "", ""]
    rows = [panel.get_subplotspec().rowspan.start for panel in panels]
    assert rows == [0, 0, 1, 1]


def test_embeddings_that_are_there_are_drawn(cells):
    del cells.obsm["X_pca"]
    assert embedding(cells, "cell_type", show=False).get_title() == "X_scGPT"
    del cells.obsm["X_scGPT"]
    assert embedding(cells, "cell_type", show=False).get_title() == "X_flat"
    del cells.obsm["X_flat"]
    with pytest.raises(KeyError, match=r"found none. Run sct\.tl\.embed"):
        embedding(cells, "cell_type")


def test_black_labels_are_seen_on_dark_ground(cells):
    cells.obs["many"] = [f"t{i % 8}" for i in range(60)]
    with plt.style.context("dark_background"):
        looked = looks(embedding(cells, "many", use_rep="X_flat", show=False))
    assert "#000000" not in {colour for colour, _ in looked}
    assert "#ffffff" in {colour for colour, _ in looked}


def test_a_list_among_the_labels_is_refused(cells):
    labels = cells.obs["cell_type"].astype(object)
    labels.iloc[2] = ["B"]
    cells.obs["cell_type"] = labels
    with pytest.raises(ValueError, match=r"found \['B'\] in row 2"):
        embedding(cells, "cell_type", use_rep="X_flat", show=False)


@pytest.mark.parametrize("color", ["many", ["many", "batch"]])
def test_long_legends_leave_panels_their_size(cells, color):
    cells.obs["many"] = [f"a type of cells with a long name {i % 25}" for i in range(60)]
    cells.obs["batch"] = "one"
    figure = embedding(cells, color, use_rep="X_flat", return_fig=True)
    figure.canvas.draw()
    assert all(panel.get_window_extent().width / figure.dpi > 3 for panel in figure.axes)
    given = embedding(cells, color, use_rep="X_flat", figsize=(4, 3), return_fig=True)
    assert given.get_figwidth() == 4
