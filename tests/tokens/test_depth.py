"""Tokens of sequencing depth, and cells with fewer molecules to learn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scgpt_tools.data.rows import row_keys
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.models.families.scmodelforge import SPECIALS, scfoundation_tokens
from scgpt_tools.tokens import DEPTH_TOKENS, MaskDownsampled, MaskValues
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.tokenizer import Tokenizer
from scgpt_tools.vocabulary import Vocabulary

GENES = [f"G{number}" for number in range(40)]
CLS, T, S, FIRST = 0, 1, 2, 3


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_genes(GENES, SPECIALS).extended(DEPTH_TOKENS)


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """(300, 41), of which the last column has no token and the first cell nothing else."""
    found = np.random.default_rng(0).poisson(6.0, (300, 41)) * np.random.default_rng(1).integers(0, 2, (300, 41))
    found[0, :-1] = 0
    return found


def tokens_of(counts, vocabulary, *, rows=None, **changes):
    tokenizer = Tokenizer(replace(scfoundation_tokens(), depth=True, **changes), vocabulary)
    features = FeatureTable.from_var(pd.DataFrame(index=[*GENES, "none"]), vocabulary)
    keys = row_keys([f"cell{number}" for number in range(len(counts))])
    return tokenizer, tokenizer(sp.csr_matrix(counts.astype(np.float32)), features, keys, rows=rows)


def test_both_are_the_logarithm_of_the_molecules(counts, vocabulary):
    _, batch = tokens_of(counts, vocabulary)
    assert batch.genes[:, T].unique().tolist() == [vocabulary["<target_depth>"]]
    assert batch.genes[:, S].unique().tolist() == [vocabulary["<source_depth>"]]
    molecules = counts[:, :-1].sum(axis=1)
    for column in (T, S):
        np.testing.assert_allclose(batch.values[1:, column], np.log10(molecules[1:]), rtol=1e-6)
    assert batch.values[0, [T, S]].tolist() == [0.0, 0.0]
    assert batch.genes[:, CLS].unique().tolist() == [vocabulary.cls_id]
    np.testing.assert_allclose(
        batch.values[1:, FIRST:], np.log1p(counts[1:, :-1] / molecules[1:, None] * 1e4), rtol=1e-5
    )


def test_they_are_part_of_the_length_of_a_cell(counts, vocabulary):
    tokenizer, batch = tokens_of(counts, vocabulary, length=10)
    assert batch.genes.shape == (300, 10)
    assert (batch.genes[:, FIRST:] < 4 + len(GENES)).all()
    features = FeatureTable.from_var(pd.DataFrame(index=[*GENES, "none"]), vocabulary)
    assert set(tokenizer.lengths(sp.csr_matrix(counts), features)) == {10}
    _, without = tokens_of(counts, vocabulary, cls=False)
    assert without.genes[0, :2].tolist() == [vocabulary[name] for name in DEPTH_TOKENS]


@pytest.mark.parametrize("length", [None, 20])
def test_cells_are_thinned_by_the_formula(counts, vocabulary, length):
    """Whole molecules that are no more than there were, scaled by their own number, which the token S tells."""
    tokenizer, batch = tokens_of(counts, vocabulary, length=length)
    hides = MaskDownsampled(least=0).of(tokenizer)
    found = hides(batch, 0)
    assert torch.equal(found.target, batch.values)
    assert torch.equal(found.values[:, [CLS, T]], batch.values[:, [CLS, T]])
    assert not found.hidden[:, :FIRST].any()
    assert (found.values[found.hidden] == -1).all()
    thinned = (found.values[:, S] != batch.values[:, S]).numpy()
    same = torch.where(found.hidden, batch.values, found.values)[~thinned]
    assert torch.equal(same, batch.values[~thinned])
    assert thinned[1:].mean() == pytest.approx(0.5, abs=0.1)
    seen = (~found.hidden[:, FIRST:] & (batch.values[:, FIRST:] > 0)).numpy() & thinned[:, None]
    before, after = (10.0 ** each.values[:, S].double().numpy() for each in (batch, found))
    values = found.values[:, FIRST:].double().numpy()
    molecules = np.expm1(values) / 1e4 * after[:, None]
    assert np.abs(molecules - molecules.round())[seen].max() < 0.01
    whole = np.expm1(batch.values[:, FIRST:].double().numpy()) / 1e4 * before[:, None]
    assert (molecules[seen] < whole[seen] + 0.5).all()
    # Half of them, as the beta distribution has it, and of genes as of cells.
    kept = (after / before)[thinned]
    assert kept.mean() == pytest.approx(0.5, abs=0.08)
    assert kept.var() == pytest.approx(1 / 20, abs=0.02)
    share = molecules[seen].sum() / np.where(seen, whole, 0).sum()
    expected = (np.where(seen, whole, 0).sum(axis=1) * after / before)[thinned].sum() / np.where(seen, whole, 0).sum()
    assert share == pytest.approx(expected, abs=0.03)


def test_a_cell_is_thinned_alike_beside_others(counts, vocabulary):
    tokenizer, batch = tokens_of(counts, vocabulary)
    hides = MaskDownsampled(least=0).of(tokenizer)
    some = torch.tensor([7, 200, 31])
    together, apart = hides(batch, 3).select(some), hides(batch.select(some), 3)
    assert torch.equal(together.values, apart.values)
    assert not torch.equal(hides(batch, 4).values, hides(batch, 3).values)


def test_small_cells_stay_whole(counts, vocabulary):
    tokenizer, batch = tokens_of(counts, vocabulary)
    found = MaskDownsampled(least=1000).of(tokenizer)(batch, 0)
    assert torch.equal(torch.where(found.hidden, batch.values, found.values), batch.values)


def test_other_corruptions_leave_them_visible(counts, vocabulary):
    tokenizer, batch = tokens_of(counts, vocabulary)
    hidden = MaskValues(ratio=0.9).of(tokenizer)(batch, 0).hidden
    assert not hidden[:, :FIRST].any()
    assert hidden[:, FIRST:].float().mean() == pytest.approx(0.9)
    assert MaskValues(keep_first=9).of(tokenizer).keep_first == 9


def test_a_network_reads_both(counts, vocabulary):
    config = FAMILIES["scmodelforge_autoencoder"](
        vocabulary, dim=16, layers=1, heads=2, dropout=0.0, decoder_layers=1, form="scfoundation", depth=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CellModel(config, vocabulary).eval()
    features = FeatureTable.from_var(pd.DataFrame(index=[*GENES, "none"]), vocabulary)
    batch = model.tokenizer(sp.csr_matrix(counts[1:4].astype(np.float32)), features, row_keys(["a", "b", "c"]))
    shown = MaskDownsampled().of(model.tokenizer)(batch, 0)
    with torch.no_grad():
        before = model(shown)
        for column in (T, S):
            values = shown.values.clone()
            values[:, column] += 1
            after = model(shown.replace(values=values))
            assert not torch.allclose(after["expression"][shown.hidden], before["expression"][shown.hidden])
            assert not torch.allclose(after.cell, before.cell)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": "binned", "bins": 5}, {"edges": (0.0, 1.0)}, {"linear_bins": 3}, {"positions": True}, {"length": 3},
        {"modalities": ("<pad>", "<cls>", "rna")},
    ],
)  # fmt: skip
def test_what_does_not_go_with_them_is_refused(vocabulary, changes):
    with pytest.raises(ValueError, match="depth=True|`length` to be at least 4"):
        replace(scfoundation_tokens(), depth=True, **changes)


def test_what_is_given_a_tokenizer_stays_as_it_was(counts, vocabulary):
    given = MaskDownsampled(keep_first=FIRST + 1)
    tokenizer, _ = tokens_of(counts, vocabulary)
    assert given.of(tokenizer).first == T
    assert given.first is None


def test_who_lacks_them_is_refused(counts, vocabulary):
    with pytest.raises(ValueError, match="Expected a vocabulary with the tokens"):
        Tokenizer(replace(scfoundation_tokens(), depth=True), Vocabulary.from_genes(GENES, SPECIALS))
    with pytest.raises(ValueError, match="Expected a tokenizer with depth=True"):
        MaskDownsampled().of(Tokenizer(scfoundation_tokens(), vocabulary))
    _, batch = tokens_of(counts, vocabulary)
    with pytest.raises(ValueError, match="to know its tokenizer"):
        MaskDownsampled()(batch, 0)
