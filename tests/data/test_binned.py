"""Bins that were kept are used only where the model would have made the same."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

import scgpt_tools as sct
from scgpt_tools.data.binned import read_binned
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture
def binned(adata, vocabulary) -> ad.AnnData:
    sct.pp.tokenize(adata, vocabulary, ties="random", rng=5, show_progress=False)
    return adata


CONFIG = TokenizerConfig(ties="random", length=9)


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning", "ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("store", ["memory", "h5ad", "zarr"])
def test_kept_bins_give_the_tokens_that_the_values_give(binned, vocabulary, tmp_path, store):
    table = binned
    if store == "h5ad":
        binned.write_h5ad(tmp_path / "cells.h5ad")
        table = ad.read_h5ad(tmp_path / "cells.h5ad")
    elif store == "zarr":
        with ad.settings.override(zarr_write_format=3):
            binned.write_zarr(tmp_path / "cells.zarr")
        table = ad.read_zarr(tmp_path / "cells.zarr")
    kept = read_binned(table, vocabulary, CONFIG)
    tokenizer = Tokenizer(CONFIG, vocabulary)
    values, bins = RowSource(table), RowSource(table, layer=kept.layer)
    rows = np.arange(len(values))
    first = tokenizer(values.take(rows), kept.features, values.keys, rng=kept.settings.rng)
    second = tokenizer(bins.take(rows), kept.features, bins.keys, rng=kept.settings.rng, prebinned=True)
    for name in ("genes", "values", "mask"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert (kept.settings.rng, kept.settings.bins, kept.settings.ties) == (5, 51, "random")
    assert (kept.settings.layer, kept.settings.genes, kept.settings.model) == (None, None, "")


def test_a_part_of_the_table_keeps_its_bins(binned, vocabulary):
    part = binned[3:8, ::-1].copy()
    kept = read_binned(part, vocabulary, CONFIG)
    assert kept.features.n_columns == 30
    assert [part.var_names[column] for column in kept.features.columns] == list(kept.features.names)
    assert kept.features.ids.tolist() == vocabulary.ids(kept.features.names).tolist()
    assert kept.features.coverage.n_matched == len(kept.features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 11}, "Expected bins with bins 11 in 'X_binned', found 51"),
        ({"ties": "left"}, "Expected bins with ties 'left' in 'X_binned', found 'random'"),
        ({"vocabulary": True}, "Expected bins with vocabulary '[0-9a-f]{64}'"),
        ({"values": "log1p", "bins": None}, "Expected bins with bins None"),
    ],
)
def test_bins_of_another_model_are_refused(binned, vocabulary, change, message):
    other = vocabulary.extended(["NEW"]) if change.pop("vocabulary", False) else vocabulary
    config = TokenizerConfig(**{"ties": "random", **change})
    with pytest.raises(ValueError, match=message):
        read_binned(binned, other, config)


@pytest.mark.parametrize("place", ["layers", "var", "uns"])
def test_what_is_missing_is_named(binned, vocabulary, place):
    key = {"layers": "X_binned", "var": "X_binned_token_id", "uns": "X_binned"}[place]
    del getattr(binned, place)[key]
    with pytest.raises(KeyError, match=rf"Found no key in `{place}`: '{key}'.* `sct.pp.tokenize\(adata, key_added="):
        read_binned(binned, vocabulary, CONFIG)
