"""Networks beside a reference and beside each other."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import scgpt_tools as sct
from scgpt_tools.metrics import score_edges

NAMES = [f"G{number}" for number in range(24)]


@pytest.fixture
def cells():
    """Genes in six modules of four that rise and fall together; vectors know the modules, and two genes have none."""
    rng = np.random.default_rng(0)
    module = np.repeat(np.arange(6), 4)
    values = rng.normal(size=(60, 6))[:, module] + rng.normal(scale=1.0, size=(60, 24)) + 8
    table = ad.AnnData(values.astype(np.float32), var=pd.DataFrame(index=NAMES))
    table.obs_names = [f"c{number}" for number in range(60)]
    vectors = np.eye(6, 8)[module] + rng.normal(scale=0.1, size=(24, 8))
    vectors[[3, 7]] = np.nan
    table.varm["vectors"] = vectors.astype(np.float32)
    return table


@pytest.fixture
def edges():
    pairs = [(i, j) for i in range(24) for j in range(i + 1, 24) if i // 4 == j // 4]
    return pd.DataFrame([(NAMES[i], NAMES[j]) for i, j in pairs], columns=["source", "target"])


@pytest.fixture
def maps(cells):
    found = ad.AnnData(obs=pd.DataFrame(index=NAMES[::-1]), var=pd.DataFrame(index=NAMES[::-1]))
    found.layers["all cells"] = np.random.default_rng(1).random((24, 24)).astype(np.float32)
    return found


@pytest.fixture
def knockouts():
    obs = pd.DataFrame({"gene": NAMES[:6], "group": "all cells"}, index=NAMES[:6])
    found = ad.AnnData(np.random.default_rng(2).normal(size=(6, 24)).astype(np.float32), obs=obs)
    found.var_names, found.uns["knockout"] = NAMES, {}
    return found


def test_all_methods_are_judged_on_the_same_pairs(cells, edges, maps, knockouts):
    found = sct.tl.score_network(cells, edges, use_rep="vectors", maps=maps, knockouts=knockouts)
    wanted = ["cosine of vectors", "attention, all cells", "knock-out, all cells", "co-expression", "random"]
    assert list(found.index) == wanted
    # Pairs of 22 genes with a vector, one of which was knocked out.
    assert set(found["n_pairs"]) == {5 * 17 + 5 * 4 // 2}
    assert found.loc["cosine of vectors", "auroc"] > 0.95
    assert found.loc["co-expression", "auroc"] > 0.7
    assert (found.loc[wanted, "auroc"] <= 1).all()
    assert (
        found.loc["cosine of vectors", "early_precision_hubs"] < 0.5 < found.loc["cosine of vectors", "early_precision"]
    )


def test_scores_are_those_of_the_metric_on_cosines_and_correlations(cells, edges):
    found = sct.tl.score_network(cells, edges, use_rep="vectors", rng=3)
    kept = [name for place, name in enumerate(NAMES) if place not in (3, 7)]
    truth = np.array([[a != b and int(a[1:]) // 4 == int(b[1:]) // 4 for a in kept] for b in kept])
    correlations = np.abs(np.corrcoef(cells[:, kept].X.T.astype(np.float64)))
    wanted = score_edges(correlations, truth, rng=3)._asdict()
    assert found.loc["co-expression"].to_dict() == pytest.approx(wanted, rel=1e-5)


def test_attention_to_a_gene_is_a_score_from_it(cells, maps, tmp_path):
    file = tmp_path / "edges.tsv"
    file.write_text("regulator\tgene\tsign\nG0\tG1\t+\nG0\tG2\t+\nG5\tG0\t-\nG9\tunknown\t+\n")
    table = maps.to_df(layer="all cells")
    table.loc[:, :] = 0.0
    table.loc["G1", "G0"] = table.loc["G2", "G0"] = table.loc["G0", "G5"] = 1.0
    maps.layers["all cells"] = table.to_numpy()
    genes = ["G0", "G1", "G2", "G5"]
    found = sct.tl.score_network(cells, file, use_rep="vectors", maps=maps, genes=genes, directed=True)
    assert found.loc["attention, all cells", "auroc"] == 1.0
    # Pairs that start from G0 or G5.
    assert found["n_pairs"].iloc[0] == 6
    assert found["n_edges"].iloc[0] == 3


def test_pairs_of_weight_zero_are_no_edges_and_the_only_ones_beside_them(cells, edges):
    edges["weight"] = -1.0
    all_pairs = sct.tl.score_network(cells, edges, use_rep="vectors")
    pd.testing.assert_frame_equal(
        all_pairs, sct.tl.score_network(cells, edges.drop(columns="weight"), use_rep="vectors")
    )
    others = pd.DataFrame({"source": NAMES[8:12], "target": NAMES[12:16], "weight": 0.0})
    found = sct.tl.score_network(cells, pd.concat([edges, others]), use_rep="vectors")
    assert set(found["n_edges"]) == set(all_pairs["n_edges"])
    assert set(found["n_pairs"] - found["n_edges"]) == {4}


def test_agreement_is_a_rank_correlation_for_each_gene(cells, maps, knockouts):
    found = sct.tl.compare_networks(cells, use_rep="vectors", maps=maps, knockouts=knockouts)
    row = found[(found["gene"] == "G4") & (found["first"] == "attention, all cells")]
    row = row[row["second"] == "knock-out, all cells"].iloc[0]
    others = [name for name in NAMES if name not in ("G3", "G7", "G4")]
    wanted = spearmanr(
        maps.to_df(layer="all cells").loc[others, "G4"], knockouts.to_df().loc["G4", others].abs()
    ).statistic
    assert row["spearman"] == pytest.approx(wanted)
    assert row["n_genes"] == 21
    assert set(found["gene"][found["second"] == "knock-out, all cells"]) == {"G0", "G1", "G2", "G4", "G5"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_rep": "vector"}, KeyError, "Did you mean 'vectors'"),
        ({"reference": "absent.csv"}, FileNotFoundError, "a table of edges"),
        ({"reference": pd.DataFrame({"a": ["G0"]})}, ValueError, "two columns of genes"),
        ({"reference": pd.DataFrame({"a": ["X"], "b": ["Y"]})}, ValueError, "the reference has X, Y"),
        ({"reference": 5}, TypeError, "`reference` to be a path"),
        ({"genes": ["G0", "G4"]}, ValueError, "edges and pairs without one"),
        ({"layer": "counts"}, KeyError, "counts"),
        ({"knockouts": ad.AnnData(obs=pd.DataFrame(index=["a"]))}, KeyError, "knockout"),
    ],
)
def test_what_cannot_be_judged_is_refused(cells, edges, options, error, message):
    with pytest.raises(error, match=message):
        sct.tl.score_network(cells, **{"reference": edges, "use_rep": "vectors"} | options)
