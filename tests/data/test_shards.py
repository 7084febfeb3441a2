"""Shards there and back, and what is refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.shards import open_shards, shard_rows, write_shards
from scgpt_tools.tokens import FeatureTable
from scgpt_tools.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["<pad>", "<cls>", "A", "B", "C"])


@pytest.fixture
def cells() -> ad.AnnData:
    X = np.random.default_rng(0).poisson(0.7, size=(7, 4)).astype(np.float32)
    X[2] = 0
    return ad.AnnData(X, pd.DataFrame(index=[f"cell{i}" for i in range(7)]), pd.DataFrame(index=list("CxAB")))


def written(cells, folder, **options):
    features = FeatureTable.from_var(cells.var, VOCABULARY, min_coverage=0)
    return write_shards(RowSource(cells), features, VOCABULARY, folder, shard_size=3, **options)


def test_there_and_back(cells, tmp_path):
    shards = open_shards(written(cells, tmp_path), VOCABULARY)
    assert [len(shard.n_genes) for shard in shards] == [3, 3, 1]
    assert isinstance(shards[0].values, np.memmap)
    found = np.concatenate([shard.matrix(len(VOCABULARY)).toarray() for shard in shards])
    np.testing.assert_array_equal(found[:, [4, 2, 3]], cells.X[:, [0, 2, 3]])
    assert not found[2].any()


def test_refusals(cells, tmp_path):
    written(cells, tmp_path)
    with pytest.raises(FileExistsError, match=r"manifest\.json"):
        written(cells, tmp_path)
    with pytest.raises(ValueError, match="those of another"):
        open_shards(tmp_path, Vocabulary(["<pad>", "<cls>", "B", "A", "C"]))
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        open_shards(tmp_path / "shard_000", VOCABULARY)


def test_columns_that_are_not_there(cells, tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(KeyError, match="kind"):
        written(cells, tmp_path, obs_keys=["kind"])
    shard = open_shards(written(cells, tmp_path, obs_keys=["kind"], absent="unknown"), VOCABULARY)[0]
    assert shard.obs["kind"].tolist() == ["unknown"] * 3


def test_columns_keep_their_kind_and_missing_values(cells, tmp_path):
    """Also where a shard of three cells has missing values only."""
    pytest.importorskip("pyarrow", reason="columns are kept as parquet (extra text)")
    columns = {
        "category": pd.Categorical(["a", "b", None, "a", "a", "b", "b"], categories=["b", "a", "unseen"], ordered=True),
        "text": np.array([None, np.nan, None, "", "x", "nan", "\u00fc"], dtype=object),
        "truth": np.array([None, None, None, True, False, True, True], dtype=object),
        "flag": [True, False] * 3 + [True],
        "whole": pd.array([None, None, None, 1, 2, 2**60 + 1, 3], dtype="Int64"),
        "number": [np.nan, 1.5, 2, 3, 4, 5, 6],
        "codes": pd.Categorical([1, 2, 1, 2, 1, 2, None]),
        "mixed": np.array([1, "a", None, 2.5, "b", "c", "d"], dtype=object),
    }
    cells.obs = pd.DataFrame(columns, index=cells.obs_names)
    found = shard_rows(written(cells, tmp_path / "shards", obs_keys=list(columns))).obs
    assert found.index.equals(cells.obs_names)
    pd.testing.assert_series_equal(found["category"], cells.obs["category"])
    for name in ("text", "truth", "whole", "number", "codes", "mixed"):
        assert found[name].isna().tolist() == cells.obs[name].isna().tolist(), name
    assert found["text"].dropna().tolist() == ["", "x", "nan", "\u00fc"]
    assert found["truth"].dropna().tolist() == [True, False, True, True]
    assert found["whole"].dropna().tolist() == [1, 2, 2**60 + 1, 3]
    assert found["codes"].dropna().tolist() == [1, 2, 1, 2, 1, 2]
    assert found["mixed"].dropna().tolist() == ["1", "a", "2.5", "b", "c", "d"]
    assert found["number"].equals(cells.obs["number"])
    assert found["flag"].dtype == bool
    assert found["flag"].tolist() == cells.obs["flag"].tolist()


def test_cells_keep_their_names(cells, tmp_path):
    cells.obs_names = [f"zell-{name}\u00fc" for name in cells.obs_names]
    place = written(cells, tmp_path / "shards")
    assert shard_rows(place).names.tolist() == cells.obs_names.tolist()
    # Those of the original, which writes none.
    (place / "obs_names.npy").unlink()
    assert shard_rows(place).names.tolist() == [f"shards-{n}" for n in range(7)]


def test_genes_are_those_of_the_table_in_its_order(cells, tmp_path):
    place = written(cells, tmp_path / "shards")
    rows = shard_rows(place)
    assert rows.adata.var_names.tolist() == ["C", "A", "B"]
    np.testing.assert_array_equal(rows.take(np.arange(7)).toarray(), cells.X[:, [0, 2, 3]])
    (place / "measured_genes.json").write_text('["Z"]')
    with pytest.raises(ValueError, match=r"Expected .*measured_genes\.json' to list genes of gene_vocab\.json"):
        shard_rows(place)
    # Those of the original, which says nothing of it.
    (place / "measured_genes.json").unlink()
    assert shard_rows(place).adata.var_names.tolist() == ["A", "B", "C"]
