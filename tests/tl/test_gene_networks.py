from __future__ import annotations

import math
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgpt_tools as sct


@pytest.fixture
def genes():
    """Three groups of six genes with vectors around three directions, and sixty genes without a vector."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 8), 6, axis=0)
    vectors = np.vstack([centres + rng.normal(scale=0.08, size=centres.shape), np.full((60, 8), np.nan)])
    names = [f"{group}{number}" for group in "ABC" for number in range(6)] + [f"X{number}" for number in range(60)]
    values = rng.poisson(1.0, (40, len(names))).astype(np.float32)
    values[:20, :6] += 4
    obs = pd.DataFrame({"cell_type": ["with A"] * 20 + ["without"] * 20}, index=[f"c{i}" for i in range(40)])
    table = ad.AnnData(np.log1p(values), obs=obs, var=pd.DataFrame(index=names))
    table.varm["vectors"] = vectors.astype(np.float32)
    return table


def connect(table, **options):
    sct.tl.gene_network(table, use_rep="vectors", show_progress=False, **options)
    return table.varp["gene_network"]


def test_edges_are_cosines_above_the_threshold(genes):
    edges = connect(genes, threshold=0.5, n_neighbors=None)
    assert sparse.issparse(edges)
    unit = genes.varm["vectors"][:18] / np.linalg.norm(genes.varm["vectors"][:18], axis=1, keepdims=True)
    wanted = unit @ unit.T
    np.fill_diagonal(wanted, 0)
    found = edges.toarray()
    np.testing.assert_allclose(found[:18, :18], np.where(wanted >= 0.5, wanted, 0), atol=1e-6)
    assert not found[18:].any()
    assert not found[:, 18:].any()
    assert (found == found.T).all()


def test_blocks_do_not_show(genes, monkeypatch):
    whole = connect(genes, threshold=0.3).toarray()
    # `tl.gene_network` is the function; its file goes by the name of its module only.
    monkeypatch.setattr(sys.modules["scgpt_tools.tl.gene_network"], "_BLOCK", 5)
    np.testing.assert_allclose(connect(genes, threshold=0.3).toarray(), whole, atol=1e-6)


def test_neighbours_bound_the_edges_of_a_gene(genes):
    edges = connect(genes, threshold=0.0, n_neighbors=2)
    assert edges.nnz <= 2 * 2 * 18
    assert np.diff(edges.indptr)[:18].min() >= 2


def test_a_network_of_a_model_is_one_of_its_gene_embeddings():
    cells = sct.datasets.pbmc_demo()[:5].copy()
    sct.tl.embed_genes(cells, "scgpt-demo")
    sct.tl.gene_network(cells, "scgpt-demo", show_progress=False, key_added="own")
    sct.tl.gene_network(cells, use_rep="X_scGPT_genes", show_progress=False)
    assert (cells.varp["own"] != cells.varp["gene_network"]).nnz == 0
    assert cells.uns["own"]["model"]["name"] == "scgpt-demo"


def test_similar_genes_are_ranked_by_cosine(genes):
    found = sct.tl.similar_genes(genes, "A0", use_rep="vectors", n_genes=6)
    assert found["gene"][0] == "A0"
    assert set(found["gene"]) == {f"A{number}" for number in range(6)}
    pair = sct.tl.similar_genes(genes, {"A0": 1, "B0": 3}, use_rep="vectors", genes=["A1", "B1", "C1"])
    assert list(pair["gene"]) == ["B1", "A1", "C1"]


def test_names_without_a_vector_are_left_out_and_said(genes):
    with pytest.warns(UserWarning, match="2 without one, which are left out: X0, absent"):
        found = sct.tl.similar_genes(genes, "A0", use_rep="vectors", genes=["A1", "X0", "absent"])
    assert list(found["gene"]) == ["A1"]


@pytest.mark.parametrize("method", ["leiden", "louvain"])
def test_programs_are_the_groups(genes, method):
    connect(genes)
    sct.tl.gene_programs(genes, method=method)
    programs = genes.uns["gene_program"]["programs"]
    assert sorted("".join(sorted({gene[0] for gene in own})) for own in programs.values()) == ["A", "B", "C"]
    assert genes.var["gene_program"].isna().to_numpy()[18:].all()
    for name, own in programs.items():
        assert (genes.var.loc[own, "gene_program"] == name).all()


def test_small_groups_are_no_programs(genes):
    connect(genes)
    with pytest.raises(ValueError, match=r"at least min_genes=7 genes, found none: the largest of 3 has 6"):
        sct.tl.gene_programs(genes, min_genes=7)
    assert "gene_program" not in genes.var


def test_scores_tell_the_cells_that_express_a_program(genes):
    programs = {"own": [f"A{number}" for number in range(6)], "other": [f"B{number}" for number in range(6)]}
    sct.tl.score_programs(genes, programs, groupby="cell_type")
    scores, means = genes.obsm["program_scores"], genes.uns["program_scores"]["means"]
    assert list(scores.columns) == ["own", "other"]
    assert scores.to_numpy().min() == 0
    assert scores.to_numpy().max() == 1
    assert scores["own"][:20].mean() > scores["own"][20:].mean() + 0.3
    assert means.loc["with A", "own"] == pytest.approx(scores["own"][:20].mean())


def test_enrichment_is_the_hypergeometric_tail(genes, tmp_path):
    file = tmp_path / "sets.gmt"
    file.write_text("a set\tabout A\tA0\tA1\tA2\tA3\tA4\nmixed\t\tA0\tB0\tC0\tX0\tX1\nfar\t\tQ1\tQ2\n")
    found = sct.tl.enrich_programs(genes, file, programs={"first": [f"A{number}" for number in range(6)]})
    assert list(found["gene_set"]) == ["a set", "mixed"]
    # All five of the set among 6 drawn of 78.
    assert found["p_value"][0] == pytest.approx(math.comb(73, 1) / math.comb(78, 6))
    assert found["p_bonferroni"][0] == pytest.approx(2 * found["p_value"][0])
    assert found["genes"][1] == "A0"


@pytest.mark.parametrize("engine", ["gseapy", "decoupler"])
def test_other_engines_find_the_same(genes, tmp_path, engine):
    pytest.importorskip(engine, reason="of the extra enrich")
    file = tmp_path / "sets.gmt"
    file.write_text("a set\tabout A\tA0\tA1\tA2\tA3\tA4\nmixed\t\tA0\tB0\tC0\tX0\tX1\nother\t\tX2\tX3\tX4\tX5\tX6\n")
    programs = {
        "first": [f"A{number}" for number in range(6)],
        "second": ["B0", "B1", "X2", "X3", "X7"],
        "third": ["C5"],
    }
    wanted = sct.tl.enrich_programs(genes, file, programs=programs)
    found = sct.tl.enrich_programs(genes, file, programs=programs, engine=engine)
    assert len(found) == 4
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-6)


def test_scores_need_other_genes_to_compare_with(genes):
    programs = {"all": [gene for gene in genes.var_names if gene[0] in "ABC"]}
    with pytest.raises(ValueError, match="Score on all genes"):
        sct.tl.score_programs(genes[:, :18].copy(), programs)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: sct.tl.gene_network(t, use_rep="vector"), KeyError, "Did you mean 'vectors'"),
        (lambda t: connect(t, genes=["A0", "Z9"]), KeyError, "Found no gene in `var_names`: 'Z9'"),
        (lambda t: connect(t, genes=["A0", "X0"]), ValueError, "two genes or more with a vector"),
        (lambda t: connect(t, genes="A0"), TypeError, "`genes` to be a list of texts"),
        (lambda t: connect(t, threshold=1.0), ValueError, "cosine of at least 1, found none"),
        (lambda t: connect(t, threshold=1.01), ValueError, r"`threshold` to lie in \[0, 1\]"),
        (lambda t: connect(t, threshold="high"), TypeError, "`threshold` to be a number"),
        (lambda t: connect(t, key_added="a/b"), ValueError, "without '/'"),
        (lambda t: sct.tl.similar_genes(t, "X0", use_rep="vectors"), KeyError, "gene with a vector named 'X0'"),
        (lambda t: sct.tl.similar_genes(t, np.ones(3), use_rep="vectors"), ValueError, "a query of 8 numbers"),
        (lambda t: sct.tl.similar_genes(t, "A0", use_rep="vectors", genes=["ZZ"]), KeyError, "'ZZ'"),
        (lambda t: sct.tl.score_programs(t, 5), TypeError, "`programs` to be str or Mapping, found int"),
        (lambda t: sct.tl.score_programs(t, {}), ValueError, "at least one program"),
        (lambda t: sct.tl.similar_genes(t, {"A0": 1, "B0": -1}, use_rep="vectors"), ValueError, "add up to zero"),
        (lambda t: sct.tl.gene_programs(t), KeyError, "key in `varp`: 'gene_network'"),
        (lambda t: sct.tl.score_programs(t, "programs"), KeyError, "key in `uns`: 'programs'"),
        (lambda t: sct.tl.score_programs(t, {"p": ["Z1"]}), ValueError, "genes of program 'p' in `var_names`"),
        (lambda t: sct.tl.enrich_programs(t, "absent.gmt", programs={"p": ["A0"]}), FileNotFoundError, "a GMT file"),
        (lambda t: sct.tl.enrich_programs(t, {"s": ["a"]}, programs={"p": ["A0"]}), ValueError, "human gene symbols"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(genes, call, error, message):
    before = genes.copy()
    with pytest.raises(error, match=message):
        call(genes)
    for slot in ("varp", "varm", "uns", "obsm", "var", "obs"):
        assert set(getattr(genes, slot)) == set(getattr(before, slot))


def test_files_that_are_no_gmt_are_refused(genes, tmp_path):
    file = tmp_path / "sets.gmt"
    file.write_text("name,description,gene\n")
    with pytest.raises(ValueError, match="with tabs between in line 1"):
        sct.tl.enrich_programs(genes, file, programs={"p": ["A0"]})


@pytest.mark.filterwarnings("ignore::UserWarning")  # what anndata and zarr advise about formats
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_results_survive_a_file(genes, tmp_path, kind):
    connect(genes)
    sct.tl.gene_programs(genes)
    sct.tl.score_programs(genes, groupby="cell_type", key_added="scores")
    path = tmp_path / f"table.{kind}"
    with ad.settings.override(zarr_write_format=3):
        getattr(genes, f"write_{kind}")(path)
    again = getattr(ad, f"read_{kind}")(path)
    pd.testing.assert_frame_equal(again.obsm["scores"], genes.obsm["scores"], check_names=False)
    sct.tl.score_programs(again, key_added="again")
    np.testing.assert_array_equal(again.obsm["again"], genes.obsm["scores"])
