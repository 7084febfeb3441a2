from __future__ import annotations

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.models.attention_maps import first_ranks, ranks_of_ranks

GENES = ["CD3D", "CD3E", "CD79A", "MS4A1", "LYZ", "S100A8", "NKG7", "GNLY", "CST3", "FCER1A"]


@pytest.fixture(scope="module")
def model():
    return sct.CellModel.from_pretrained("scgpt-demo")


@pytest.fixture
def cells():
    table = sct.datasets.pbmc_demo()
    kinds = table.obs["cell_type"].isin(["CD14+ Monocyte", "CD19+ B"])
    return table[kinds][:24].copy()


@pytest.fixture
def genes(cells):
    return [gene for gene in GENES if gene in cells.var_names]


def by_hand(model, cells, genes, layer, heads):
    """Softmax attention of the written-out backend, averaged over cells and heads, without the cell token."""
    part = cells[:, cells.var_names.isin(genes)]
    maps = []
    for row in range(part.n_obs):
        sct_batch = batch_of(model, part[row].copy())
        with torch.no_grad():
            weights = model(sct_batch, (), attention="eager").attention[layer][0]
        maps.append(weights[heads].mean(0)[1:, 1:].numpy())
    return np.mean(maps, axis=0)


def batch_of(model, cell):
    from dataclasses import replace

    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer(replace(model.config.tokenizer, genes="all", length=None), model.vocabulary)
    source = RowSource(cell)
    features = FeatureTable.from_var(cell.var, model.vocabulary)
    return tokenizer(source.take(np.arange(1)), features, source.keys)


@pytest.mark.parametrize(("layer", "heads"), [(-1, None), (0, [1])])
def test_softmax_attention_is_that_of_the_network(model, cells, genes, layer, heads):
    maps = sct.tl.attention(
        cells, model, genes=genes, layer=layer, heads=heads, normalise="softmax", show_progress=False
    )
    wanted = by_hand(model, cells, genes, layer, heads or slice(None))
    np.testing.assert_allclose(maps.layers["all cells"], wanted, atol=1e-5)
    assert list(maps.obs_names) == list(maps.var_names) == [gene for gene in cells.var_names if gene in genes]
    assert maps.uns["attention"]["n_cells"] == {"all cells": 24}


def test_groups_are_averaged_by_themselves(model, cells, genes):
    maps = sct.tl.attention(cells, model, genes=genes, groupby="cell_type", show_progress=False)
    for group in ("CD14+ Monocyte", "CD19+ B"):
        own = cells[cells.obs["cell_type"] == group].copy()
        alone = sct.tl.attention(own, model, genes=genes, show_progress=False)
        np.testing.assert_allclose(maps.layers[group], alone.layers["all cells"], atol=1e-6)


def test_the_original_leaves_a_cell_out_and_counts_it(model, cells, genes):
    ours = sct.tl.attention(cells[1:].copy(), model, genes=genes, normalise="none", show_progress=False)
    theirs = sct.tl.attention(cells, model, genes=genes, normalise="none", upstream=True, show_progress=False)
    np.testing.assert_allclose(theirs.layers["all cells"] * 24, ours.layers["all cells"] * 23, rtol=1e-4, atol=1e-3)


def test_targets_are_ranked_by_attention_and_by_its_difference(model, cells, genes):
    maps = sct.tl.attention(cells, model, genes=genes, groupby="cell_type", show_progress=False)
    table = sct.tl.attention_targets(maps, "LYZ", group="CD14+ Monocyte", n_genes=3)
    column = maps.to_df(layer="CD14+ Monocyte")["LYZ"].drop("LYZ")
    assert list(table["gene"]) == list(column.sort_values(ascending=False, kind="stable").index[:3])
    difference = sct.tl.attention_targets(maps, "LYZ", group="CD14+ Monocyte", reference="CD19+ B", n_genes=None)
    wanted = column - maps.to_df(layer="CD19+ B")["LYZ"].drop("LYZ")
    np.testing.assert_allclose(difference.set_index("gene")["difference"].loc[wanted.index], wanted)
    assert difference["difference"].is_monotonic_decreasing


def test_equal_ranks_share_their_mean():
    products = torch.tensor([[[3.0, 1.0, 2.0], [6.0, 4.0, 5.0], [1.0, 2.0, 3.0]]])
    assert first_ranks(products)[0].tolist() == [[2, 0, 1], [2, 0, 1], [0, 1, 2]]
    shared = ranks_of_ranks(products)[0] * 3
    assert shared.tolist() == [[1.5, 0.5, 0.5], [1.5, 0.5, 0.5], [0.0, 2.0, 2.0]]
    in_order = ranks_of_ranks(products, ties_by_order=True)[0] * 3
    assert in_order.tolist() == [[1, 0, 0], [2, 1, 1], [0, 2, 2]]


def test_ranks_are_places_of_a_stable_sort():
    products = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    products[0, 0, :4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    wanted = products.argsort(dim=-1, stable=True).argsort(dim=-1)
    assert torch.equal(first_ranks(products), wanted)
    again = wanted.argsort(dim=-2, stable=True).argsort(dim=-2) / 40
    assert torch.equal(ranks_of_ranks(products, ties_by_order=True), again)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": 9}, ValueError, "`layer` to be below the"),
        ({"layer": -9}, ValueError, "`layer` to be at least"),
        ({"layer": 1.5}, TypeError, "`layer` to be a whole number"),
        ({"heads": [0, 0]}, ValueError, "each once"),
        ({"heads": 1}, TypeError, "`heads` to be a list"),
        ({"normalise": "ranks"}, ValueError, "'rank', 'softmax', 'none'"),
        ({"groupby": "celltype"}, KeyError, "Did you mean 'cell_type'"),
        ({"genes": ["LYZ", "nothing"]}, KeyError, "'nothing'"),
        ({"genes": "LYZ"}, TypeError, "`genes` to be a list of texts"),
        ({"upstream": "yes"}, TypeError, "True or False"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, cells, options, error, message):
    with pytest.raises(error, match=message):
        sct.tl.attention(cells, model, **{"genes": GENES[4:6], "show_progress": False, **options})


def test_a_group_has_to_be_named_where_there_are_several(model, cells, genes):
    maps = sct.tl.attention(cells, model, genes=genes, groupby="cell_type", show_progress=False)
    with pytest.raises(ValueError, match="`group` to be one of"):
        sct.tl.attention_targets(maps, "LYZ")
    with pytest.raises(KeyError, match="'GATA1'"):
        sct.tl.attention_targets(maps, "GATA1", group="CD19+ B")


def test_attention_that_is_not_finite_is_refused(cells, genes):
    damaged = sct.CellModel.from_pretrained("scgpt-demo")
    with torch.no_grad():
        damaged.encoder.blocks[0].attention.query.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="Expected the weights of 'scgpt-demo' to be finite"):
        sct.tl.attention(cells, damaged, genes=genes, show_progress=False)
