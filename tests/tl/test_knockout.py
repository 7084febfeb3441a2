"""Genes changed in silico."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.data.rows import RowSource
from scgpt_tools.inference.knockouts import Knockouts
from scgpt_tools.nn.heads import AffineConfig
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.orders import draws

QUIET = {"show_progress": False, "min_cells": 1, "n_null": None}
RAW = {"values": "raw", "bins": None}


@pytest.fixture
def reader(make_model):
    """A model whose tokens depend on their own gene only, so that a change of the table is a change of one token."""
    return make_model(**RAW).eval()


def embedded(adata, model):
    sct.tl.embed(adata, model, key_added="now", show_progress=False)
    return adata.obsm["now"]


def moved(adata, model, gene, change):
    """Distances of cells after a change of their values, by embedding both tables."""
    before = embedded(adata.copy(), model)
    other = adata.copy()
    values = other.X.toarray()
    column = other.var_names.get_loc(gene)
    values[:, column] = change(values, column)
    other.X = values
    return embedded(other, model) - before


def top(values, known):
    return np.where(values[:, known] > 0, values[:, known], 0).max(axis=1)


def test_without_its_gene_a_cell_is_that_of_a_table_without(adata, reader):
    found = sct.tl.knockout(adata, reader, genes=["GENE5", "GENE1"], **QUIET)
    assert list(found.obs_names) == ["GENE1", "GENE5"]
    for gene in found.obs_names:
        move = moved(adata, reader, gene, lambda values, column: 0)
        own = adata[:, gene].X.toarray().ravel() > 0
        row = found.obs.loc[gene]
        assert row["n_changed"] == own.sum()
        assert row["n_cells"] == 12
        assert row["mean_value"] == pytest.approx(adata[own, gene].X.mean())
        assert row["shift"] == pytest.approx(np.linalg.norm(move[own], axis=1).mean(), rel=1e-4)
        np.testing.assert_allclose(found[gene].obsm["displacement"][0], move.mean(axis=0), atol=1e-6)
        assert row["displacement"] == pytest.approx(np.linalg.norm(move.mean(axis=0)), rel=1e-3)
    assert found.uns["knockout"]["meaning"].endswith("no causal estimate")


def test_zero_keeps_the_token(adata, make_model):
    model = make_model(genes="all", **RAW).eval()
    found = sct.tl.knockout(adata, model, genes=["GENE1"], how="zero", **QUIET)
    move = moved(adata, model, "GENE1", lambda values, column: 0)
    own = adata[:, "GENE1"].X.toarray().ravel() > 0
    assert found.obs["shift"].item() == pytest.approx(np.linalg.norm(move[own], axis=1).mean(), rel=1e-4)
    without = sct.tl.knockout(adata, model, genes=["GENE1"], **QUIET)
    assert without.obs["n_changed"].item() == own.sum()  # of cells with a token of zero nothing is taken
    assert without.obs["shift"].item() != pytest.approx(found.obs["shift"].item(), rel=1e-2)


@pytest.mark.parametrize("genes", ["expressed", "all"])
def test_at_its_most_a_gene_is_the_highest_of_each_cell(adata, make_model, genes):
    model = make_model(genes=genes, **RAW).eval()
    known = [place for place, name in enumerate(adata.var_names) if name in model.vocabulary]
    values = adata.X.toarray()
    highest = top(values, known)
    for gene in ("GENE1", "GENE4"):
        own = values[:, adata.var_names.get_loc(gene)] < highest
        found = sct.tl.knockout(adata, model, genes=[gene], how="max", **QUIET)
        move = moved(adata, model, gene, lambda values, column: top(values, known))
        assert found.obs["n_changed"].item() == own.sum()
        np.testing.assert_allclose(found.obsm["displacement"][0], move.mean(axis=0), atol=1e-5)


def test_other_tokens_keep_their_bins(adata, model):
    """Without the highest gene all others would move up by ranks."""
    found = sct.tl.knockout(adata, model, genes=["GENE1"], n_cells=None, **QUIET)
    source, features = RowSource(adata), FeatureTable.from_var(adata.var, model.vocabulary)
    shifts = []
    for row in np.flatnonzero(adata[:, "GENE1"].X.toarray().ravel()):
        batch = model.tokenizer(source.take([row]), features, source.keys[[row]])
        kept = batch.genes[0] != model.vocabulary["GENE1"]
        less = batch.map(lambda tensor, kept=kept: tensor[:, kept], "token")
        with torch.no_grad():
            cells = torch.nn.functional.normalize(torch.cat([model.embed_cells(part) for part in (batch, less)]))
        shifts.append(float((cells[0] - cells[1]).norm()))
    assert found.obs["shift"].item() == pytest.approx(np.mean(shifts), rel=1e-4)


def test_groups_stand_by_themselves_in_any_batch_size(adata, model):
    genes = ["GENE1", "GENE4", "GENE5"]
    found = sct.tl.knockout(adata, model, genes=genes, groupby="cell_type", batch_size=3, expression="masked", **QUIET)
    assert list(found.obs["group"][:3]) == ["B", "NK", "T"]
    for group in ("B", "T", "NK"):
        alone = sct.tl.knockout(
            adata[adata.obs["cell_type"] == group].copy(), model, genes=genes, expression="masked", **QUIET
        )
        own = found[(found.obs["group"] == group).to_numpy()]
        for name in ("n_cells", "n_changed", "mean_value", "shift", "displacement"):
            np.testing.assert_allclose(own.obs[name], alone.obs[name], rtol=1e-4)
        np.testing.assert_allclose(own.X, alone.X, atol=1e-5)


@pytest.mark.parametrize("expression", ["masked", "generated"])
def test_predicted_expression_is_that_of_the_head_with_and_without(adata, make_model, expression):
    model = make_model(config={"heads": make_model().config.heads}).eval()
    cell = adata[[1]].copy()
    found = sct.tl.knockout(cell, model, genes=["GENE1"], expression=expression, rng=3, **QUIET)
    source, features = RowSource(cell), FeatureTable.from_var(cell.var, model.vocabulary)
    batch = model.tokenizer(source.take([0]), features, source.keys)
    bits = draws(3, source.keys[:, None], batch.genes.numpy(), 4)
    hidden = torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53 < 0.4)
    hidden[:, 0] = False
    gene = batch.genes == model.vocabulary["GENE1"]
    assert hidden.any()
    assert not (hidden & gene).any()
    marked = batch.replace(values=batch.values.masked_fill(hidden, -1.0))
    if expression == "generated":
        marked = marked.replace(generated=hidden)
    with torch.no_grad():
        with_gene, without = (
            model(part, ("expression",))["expression"][0]
            for part in (marked, marked.map(lambda tensor: tensor[:, ~gene[0]], "token"))
        )
    wanted = without[hidden[0][~gene[0]]] - with_gene[hidden[0]]
    names = [model.vocabulary.tokens[number] for number in batch.genes[0][hidden[0]].tolist()]
    np.testing.assert_allclose(found.to_df().loc["GENE1", names], wanted, atol=1e-5)
    assert found.to_df().loc["GENE1"].drop(names).isna().all()
    assert found.n_vars == 20


def test_random_genes_say_what_is_much():
    cells = sct.datasets.pbmc_demo()
    found = sct.tl.knockout(cells, "scgpt-demo", genes=["LYZ", "NKG7"], n_cells=60, n_null=40, show_progress=False)
    assert list(found.obs["role"].value_counts()[["random", "asked"]]) == [40, 2]
    asked = found.obs[found.obs["role"] == "asked"]
    assert (asked["p_value"] >= 1 / 41).all()
    assert asked.loc["NKG7", "z_score"] > 1
    assert asked.loc["NKG7", "p_value"] < 0.2
    assert (asked["q_value"] >= asked["p_value"]).all()
    assert found.obs["q_value"].isna().sum() == 40
    # Genes that are like those asked for, not like all.
    random = found.obs[found.obs["role"] == "random"]
    assert random["n_changed"].median() > 15


def test_genes_are_random_to_each_other_where_all_are_asked_for():
    cells = sct.datasets.pbmc_demo()[:, :120].copy()
    with pytest.warns(UserWarning, match="at least min_cells=10 cells that a change"):
        found = sct.tl.knockout(cells, "scgpt-demo", n_cells=40, show_progress=False)
    assert (found.obs["role"] == "asked").all()
    tested = found.obs["p_value"].dropna()
    assert len(tested) > 25
    assert tested.mean() == pytest.approx(0.5, abs=0.05)
    assert tested.min() == pytest.approx(1 / len(tested))


def test_finished_genes_are_not_computed_again(adata, model, tmp_path, monkeypatch):
    computed = []
    shifts = Knockouts.shifts
    monkeypatch.setattr(
        Knockouts, "shifts", lambda run, genes, base: computed.extend(genes) or shifts(run, genes, base)
    )
    options = {**QUIET, "expression": "masked", "groupby": "cell_type", "store": tmp_path / "finished"}
    first = sct.tl.knockout(adata, model, genes=["GENE1"], **options)
    both = sct.tl.knockout(adata, model, genes=["GENE1", "GENE4"], **options | {"batch_size": 5})
    assert len(computed) == 2
    np.testing.assert_array_equal(both.X[:3], first.X)
    np.testing.assert_array_equal(both.obsm["displacement"][:3], first.obsm["displacement"])
    for change in ({"how": "zero"}, {"rng": 1}, {"groupby": "batch"}, {"expression": None}):
        with pytest.raises(ValueError, match="to belong to these knock-outs, found other (settings|groups)"):
            sct.tl.knockout(adata, model, genes=["GENE1"], **options | change)
    damaged = next((tmp_path / "finished").glob("*.f4"))
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"0000")
    again = sct.tl.knockout(adata, model, genes=["GENE1", "GENE4"], **options)
    assert len(computed) == 3
    np.testing.assert_allclose(again.X, both.X, atol=1e-6)


def test_cells_are_drawn_within_groups(adata, model):
    found = sct.tl.knockout(adata, model, genes=["GENE1"], groupby="cell_type", n_cells=2, **QUIET)
    assert list(found.obs["n_cells"]) == [2, 2, 2]
    adata.obs.loc["cell0", "cell_type"] = None
    whole = sct.tl.knockout(adata, model, genes=["GENE1"], groupby="cell_type", n_cells=None, **QUIET)
    assert sorted(whole.obs["n_cells"]) == [3, 4, 4]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_of_two_columns_of_a_gene_the_model_reads_one(adata, model):
    twice = adata[:, [*adata.var_names, "GENE1"]].copy()
    twice.X = twice.X.toarray()
    twice.X[:, -1] = 0  # a scaffold that another tool has left
    alone = sct.tl.knockout(adata, model, genes=["GENE1"], **QUIET)
    with pytest.warns(UserWarning, match="the column with the most counts is read: GENE1 from column 1"):
        found = sct.tl.knockout(twice, model, genes=["GENE1"], **QUIET)
    np.testing.assert_array_equal(found.obs["shift"], alone.obs["shift"])


def test_genes_that_the_model_does_not_know_are_left_out(adata, model, unchanged):
    before = unchanged(adata)
    with pytest.warns(UserWarning, match="2 that it does not, which are left out: GENE0, GENE3"):
        found = sct.tl.knockout(adata, model, genes=["GENE0", "GENE1", "GENE3"], **QUIET)
    assert list(found.obs["gene"]) == ["GENE1"]
    assert unchanged(adata) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"genes": ["GENE1", "GEN4"]}, KeyError, "Did you mean 'GENE4'"),
        ({"genes": ["GENE0"]}, ValueError, "knows, found none of 1"),
        ({"how": "delete"}, ValueError, "'remove', 'zero', 'max'"),
        ({"expression": True}, (TypeError, ValueError), "`expression`"),
        ({"n_null": 5}, ValueError, "`n_null` to be at least 20"),
        ({"n_null": 20, "min_cells": 12}, ValueError, "n_null=None to compare with nothing"),
        ({"groupby": "kind"}, KeyError, "kind"),
        ({"n_cells": 1}, ValueError, "`n_cells` to be at least 2"),
        ({"layer": "raw"}, KeyError, "'raw'"),
    ],
)
def test_what_cannot_be_asked_is_refused(adata, model, options, error, message):
    with pytest.raises(error, match=message):
        sct.tl.knockout(adata, model, **{"genes": ["GENE1"], **QUIET, **options})


def test_models_that_cannot_predict_are_refused(adata, make_model):
    without = make_model(config={"heads": {}}).eval()
    with pytest.raises(ValueError, match="the head 'expression' of masked values, found none"):
        sct.tl.knockout(adata, without, genes=["GENE1"], expression="masked", **QUIET)
    generator = make_model(config={"heads": {"expression": AffineConfig()}}).eval()
    with pytest.raises(ValueError, match="one for perturbations"):
        sct.tl.knockout(adata, generator, genes=["GENE1"], expression="masked", **QUIET)


def test_weights_that_are_not_finite_are_refused(adata, model):
    with torch.no_grad():
        model.embedder.genes.table.weight[model.vocabulary["GENE1"]] = 1e38
    with pytest.raises(ValueError, match="finite"):
        sct.tl.knockout(adata, model, genes=["GENE1", "GENE4"], **QUIET)
