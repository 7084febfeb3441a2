"""Cells become the tokens that plain NumPy makes of them, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.data.rows import RowSource, row_keys
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.orders import sample, tie_uniforms
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.values import bin_row

SEED = 11
CONFIGS = {
    "left": {},
    "random": {"ties": "random"},
    "few bins": {"bins": 5},
    "sampled": {"length": 7},
    "sampled with ties": {"length": 7, "ties": "random", "bins": 11},
    "first": {"length": 7, "overflow": "first"},
    "no cell token": {"cls": False, "length": 6},
    "one gene": {"length": 2},
    "everything": {"genes": "all"},
    "sampled from everything": {"genes": "all", "length": 9, "ties": "random"},
    "everything without limit": {"genes": "all", "length": None, "cls": False},
    "log1p": {"values": "log1p", "bins": None, "expects": "counts"},
    "raw": {"values": "raw", "bins": None, "length": None, "cls_value": 0.0, "pad_value": -7.0},
}


@pytest.fixture
def features(adata, vocabulary) -> FeatureTable:
    return FeatureTable.from_var(adata.var, vocabulary)


@pytest.fixture(params=CONFIGS)
def tokenizer(request, vocabulary) -> Tokenizer:
    return Tokenizer(TokenizerConfig(**CONFIGS[request.param]), vocabulary)


def plain(row: np.ndarray, features: FeatureTable, key: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """One cell by the rules, a step at a time."""
    config = tokenizer.config
    order = np.argsort(features.columns)
    columns, ids = features.columns[order], features.ids[order]
    values = row[columns]
    if config.genes == "expressed":
        ids, values = ids[values != 0], values[values != 0]
    if config.values == "binned":
        uniforms = tie_uniforms(SEED, key, ids[values != 0])
        values = bin_row(values.astype(np.float64), config.bins, ties=config.ties, uniforms=uniforms)
    elif config.values == "log1p":
        values = np.log1p(values.astype(np.float64))
    room = (config.length or 10**9) - config.cls
    if ids.size > room:
        kept = sample(SEED, key, ids, room) if config.overflow == "sample" else np.arange(room)
        ids, values = ids[kept], values[kept]
    if config.cls:
        ids, values = [tokenizer.vocabulary.cls_id, *ids], [config.cls_value, *values]
    return np.asarray(ids, dtype=np.int64), np.asarray(values, dtype=np.float32)


def cells_of(batch) -> list[tuple[list[int], list[float]]]:
    """Tokens of each cell, without padding."""
    rows = zip(batch.genes, batch.values, batch.mask, strict=True)
    return [(genes[mask].tolist(), values[mask].tolist()) for genes, values, mask in rows]


def assert_same(first, second):
    for name in ("genes", "values", "mask", "modality"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None and other is None) or torch.equal(one, other), name


def test_every_cell_is_what_the_rules_say(adata, counts, features, tokenizer):
    keys = row_keys(adata.obs_names)
    batch = tokenizer(counts, features, keys, rng=SEED)
    for row, key, found in zip(counts.toarray(), keys, cells_of(batch), strict=True):
        genes, values = plain(row, features, int(key), tokenizer)
        assert found == (genes.tolist(), values.tolist())
    lengths = batch.mask.sum(1)
    assert lengths.tolist() == tokenizer.lengths(counts, features).tolist()
    assert batch.genes.shape[1] == lengths.max()
    assert torch.equal(batch.mask, torch.arange(int(lengths.max())) < lengths[:, None])
    assert (batch.genes[~batch.mask] == tokenizer.vocabulary.pad_id).all()
    assert (batch.values[~batch.mask] == tokenizer.config.pad_value).all()
    assert (batch.genes.dtype, batch.values.dtype, batch.mask.dtype) == (torch.int64, torch.float32, torch.bool)


def test_random_cells_are_what_the_rules_say(vocabulary, features, tokenizer, rng):
    """Many cells of all kinds: sparse and full, counts and fractions, float32 and float64."""
    for _ in range(30):
        shape = (int(rng.integers(1, 9)), features.n_columns)
        dense = rng.poisson(rng.choice([0.1, 1, 5]), shape) * rng.choice([1, 0.37, rng.random()])
        dense = dense.astype(rng.choice(["float32", "float64"]))
        keys = rng.integers(2**63, size=len(dense), dtype=np.uint64)
        batch = tokenizer(sp.csr_matrix(dense), features, keys, rng=SEED)
        for row, key, found in zip(dense, keys, cells_of(batch), strict=True):
            genes, values = plain(row, features, int(key), tokenizer)
            assert found == (genes.tolist(), values.tolist())


def test_a_cell_does_not_feel_its_neighbours(adata, counts, features, tokenizer, rng):
    keys = row_keys(adata.obs_names)
    together = cells_of(tokenizer(counts, features, keys, rng=SEED))
    for size in (1, 2, 5):
        order = rng.permutation(len(together))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            expected = [together[row] for row in rows]
            picked = tokenizer(counts, features, keys, rng=SEED, rows=rows)
            assert picked.index.tolist() == rows.tolist()
            assert cells_of(picked) == expected
            assert cells_of(tokenizer(counts[rows], features, keys[rows], rng=SEED)) == expected


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "first"])
def test_the_order_of_columns_does_not_change_the_tokens_of_a_cell(name, adata, counts, vocabulary, rng):
    tokenizer = Tokenizer(TokenizerConfig(**CONFIGS[name]), vocabulary)
    keys = row_keys(adata.obs_names)
    order = rng.permutation(adata.n_vars)
    first = tokenizer(counts, FeatureTable.from_var(adata.var, vocabulary), keys, rng=SEED)
    features = FeatureTable.from_var(adata.var.iloc[order], vocabulary)
    second = tokenizer(counts[:, order], features, keys, rng=SEED)
    for one, other in zip(cells_of(first), cells_of(second), strict=True):
        assert sorted(zip(*one, strict=True)) == sorted(zip(*other, strict=True))


def test_every_form_of_a_table_gives_the_same_tokens(adata, twin, features, tokenizer):
    expected = tokenizer(adata.X, features, row_keys(adata.obs_names), rng=SEED)
    source = RowSource(twin)
    for rows in (1, 5, 100):
        parts = [tokenizer(block.X, features, source.keys[block.index], rng=SEED) for block in source.blocks(rows)]
        assert [cell for part in parts for cell in cells_of(part)] == cells_of(expected)
    assert_same(tokenizer(source.take(np.arange(len(source))), features, source.keys, rng=SEED), expected)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.get("bins", 51)])
def test_bins_that_were_kept_give_the_same_tokens(name, adata, counts, features, vocabulary):
    tokenizer = Tokenizer(TokenizerConfig(**CONFIGS[name]), vocabulary)
    keys = row_keys(adata.obs_names)
    kept = tokenizer.bin_rows(counts, features, keys, rng=SEED)
    assert kept.dtype == np.uint8
    assert kept.shape == counts.shape
    assert np.array_equal(kept.toarray() > 0, (counts.toarray() > 0) & np.isin(np.arange(30), features.columns))
    again = tokenizer(kept, features, keys, rng=SEED, prebinned=True)
    assert_same(again, tokenizer(counts, features, keys, rng=SEED))


def test_another_seed_draws_other_tokens_and_another_call_the_same(adata, counts, features, vocabulary):
    tokenizer = Tokenizer(TokenizerConfig(length=7, ties="random"), vocabulary)
    keys = row_keys(adata.obs_names)
    first = tokenizer(counts, features, keys, rng=0)
    assert_same(first, tokenizer(counts, features, keys))
    other = tokenizer(counts, features, keys, rng=1)
    assert not torch.equal(first.genes, other.genes)
    assert not torch.equal(first.values, other.values)
    state = np.random.get_state()[1].copy()
    tokenizer(counts, features, keys, rng=None)
    assert np.array_equal(state, np.random.get_state()[1])


def test_a_cell_without_known_genes_has_the_cell_token_only(vocabulary, features):
    unknown = np.setdiff1d(np.arange(features.n_columns), features.columns)
    dense = np.zeros((2, features.n_columns), dtype=np.float32)
    dense[1, unknown] = 3
    batch = Tokenizer(TokenizerConfig(), vocabulary)(sp.csr_matrix(dense), features, np.arange(2))
    assert batch.genes.tolist() == [[vocabulary.cls_id]] * 2
    assert batch.mask.all()
    bare = Tokenizer(TokenizerConfig(cls=False), vocabulary)(sp.csr_matrix(dense), features, np.arange(2))
    assert bare.genes.shape == (2, 0)


def test_no_cells(vocabulary, features):
    batch = Tokenizer(TokenizerConfig(), vocabulary)(sp.csr_matrix((0, features.n_columns)), features, [])
    assert batch.genes.shape == (0, 0)


def test_a_gene_that_stands_twice_is_two_tokens_where_asked(vocabulary):
    var = pd.DataFrame(index=["GENE1", "GENE2", "GENE1"])
    features = FeatureTable.from_var(var, vocabulary, duplicates="all")
    batch = Tokenizer(TokenizerConfig(values="raw", bins=None, length=3, cls=False), vocabulary)(
        sp.csr_matrix([[1.0, 2, 3]]), features, [0]
    )
    first, second = vocabulary["GENE1"], vocabulary["GENE2"]
    assert batch.genes.tolist() == [[first, second, first]]
    assert batch.values.tolist() == [[1, 2, 3]]


def test_modalities(vocabulary, features):
    modalities = ("RNA", "Protein", "<pad>", "<cls>")
    tokenizer = Tokenizer(TokenizerConfig(modalities=modalities), vocabulary)
    matrix = sp.csr_matrix(np.tri(3, features.n_columns, 4, dtype=np.float32))
    with pytest.raises(ValueError, match="Expected features with modalities among"):
        tokenizer(matrix, features, np.arange(3))
    modality = np.arange(len(features)) % 2
    batch = tokenizer(matrix, replace(features, modality=modality), np.arange(3))
    of_token = dict(zip(features.ids.tolist(), modality.tolist(), strict=True))
    of_token |= {vocabulary.pad_id: 2, vocabulary.cls_id: 3}
    assert batch.modality.tolist() == [[of_token[gene] for gene in row] for row in batch.genes.tolist()]
    assert Tokenizer(TokenizerConfig(), vocabulary)(matrix, features, np.arange(3)).modality is None


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("method", ["__call__", "lengths", "bin_rows"])
def test_bad_values_are_refused_wherever_they_are(value, method, vocabulary, features):
    dense = np.ones((2, features.n_columns))
    dense[1, 0] = value  # GENE0 has no token
    tokenizer = Tokenizer(TokenizerConfig(), vocabulary)
    arguments = () if method == "lengths" else (np.arange(2),)
    with pytest.raises(ValueError, match=f"not negative, found {value} in row 1, column 0"):
        getattr(tokenizer, method)(sp.csr_matrix(dense), features, *arguments)


def test_shapes_that_do_not_fit(vocabulary, features, counts):
    tokenizer = Tokenizer(TokenizerConfig(), vocabulary)
    with pytest.raises(ValueError, match="Expected a matrix of 30 columns, as matched, found 29"):
        tokenizer(counts[:, :29], features, np.arange(12))
    with pytest.raises(ValueError, match=r"Expected `keys` to hold one number for each of 12 rows, found \(3,\)"):
        tokenizer(counts, features, np.arange(3))
    with pytest.raises(ValueError, match=r"Expected `index` to hold one number for each of 12 rows"):
        tokenizer(counts, features, np.arange(12), index=[1])
    with pytest.raises(IndexError, match=r"Expected `rows` among 0 to 11, found 12"):
        tokenizer(counts, features, np.arange(12), rows=[0, 12])
    with pytest.raises(ValueError, match="Expected a tokenizer with values='binned', found 'log1p'"):
        Tokenizer(TokenizerConfig(values="log1p", bins=None), vocabulary).bin_rows(counts, features, np.arange(12))


def test_index(counts, features, vocabulary):
    batch = Tokenizer(TokenizerConfig(), vocabulary)(
        counts, features, np.arange(12), index=np.arange(100, 112), rows=[3, 1]
    )
    assert batch.index.tolist() == [103, 101]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": "log1p"}, "`bins` goes with values='binned' only"),
        ({"bins": None}, "`bins` goes with values='binned' only"),
        ({"bins": 1}, "Expected `bins` to be at least 2"),
        ({"length": 1}, "Expected `length` to be at least 2"),
        ({"length": 0, "cls": False}, "Expected `length` to be at least 1"),
        ({"genes": "some"}, "Expected `genes` to be one of 'expressed', 'all', 'batch-wise', found 'some'"),
        ({"ties": "both"}, "Expected `ties` to be one of"),
        ({"unknown": "keep"}, "Expected `unknown` to be one of 'drop', 'pad'"),
        ({"unknown": "pad", "modalities": ("<pad>", "<cls>")}, "Expected unknown='drop' for several modalities"),
        ({"modalities": ("RNA",)}, "Expected `modalities` to hold '<pad>' and '<cls>'"),
    ],
)
def test_configurations_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**fields)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_survive_files(name):
    config = TokenizerConfig(**CONFIGS[name], modalities=("RNA", "<pad>", "<cls>"))
    assert from_dict(TokenizerConfig, to_dict(config)) == config
