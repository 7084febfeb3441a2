"""Commands that make files of files: preprocessed tables, shards, indices, exported and uploaded models."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scgpt_tools as sct
from scgpt_tools import cli
from scgpt_tools.cli import files, predicting, reports
from scgpt_tools.data.shards import shard_rows
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    vocabulary = Vocabulary.from_genes([f"GENE{i}" for i in range(30)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
    return str(small.save(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture
def cells(adata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata.obs["cell_type"] = pd.Categorical(["a", "b"] * (adata.n_obs // 2))
    adata.obsm["X_own"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3)).astype(np.float32)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return adata


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_preprocess(cells, suffix, capsys):
    words = ("preprocess", "cells.h5ad", "-o", f"out{suffix}", "--n_top_genes", "10", "--bins", "null")
    assert run(*words) == 0
    written = (ad.read_h5ad if suffix == ".h5ad" else ad.read_zarr)(f"out{suffix}")
    expected = sct.pp.preprocess(cells, n_top_genes=10, bins=None)
    assert list(written.var_names) == list(expected.var_names)
    np.testing.assert_allclose(written.layers["X_log1p"].toarray(), expected.layers["X_log1p"].toarray())
    assert "Wrote 12 cells and 10 genes" in capsys.readouterr().err
    assert run(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_preprocess_keeps_the_rest_of_a_table(cells, suffix):
    cells.varm["loadings"] = np.arange(cells.n_vars, dtype=np.float32)[:, None]
    cells.obsp["distances"] = sp.csr_matrix(np.eye(cells.n_obs, dtype=np.float32))
    cells.raw = cells.copy()
    files._write(cells, Path(f"all{suffix}"))
    assert run("preprocess", f"all{suffix}", "-o", "out.h5ad", "--n_top_genes", "10") == 0
    written = ad.read_h5ad("out.h5ad")
    places = cells.var_names.get_indexer(written.var_names)
    np.testing.assert_array_equal(written.varm["loadings"][:, 0], places)
    np.testing.assert_array_equal(written.obsp["distances"].toarray(), np.eye(cells.n_obs))
    assert list(written.raw.var_names) == list(cells.var_names)


def test_preprocess_by_a_file_of_scmodelforge(cells, tmp_path):
    (tmp_path / "theirs.yaml").write_text(
        "data: {paths: [cells.h5ad], preprocessing: {target_sum: 100, hvg_selection: 5}}"
    )
    assert cli.main(["preprocess", "--config", "theirs.yaml", "--output", "out.h5ad"], program="scmodelforge") == 0
    written = ad.read_h5ad("out.h5ad")
    assert written.n_vars == 5
    assert np.expm1(written.layers["X_log1p"].toarray()).max() <= 100


def test_preprocess_leaves_depth_alone_where_a_file_says_so(cells, tmp_path):
    (tmp_path / "theirs.yaml").write_text("data: {paths: [cells.h5ad], preprocessing: {normalize: none}}")
    assert cli.main(["preprocess", "--config", "theirs.yaml", "--output", "out.h5ad"], program="scmodelforge") == 0
    written = ad.read_h5ad("out.h5ad")
    np.testing.assert_allclose(np.expm1(written.layers["X_log1p"].toarray()), cells.X.toarray(), rtol=1e-5)
    np.testing.assert_array_equal(written.obsm["X_own"], cells.obsm["X_own"])


def test_shards_and_their_vocabulary(cells, model, tmp_path, capsys):
    assert run("shard", "cells.h5ad", "--model", model, "-o", "shards", "--shard-size", 5) == 0
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["shard_sizes"] == [5, 5, 2]
    (tmp_path / "theirs.yaml").write_text("data: {paths: [cells.h5ad], shards: {shard_size: 6}}")
    words = ["shard", "--config", "theirs.yaml", "--output-dir", "other", "--gene-vocab", f"{model}/vocab.json"]
    assert cli.main(words, program="scmodelforge") == 0
    assert json.loads((tmp_path / "other" / "manifest.json").read_text())["shard_sizes"] == [6, 6]


@pytest.mark.parametrize(("listed", "least"), [(True, 19_000), (False, 3)])
def test_shards_of_a_listed_vocabulary_or_of_the_genes_of_the_table(listed, least, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = ad.AnnData(np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3))
    table.var_names = ["STAT1", "ENSG00000141510", "CD8A"]  # the second is TP53
    table.write_h5ad("cells.h5ad")
    vocabulary = "gene_vocab: human_protein_coding, " if listed else ""
    (tmp_path / "theirs.yaml").write_text(f"data: {{{vocabulary}paths: [cells.h5ad], shards: {{shard_size: 4}}}}")
    assert cli.main(["shard", "--config", "theirs.yaml", "--output-dir", "out"], program="scmodelforge") == 0
    genes = json.loads((tmp_path / "out" / "gene_vocab.json").read_text())
    assert len(genes) >= least
    assert {"STAT1", "TP53" if listed else "ENSG00000141510", "CD8A"} <= set(genes)
    rows = shard_rows(tmp_path / "out")
    assert list(rows.var.index) == ["STAT1", "TP53" if listed else "ENSG00000141510", "CD8A"]
    np.testing.assert_array_equal(rows.take(np.arange(4)).toarray(), table.X)


@pytest.mark.filterwarnings("default:Settings of scModelForge")
def test_shards_say_what_a_file_asks_for_in_vain(cells, model, tmp_path, capsys):
    (tmp_path / "theirs.yaml").write_text(
        f"data: {{paths: [cells.h5ad], gene_vocab: {model}/vocab.json, preprocessing: {{normalize: library_size}}}}"
    )
    words = ["shard", "--config", "theirs.yaml", "--output-dir"]
    assert cli.main([*words, "out"], program="scmodelforge") == 0
    assert "data.preprocessing (shards hold values as the table has them" in capsys.readouterr().err
    assert cli.main([*words, "other", "--data.source", "cellxgene_census"], program="scmodelforge") == 2
    assert "Expected `data.source` 'local'" in capsys.readouterr().err


def test_an_index_and_what_is_mapped_to_it(cells, tmp_path):
    assert (
        run("index", "cells.h5ad", "--label_key", "cell_type", "--use_rep", "X_own", "-o", "idx", "--index", "Flat")
        == 0
    )
    assert run("map", "cells.h5ad", "--reference", "idx", "--use_rep", "X_own", "--k", 1, "-o", "mapped.h5ad") == 0
    assert list(ad.read_h5ad("mapped.h5ad").obs["mapped_cell_type"]) == list(cells.obs["cell_type"])


def test_export_takes_the_format_of_the_original(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("export", "--model", model, "--output", "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"args.json", "vocab.json", "best_model.pt"}
    assert run("export", "--model", model, "--output", "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("export", "--model", model, "--output", "own", "--format", "native") == 0
    assert sct.CellModel.from_pretrained("own", device="cpu").checksum == sct.CellModel.from_pretrained(model).checksum


def test_push_prints_the_address(model, monkeypatch, capsys):
    asked = {}

    def push(folder, repository, **options):
        asked.update(options, folder=folder, repository=repository)
        return "https://hub/lab/blood/commit/1"

    monkeypatch.setattr(files, "push_folder", push)
    words = ["push", "--model-dir", model, "--repo-id", "lab/blood", "--private", "true", "--commit-message", "First"]
    assert cli.main(words, program="scmodelforge") == 0
    assert capsys.readouterr().out == "https://hub/lab/blood/commit/1\n"
    assert (asked["folder"], asked["repository"], asked["private"], asked["message"]) == (
        model,
        "lab/blood",
        True,
        "First",
    )


# ------------------------------------------------------------------------------------------------- fine-tuned models


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> str:
    table = screen(5)
    vocabulary = Vocabulary.from_genes(list(table.var_names))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        base = sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
        tuned = sct.train.finetune(
            table, base, task="perturb", validation=0.0, epochs=1, accelerator="cpu", patience=None
        )
    return str(tuned.save(tmp_path_factory.mktemp("models") / "predictor"))


def test_predict_a_perturbation(predictor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = screen(5)
    table.write_h5ad("screen.h5ad")
    gene = str(table.var_names[0])
    assert run("predict", "screen.h5ad", "--model", predictor, "--perts", gene, "-o", "out.h5ad") == 0
    assert "predicted" in ad.read_h5ad("out.h5ad").layers
    assert run("predict", "screen.h5ad", "--model", predictor, "--threshold", "0.5", "-o", "other.h5ad") == 2
    assert "Expected no --threshold for the task 'perturb'" in capsys.readouterr().err


def test_predict_a_perturbation_without_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    screen(5).write_h5ad("screen.h5ad")
    assert run("predict", "screen.h5ad", "--model", "kernel", "--perts", "G3", "-o", "out.h5ad") == 0
    assert ad.read_h5ad("out.h5ad").uns["predicted"]["model"]["name"] == "kernel"
    words = ("predict", "screen.h5ad", "--model", "kernel", "--perts", "G3", "--bootstrap", "true", "--n_controls", "7")
    assert run(*words, "-o", "cells.h5ad") == 0
    assert ad.read_h5ad("cells.h5ad").n_obs == 7


def test_evaluating_the_kernel_model_says_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = screen(5)
    table.obs["split"] = "test"
    table.write_h5ad("screen.h5ad")
    assert run("evaluate", "screen.h5ad", "--model", "kernel") == 2
    assert "found 'kernel', which is one of them. Every table has it." in capsys.readouterr().err


def test_predict_from_a_pool_of_controls_writes_a_table_of_cells(predictor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = screen(5)
    table.write_h5ad("screen.h5ad")
    gene = str(table.var_names[0])
    words = ("predict", "screen.h5ad", "--model", predictor, "--perts", gene, "-o")
    assert run(*words, "cells.h5ad", "--bootstrap", "true", "--n_controls", "7") == 0
    written = ad.read_h5ad("cells.h5ad")
    expected = sct.tl.predict_perturbation(table, gene, predictor, bootstrap=True, n_controls=7, as_anndata=True)
    np.testing.assert_allclose(written.X, expected.X, rtol=1e-5)
    assert list(written.obs["control_cell"]) == list(expected.obs["control_cell"])
    assert run(*words, "cells.h5ad", "--as_anndata", "true") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_scores_read_genes_and_controls_as_they_are_told(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = screen(5)
    sct.pp.perturbation_split(table, rng=0)
    table.write_h5ad("screen.h5ad")
    asked = {}

    def evaluate(adata, predictions, **options):
        asked.update(options)
        return SimpleNamespace(table=pd.DataFrame({"value": [1.0]}))

    monkeypatch.setattr(predicting.tl, "evaluate_perturbation", evaluate)
    options = {"symbols": "symbol", "ignore_case": True, "within": "batch", "bootstrap": True}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert run("evaluate", "screen.h5ad", "--model", predictor, *words) == 0
    assert {name: asked[name] for name in options} == options
    pd.DataFrame({"old": ["SAMD1"], "new": ["G0"]}).to_csv("names.csv", index=False)
    words = ["--symbols", "names.csv", "--aliases", "names.csv", "--model", predictor]
    assert run("evaluate", "screen.h5ad", *words) == 0
    for name in ("symbols", "aliases"):
        assert asked[name].to_numpy().tolist() == [["SAMD1", "G0"]]


def test_knockout_writes_a_table_and_prints_it(cells, model, capsys):
    words = ("knockout", "cells.h5ad", "--model", model, "--genes", "[GENE1,GENE2]", "--groupby", "cell_type",
             "--min_cells", 1, "--n_null", "null", "-o")  # fmt: skip
    assert run(*words, "out.h5ad") == 0
    written = ad.read_h5ad("out.h5ad")
    expected = sct.tl.knockout(cells, model, genes=["GENE1", "GENE2"], groupby="cell_type", min_cells=1, n_null=None)
    assert list(written.obs["gene"]) == list(expected.obs["gene"])
    np.testing.assert_allclose(written.obs["shift"], expected.obs["shift"], rtol=1e-5)
    said = capsys.readouterr()
    assert "Wrote 4 rows" in said.err
    assert sum(line.split()[0] in ("GENE1", "GENE2") for line in said.out.splitlines()) == 4
    assert run(*words, "out.h5ad") == 2


def test_predict_needs_a_model_that_predicts(cells, model, capsys):
    assert run("predict", "cells.h5ad", "--model", model, "-o", "out.h5ad") == 2
    assert "was fine-tuned to predict something" in capsys.readouterr().err
    assert run("predict", "cells.h5ad", "-o", "out.h5ad") == 2
    assert "Expected --model" in capsys.readouterr().err


def test_evaluate_needs_what_its_task_needs(cells, capsys):
    assert run("evaluate", "cells.h5ad") == 2
    assert "Expected --label_key for the task 'embedding', found none." in capsys.readouterr().err


def test_labels_are_read_for_scores_as_for_training(cells, tmp_path, monkeypatch):
    """An empty label is none, and classes that missing values made floats are whole numbers."""
    cells.obs["number"] = [1.0, 2.0] * 5 + [1.0, np.nan]
    cells.obs["text"] = ["1", "2"] * 5 + ["1", " "]
    cells.write_h5ad("cells.h5ad")

    def annotate(table, model, **options):
        table.obs["scgpt_cell_type"] = pd.Categorical(["1", "2"] * 6)

    monkeypatch.setattr(predicting.tl, "annotate", annotate)
    for key in ("number", "text"):
        assert (
            run("evaluate", "cells.h5ad", "--task", "annotate", "--model", "m", "--label-key", key, "-o", f"{key}.csv")
            == 0
        )
        total = pd.read_csv(f"{key}.csv").iloc[0]
        assert (total["cells"], total["accuracy"]) == (11, 1)
        assert total["largest_class"] == pytest.approx(6 / 11)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json"])
def test_tables_of_scores(tmp_path, ending):
    table = pd.DataFrame({"class": ["a", "b"], "f1": [0.5, np.nan]})
    place = tmp_path / f"new/scores{ending}"
    reports.table_writer(str(place), overwrite=False)(table)
    readers = {".csv": pd.read_csv, ".tsv": lambda path: pd.read_csv(path, sep="\t"), ".json": pd.read_json}
    pd.testing.assert_frame_equal(readers[ending](place), table)
    with pytest.raises(FileExistsError, match="--overwrite"):
        reports.table_writer(str(place), overwrite=False)


def test_a_table_of_scores_of_another_format_is_refused():
    with pytest.raises(ValueError, match=r"ends in \.csv or \.tsv or \.json"):
        reports.table_writer("scores.xlsx", overwrite=False)
