"""Commands that name cell types: several models together, classifiers on genes, and tables as references."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata.io import read_elem

import scgpt_tools as sct
from scgpt_tools import cli
from scgpt_tools.models.config import ClassifierConfig, Named
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.vocabulary import Vocabulary

CLASSES = ("B", "NK", "T")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sct.settings.override(show_progress=False):
        yield


@pytest.fixture
def cells(adata):
    adata.obs["cell_type"] = pd.Categorical(np.array(CLASSES)[np.arange(adata.n_obs) % 3])
    adata.write_h5ad("cells.h5ad")
    return adata


@pytest.fixture
def models(cells):
    """Names of two annotators and of a classifier on genes, and these themselves."""
    vocabulary = Vocabulary.from_genes(cells.var_names.tolist())
    heads = Named(cell_type=ClassifierConfig(classes=3, names=CLASSES))
    made = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            small = sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
            made.append(small.adapt(heads=heads).eval())
        made[-1].save(f"model{seed}")
    run("gene-classifier", "cells.h5ad", "--label-key", "cell_type", "-o", "genes.npz", "--n_genes", "10")
    return ["model0", "model1", "genes.npz"], [
        *made,
        sct.train.fit_gene_classifier(cells, label_key="cell_type", n_genes=10),
    ]


def run(*words):
    assert cli.main([str(word) for word in words]) == 0, words


def refused(capsys, *words):
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["annotate", "predict"])
def test_several_models_name_cells_together(cells, models, command):
    names, made = models
    expected = sct.tl.annotate(cells, made, copy=True)
    run(command, "cells.h5ad", "--model", f"[{','.join(names)}]", "-o", "named.h5ad")
    found = ad.read_h5ad("named.h5ad")
    np.testing.assert_allclose(
        found.obsm["scgpt_cell_type_probabilities"], expected.obsm["scgpt_cell_type_probabilities"], atol=1e-5
    )
    assert found.uns["scgpt_cell_type"]["model"]["name"].endswith(", logistic regression on genes")


def test_one_model_needs_no_brackets(cells, models):
    run("annotate", "cells.h5ad", "--model", "model0", "-o", "named.h5ad")
    expected = sct.tl.annotate(cells, models[1][0], copy=True).obs["scgpt_cell_type"]
    assert ad.read_h5ad("named.h5ad").obs["scgpt_cell_type"].tolist() == expected.tolist()


def test_a_file_of_settings_lists_models(cells, models):
    Path("annotate.yaml").write_text("model:\n- model0\n- genes.npz\n")
    run("annotate", "cells.h5ad", "--config", "annotate.yaml", "-o", "named.h5ad")
    expected = sct.tl.annotate(cells, models[1][::2], copy=True).obs["scgpt_cell_type"]
    assert ad.read_h5ad("named.h5ad").obs["scgpt_cell_type"].tolist() == expected.tolist()


def test_several_models_are_scored_together(cells, models, capsys):
    names, made = models
    run(
        "evaluate",
        "cells.h5ad",
        "--model",
        f"[{','.join(reversed(names))}]",
        "--label-key",
        "cell_type",
        "-o",
        "scores.csv",
    )
    named = sct.tl.annotate(cells, made, copy=True).obs["scgpt_cell_type"]
    expected = sct.metrics.score_annotation(cells.obs["cell_type"], named)
    assert pd.read_csv("scores.csv")["accuracy"][0] == pytest.approx(expected.accuracy)


def test_classifiers_on_genes_alone_are_refused(cells, models, capsys):
    said = refused(capsys, "predict", "cells.h5ad", "--model", "genes.npz", "-o", "named.h5ad")
    assert "Expected --model to name a network, beside which classifiers on genes vote, found 'genes.npz'" in said


def test_a_classifier_on_genes_is_replaced_only_when_allowed(cells, models, capsys):
    words = ("gene-classifier", "cells.h5ad", "--label-key", "cell_type", "-o")
    assert "--overwrite" in refused(capsys, *words, "genes.npz")
    assert "a file for the classifier that ends in .npz, found 'genes.csv'" in refused(capsys, *words, "genes.csv")
    run(*words, "genes.npz", "--overwrite")
    assert len(sct.models.GeneClassifier.load("genes.npz").genes) > 10


@pytest.fixture
def embedded(cells):
    vectors = np.eye(3)[np.arange(cells.n_obs) % 3] * 10
    cells.obsm["X_scGPT"] = (vectors + np.random.default_rng(0).normal(size=vectors.shape)).astype(np.float32)
    cells.uns["X_scGPT"] = {"model": {"name": "tiny", "checksum": "abc"}}
    cells.write_h5ad("reference.h5ad")
    query = cells[::2].copy()
    query.write_h5ad("query.h5ad")
    return cells, query


@pytest.mark.parametrize("ending", ["h5ad", "zarr", "h5mu"])
def test_a_table_is_a_reference_as_an_index_is(embedded, ending):
    reference, query = embedded
    words = ["--reference", f"reference.{ending}", "--label_key", "cell_type", "--k", 3, "--reject", 0.05]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how others are about to change their files
        if ending == "zarr":
            reference.write_zarr("reference.zarr")
        if ending == "h5mu":
            for name, table in (("reference", reference), ("query", query)):
                mudata.MuData({"rna": table}).write(f"{name}.h5mu")
            words += ["--modality", "rna"]
    source = f"query.{'h5mu' if ending == 'h5mu' else 'h5ad'}"
    run("map", source, *words, "-o", f"mapped.{source.rpartition('.')[2]}")
    expected = sct.tl.map_reference(query, reference, label_key="cell_type", k=3, reject=0.05, copy=True)
    with h5py.File(f"mapped.{source.rpartition('.')[2]}") as file:
        obs = read_elem(file["mod/rna/obs" if ending == "h5mu" else "obs"])
    assert obs["mapped_cell_type"].tolist() == expected.obs["mapped_cell_type"].tolist()
    for name in ("mapped_cell_type_confidence", "mapped_cell_type_p_value"):
        np.testing.assert_allclose(obs[name], expected.obs[name])


def test_a_table_as_reference_needs_its_types(embedded, capsys):
    said = refused(capsys, "map", "query.h5ad", "--reference", "reference.h5ad", "-o", "mapped.h5ad")
    assert "Expected `label_key` to name the column of `obs` with the types, one of [" in said
