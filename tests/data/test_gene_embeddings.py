"""Files of embeddings of texts about genes, and the tables that they become."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from scgpt_tools.data.gene_embeddings import SOURCES, GeneEmbeddings, file_names, find_gene_embeddings
from scgpt_tools.data.pickles import read_pickle
from scgpt_tools.vocabulary import Vocabulary

GENES = ("A", "B", "C")
VECTORS = np.arange(12, dtype=np.float64).reshape(3, 4) / 7
MAPPING = {"A": VECTORS[0].tolist(), "B": VECTORS[1], "C": VECTORS[2].astype(np.float32)}
VOCABULARY = Vocabulary.from_genes(["B", "X", "A"])


class Touches:
    """Makes a file where a pickle of it is read without care."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_every_format_holds_the_same(tmp_path):
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(MAPPING))
    np.savez(tmp_path / "b.npz", genes=np.array(GENES), vectors=VECTORS)
    np.savez(tmp_path / "c.npz", **dict(zip(GENES, VECTORS, strict=True)))
    save_file({"vectors": VECTORS}, tmp_path / "d.safetensors")
    (tmp_path / "d.json").write_text(json.dumps({"genes": list(GENES)}))
    for name in ("a.pickle", "b.npz", "c.npz", "d.safetensors"):
        found = GeneEmbeddings.read(tmp_path / name)
        assert found.genes == GENES
        np.testing.assert_allclose(found.vectors, VECTORS, rtol=1e-6)
        assert found.provenance["file"] == name


def test_parquet_with_a_row_for_each_gene(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame(VECTORS, index=list(GENES), columns=list("wxyz")).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"gene": GENES, "vector": VECTORS.tolist()}).to_parquet(tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        np.testing.assert_array_equal(GeneEmbeddings.read(tmp_path / name).vectors, VECTORS)


def test_parquet_that_is_no_such_table(tmp_path):
    pytest.importorskip("pyarrow")
    file = tmp_path / "a.parquet"
    pd.DataFrame({"gene": ["A", "A", "B"], "vector": VECTORS.tolist()}).to_parquet(file)
    with pytest.raises(ValueError, match="each gene once, found A"):
        GeneEmbeddings.read(file)
    pd.DataFrame({"name": GENES, "x": VECTORS[:, 0]}).to_parquet(file)
    with pytest.raises(ValueError, match="in a column 'gene' or .*found the columns 'name', 'x'"):
        GeneEmbeddings.read(file)
    pd.DataFrame(VECTORS, index=list(GENES), columns=list("wxyz")).convert_dtypes().to_parquet(file)
    np.testing.assert_array_equal(GeneEmbeddings.read(file).vectors, VECTORS)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a\.parquet' to be a whole parquet file"):
        GeneEmbeddings.read(file)


def test_bfloat16_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors({gene: torch.tensor(row).bfloat16() for gene, row in zip(GENES, VECTORS, strict=True)}, file)
    np.testing.assert_allclose(GeneEmbeddings.read(file).vectors, VECTORS, rtol=1e-2)


def test_the_name_of_a_file_tells_its_source(tmp_path):
    file = tmp_path / "GO_P_gene_embedding-gpt3.5-ada-avg.pickle"
    file.write_bytes(pickle.dumps(MAPPING))
    assert GeneEmbeddings.read(file).provenance["source"] == "go_p_avg"


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    values = {"a": VECTORS, "b": np.asfortranarray(VECTORS.astype(">f4")), "c": [1.5, np.float64(2)], "d": np.str_("x")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
    found = read_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(found["a"], VECTORS)
    np.testing.assert_allclose(found["b"], VECTORS, rtol=1e-6)
    assert found["c"] == [1.5, 2.0]
    assert found["d"] == "x"


def test_nothing_in_a_pickle_is_run(tmp_path):
    touched = tmp_path / "touched"
    for bad in ({"A": Touches(touched)}, Touches(touched)):
        (tmp_path / "a.pickle").write_bytes(pickle.dumps(bad))
        with pytest.raises(ValueError, match=r"found the name (posix|nt)\.system"):
            GeneEmbeddings.read(tmp_path / "a.pickle")
    assert not touched.exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"A": np.array([None, 1.0])},
        {"A": np.array([(1, 2.0)], dtype="i4,f8")},
        {"A": eval},
        {"A": np.load},
    ],
)
def test_objects_in_pickles_are_refused(tmp_path, bad):
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(bad))
    with pytest.raises(ValueError, match="nothing in this one was run"):
        GeneEmbeddings.read(tmp_path / "a.pickle")


def test_a_function_of_ours_cannot_be_changed(tmp_path):
    # GLOBAL _codecs.encode, then BUILD with attributes for it.
    (tmp_path / "a.pickle").write_bytes(b"c_codecs\nencode\n}Vx\nI1\nsb.")
    with pytest.raises(ValueError, match="nothing in this one was run"):
        read_pickle(tmp_path / "a.pickle")


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"A": [1.0], "B": [1.0, 2.0]}, "one width"),
        ({"A": [1.0, np.nan]}, "finite"),
        ({"A": [1e39]}, "beyond float32"),
        ({"A": [[1.0]]}, "a vector of numbers"),
        ({"A": [[1.0], [1.0, 2.0]]}, "a vector of numbers for 'A'"),
        ({"A": ["x"]}, "a vector of numbers"),
        ({}, "found none"),
    ],
)
def test_what_is_no_table_of_vectors_is_refused(mapping, said):
    with pytest.raises(ValueError, match=said):
        GeneEmbeddings.from_mapping(mapping)


def test_damaged_and_absent_files(tmp_path):
    for name in ("a.pickle", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"\x00\x01 no such file")
        with pytest.raises(ValueError, match="Expected"):
            GeneEmbeddings.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="found none"):
        GeneEmbeddings.read(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="format of gene embeddings"):
        GeneEmbeddings.read(__file__)


def test_conversion_keeps_the_provenance(tmp_path):
    first = GeneEmbeddings.from_mapping(MAPPING, {"encoder": "mine"})
    again = GeneEmbeddings.read(first.save(tmp_path / "texts.safetensors"))
    assert again.genes == first.genes
    assert again.provenance == {"file": "texts.safetensors", "encoder": "mine"}
    assert again.vectors.dtype == np.float32


@pytest.mark.parametrize("source", SOURCES)
def test_every_spelling_is_found(tmp_path, source):
    for name in file_names(source):
        folder = tmp_path / name / "gene_embeddings"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"")
        assert find_gene_embeddings(tmp_path / name, source) == folder / name


def test_the_spellings_of_the_release():
    assert "GO_P_gene_embedding-gpt3.5-ada-avg.pickle" in file_names("go_p_avg")
    assert "NCBI+UniProt_embedding_ada.pkl" in file_names("ncbi+uniprot")
    assert "NCBI_gene_embedding_ada.pickle" in file_names("ncbi")
    assert "GO_C_gene_embeddings_concat.pickle" in file_names("go_c")
    with pytest.raises(ValueError, match="Did you mean 'ncbi'"):
        file_names("nbci")


def test_an_absent_file_is_named_with_what_was_looked_for(tmp_path):
    (tmp_path / "other.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"NCBI_gene_embeddings-gpt3.5-ada.pickle.*found other.txt"):
        find_gene_embeddings(tmp_path, "ncbi")


def test_rows_of_a_vocabulary():
    found = GeneEmbeddings.from_mapping(MAPPING)
    a, b, x = VOCABULARY.ids(["A", "B", "X"])
    rows = found.rows(VOCABULARY)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[[a, b]], VECTORS[:2], rtol=1e-6)
    assert not rows[[x, VOCABULARY.pad_id]].any()
    drawn = found.rows(VOCABULARY, missing="draw", rng=3)
    assert 0 < abs(drawn[x]).max() <= 0.1
    np.testing.assert_array_equal(drawn, found.rows(VOCABULARY, missing="draw", rng=3))
    assert not found.rows(VOCABULARY, genes=["A"])[b].any()


def test_no_overlap_is_refused():
    with pytest.raises(ValueError, match="Expected embeddings of genes of the vocabulary, such as B2"):
        GeneEmbeddings.from_mapping(MAPPING).rows(Vocabulary.from_genes(["B2"]))
    # With the original's table all texts would go to padding.
    for compat in (None, "upstream"):
        with pytest.raises(ValueError, match="found none among the 1 that `genes` names of 3"):
            GeneEmbeddings.from_mapping(MAPPING).rows(VOCABULARY, genes=["C", "X"], compat=compat)


def test_coverage_is_counted():
    report = GeneEmbeddings.from_mapping(MAPPING).report(VOCABULARY, ["A", "X", "Q", "B"])
    assert report == {"embedded": 3, "vocabulary": 3, "vocabulary_embedded": 2, "data": 4, "data_embedded": 2}


def test_one_text_is_no_list_of_genes():
    """Its letters would be counted."""
    found = GeneEmbeddings.from_mapping(MAPPING)
    for call in (
        found.coverage,
        lambda genes: found.report(VOCABULARY, genes),
        lambda genes: found.rows(VOCABULARY, genes=genes),
    ):
        with pytest.raises(TypeError, match="to be a list of texts, found 'AB'"):
            call("AB")
    with pytest.raises(TypeError, match="to be a list of texts"):
        GeneEmbeddings("ABC", VECTORS)


def test_coverage_counts_what_the_table_has():
    vocabulary = Vocabulary(["B", "A", "X", "<pad>", "<cls>"], aliases={"OLD_A": "A"})
    found = GeneEmbeddings(("OLD_A", "B", "C"), VECTORS)
    counts = found.report(vocabulary, ["A", "OLD_A", "X", "C"])
    assert counts["vocabulary_embedded"] == found.rows(vocabulary).any(axis=1).sum() == 2
    assert counts["data_embedded"] == 3


def test_the_text_of_an_alias_stands_behind_that_of_the_gene():
    vocabulary = Vocabulary(["B", "A", "<pad>", "<cls>"], aliases={"OLD_A": "A", "OLD_B": "B"})
    found = GeneEmbeddings(("A", "OLD_A", "OLD_B"), VECTORS)
    rows = found.rows(vocabulary)
    np.testing.assert_allclose(rows[:2], VECTORS[[2, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.rows(vocabulary, genes=["OLD_A"])[1], VECTORS[1], rtol=1e-6)


def test_references_in_a_pickle_do_not_multiply(tmp_path):
    value: list = [np.ones(1)]
    for _ in range(7):
        value = [value] * 60
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    found = read_pickle(tmp_path / "a.pkl")
    assert found[0] is found[59]
