"""Tokens of several modalities in one stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mudatas import GENES, PEAKS, PROTEINS, make_base, make_mudata
from scgpt_tools.data.modalities import ModalityRows
from scgpt_tools.tokens import FeatureTable, ModalityConfig, Tokenizer, TokenizerConfig
from scgpt_tools.tokens.joint import JointTokenizer, tokenizer_of, unscaled
from scgpt_tools.tokens.joint_features import match_modalities
from scgpt_tools.tokens.modalities import modality_names, resolve_modalities

PROTEIN = {"standard": False, "scale": 10.0}


def opened(mdata, given=None, **changes):
    """Values, features, tokenizer and keys of a MuData."""
    parts = resolve_modalities(mdata.mod, given or {name: PROTEIN if name == "prot" else None for name in mdata.mod})
    features = match_modalities(mdata, make_base().vocabulary, parts, min_coverage=0)
    config = TokenizerConfig(modalities=modality_names(parts), parts=parts, length=None, **changes)
    rows = ModalityRows(mdata, modalities=[part.name for part in parts])
    return rows.take(np.arange(len(rows))), features, JointTokenizer(config, features.vocabulary), rows.keys


def of(batch, tokenizer, name):
    """Mask of the tokens of a modality."""
    return batch.mask & (batch.modality == tokenizer.config.modalities.index(name))


def test_each_configuration_has_its_tokenizer():
    _, features, tokenizer, _ = opened(make_mudata())
    assert type(tokenizer_of(tokenizer.config, features.vocabulary)) is JointTokenizer
    assert type(tokenizer_of(TokenizerConfig(), features.vocabulary)) is Tokenizer
    with pytest.raises(ValueError, match="one modality, found several"):
        Tokenizer(tokenizer.config, features.vocabulary)


def test_names_do_not_collide_and_old_tokens_keep_their_ids():
    base = make_base().vocabulary
    features = match_modalities(make_mudata(), base, min_coverage=0)
    assert features.vocabulary.tokens[: len(base)] == base.tokens
    assert list(features.vocabulary.tokens[len(base) :]) == [f"p_{name}" for name in PROTEINS]
    assert {"GENE3", "p_GENE3"} <= set(features.names)
    assert features.coverage.n_features == len(GENES) + len(PROTEINS)
    assert features.coverage.n_matched == 20 + len(PROTEINS)
    assert features.n_columns == len(GENES) + len(PROTEINS) + 2


def test_each_modality_is_tokenized_by_itself():
    mdata = make_mudata()
    X, features, tokenizer, keys = opened(mdata)
    batch = tokenizer(X, features, keys, rng=1)
    single = Tokenizer(TokenizerConfig(cls=False, length=None), make_base().vocabulary)
    alone = single(mdata["rna"].X, FeatureTable.from_var(mdata["rna"].var, single.vocabulary), keys, rng=1)
    mine = of(batch, tokenizer, "rna")
    np.testing.assert_array_equal(batch.genes[mine], alone.genes[alone.mask])
    np.testing.assert_array_equal(batch.values[mine], alone.values[alone.mask])
    assert (batch.genes[:, 0] == tokenizer.vocabulary.cls_id).all()
    assert (batch.modality[:, 0] == tokenizer.config.modalities.index("<cls>")).all()
    assert (batch.modality[~batch.mask] == tokenizer.config.modalities.index("<pad>")).all()
    np.testing.assert_array_equal(tokenizer.lengths(X, features), batch.mask.sum(1))


def test_centred_log_ratios_are_those_of_the_panel():
    mdata = make_mudata()
    X, features, tokenizer, keys = opened(mdata)
    batch = tokenizer(X, features, keys)
    counts = mdata["prot"].X.astype(float)
    expected = 10 * np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))
    found = batch.values[of(batch, tokenizer, "prot")].reshape(len(counts), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_standard_values_have_one_mean_and_spread():
    mdata = make_mudata()
    counts = mdata["prot"].X.astype(float)
    ratios = np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))
    names = tuple(f"p_{name}" for name in reversed(PROTEINS))
    learnt = {
        "keep": names,
        "centers": tuple(ratios.mean(0)[::-1].tolist()),
        "spreads": tuple(ratios.std(0)[::-1].tolist()),
    }
    X, features, tokenizer, keys = opened(mdata, {"rna": None, "prot": learnt})
    batch = tokenizer(X, features, keys)
    found = batch.values[of(batch, tokenizer, "prot")].reshape(len(counts), -1).numpy()
    np.testing.assert_allclose(found, 20 + 8 * (ratios - ratios.mean(0)) / ratios.std(0), atol=1e-4)
    part = tokenizer.config.parts[1]
    np.testing.assert_allclose(unscaled(found, part, [f"p_{name}" for name in PROTEINS]), ratios, atol=1e-4)
    with pytest.raises(ValueError, match="which training learns"):
        tokenizer = JointTokenizer(
            replace(tokenizer.config, parts=(replace(part, centers=None),)), tokenizer.vocabulary
        )
        only = ModalityRows(mdata, modalities=["prot"])
        features = match_modalities(mdata, tokenizer.vocabulary, [part])
        tokenizer(only.take([0]), features, keys[:1])


def test_peaks_are_open_or_not_and_do_not_crowd_out_genes():
    mdata = make_mudata(peaks=True)
    caps = {"rna": {"length": 6}, "prot": PROTEIN, "atac": {"length": 3, "values": "binary", "scale": 1.0}}
    X, features, tokenizer, keys = opened(mdata, caps)
    batch = tokenizer(X, features, keys, rng=3)
    assert set(batch.values[of(batch, tokenizer, "atac")].tolist()) == {1.0}
    assert of(batch, tokenizer, "rna").sum(1).max() == 6
    assert of(batch, tokenizer, "atac").sum(1).max() == 3
    assert set(of(batch, tokenizer, "prot").sum(1).tolist()) == {len(PROTEINS)}


def test_cells_that_were_not_measured_have_no_tokens():
    mdata = make_mudata(mosaic=True)
    X, features, tokenizer, keys = opened(mdata)
    batch = tokenizer(X, features, keys)
    for name, table in mdata.mod.items():
        there = mdata.obs_names.isin(table.obs_names)
        np.testing.assert_array_equal(of(batch, tokenizer, name).any(1), there)
    assert 0 < there.sum() < len(there)


def test_a_cell_depends_on_nothing_around_it():
    mdata = make_mudata(peaks=True)
    X, features, tokenizer, keys = opened(mdata, {"rna": {"length": 5}, "prot": PROTEIN, "atac": {"length": 4}})
    whole = tokenizer(X, features, keys, rng=5)
    for rows in ([7], [3, 7, 1]):
        some = tokenizer(X, features, keys, rng=5, rows=rows)
        place = rows.index(7)
        width = int(some.mask[place].sum())
        assert some.index[place] == 7
        for name in ("genes", "values", "modality"):
            np.testing.assert_array_equal(getattr(some, name)[place, :width], getattr(whole, name)[7, :width])


def test_kept_values_give_the_same_tokens():
    X, features, tokenizer, keys = opened(make_mudata(peaks=True))
    batch = tokenizer(X, features, keys, rng=2)
    blocks = X.tolil()
    for span, own, part in zip(features.spans, features.parts, tokenizer.config.parts, strict=True):
        kept = tokenizer.kept_values(part, X[:, span.start : span.stop], own, keys, seed=2)
        blocks[:, span.start : span.stop] = kept.toarray()
    again = tokenizer(blocks.tocsr(), features, keys, rng=2, prebinned=True)
    np.testing.assert_array_equal(batch.genes, again.genes)
    np.testing.assert_allclose(batch.values, again.values, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (
            lambda m: m,
            [ModalityConfig(name="rna", extend=True), ModalityConfig(name="prot", extend=True)],
            "'GENE3' in",
        ),
        (lambda m: m, [ModalityConfig(name="prot", prefix="p_")], "found extend=False"),
        (lambda m: _rename(m, ["A", "A", "B", "C"]), None, "found 1 names again: A"),
        (lambda m: _rename(m, ["A", None, "B", "C"]), None, "found 1 without"),
    ],
    ids=["one token twice", "prefix without new tokens", "a name twice", "no name"],
)
def test_features_that_cannot_be_told_apart(change, given, message):
    with pytest.raises(ValueError, match=message):
        match_modalities(change(make_mudata()), make_base().vocabulary, given, min_coverage=0)


def test_a_fixed_vocabulary_has_to_know_something():
    mdata, base = make_mudata(), make_base().vocabulary
    with pytest.raises(ValueError, match="no token 'p_CD4'"):
        match_modalities(mdata, base, extend=False)
    with pytest.raises(KeyError, match="Found no modality 'atac'"):
        match_modalities(mdata, base, [ModalityConfig(name="atac", prefix="a_", extend=True)])
    assert len(PEAKS) == 12


class _Fake:
    """Something with tables by name, as a MuData has."""

    def __init__(self, mod):
        self.mod = mod


def _rename(mdata, names):
    prot = type("Table", (), {"var": pd.DataFrame(index=pd.Index(names, dtype=object))})
    return _Fake({"rna": mdata["rna"], "prot": prot})
