"""Genes of a screen as tokens: none of the perturbed ones is lost, and the target is not shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgpt_tools.screens.tokens import ScreenTokens
from scgpt_tools.tokens.depth import DEPTH_TOKENS
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary

NAMES = [f"G{i}" for i in range(12)]
KNOWN = [*NAMES[:9], "ELSEWHERE"]
KEYS = np.array([11, 22, 33], dtype=np.uint64)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.from_genes(KNOWN).extended(DEPTH_TOKENS)


@pytest.fixture
def match(vocabulary):
    def make(**settings) -> ScreenTokens:
        features = FeatureTable.from_var(pd.DataFrame(index=NAMES), vocabulary)
        plain = {"genes": "all", "values": "raw", "bins": None, "length": None, "cls": False}
        return ScreenTokens.match(features, NAMES, Tokenizer(TokenizerConfig(**plain | settings), vocabulary))

    return make


@pytest.fixture
def controls(rng) -> sp.csr_matrix:
    values = rng.random((3, len(NAMES))).astype(np.float32)
    values[:, 4] = 0
    return sp.csr_matrix(values)


def test_columns_without_a_token_are_left_out(match, controls, vocabulary):
    batch, columns = match().batch(controls, [("G0",), (), ("G1", "G2")], KEYS, seed=0)
    np.testing.assert_array_equal(columns, np.tile(np.arange(9), (3, 1)))
    assert batch.mask.all()
    assert [vocabulary[name] for name in NAMES[:9]] == batch.genes[0].tolist()
    np.testing.assert_array_equal(batch.values.numpy(), controls.toarray()[:, :9])
    assert batch.perturbed.tolist() == [[1] + [0] * 8, [0] * 9, [0, 1, 1] + [0] * 6]
    assert batch.target is None


def test_with_padding_all_columns_take_part_as_in_the_original(match, controls, vocabulary):
    batch, columns = match(unknown="pad").batch(controls, [("G10",), (), ()], KEYS, seed=0)
    assert columns.shape == (3, 12)
    assert batch.genes[0, 9:].tolist() == [vocabulary.pad_id] * 3
    assert batch.mask.all()
    assert batch.perturbed[0].nonzero().ravel().tolist() == [10]


def test_batch_wise_takes_what_some_control_expresses_and_what_is_perturbed(match, controls):
    tokens = match(genes="batch-wise")
    _, columns = tokens.batch(controls, [(), (), ()], KEYS, seed=0)
    assert columns[0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    _, columns = tokens.batch(controls, [(), ("G4",), ()], KEYS, seed=0)
    assert columns[0].tolist() == list(range(9))
    original = match(genes="batch-wise", overflow="shared")
    batch, columns = original.batch(controls, [(), ("G4",), ()], KEYS, seed=0)
    assert columns[0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert not batch.perturbed.any(), "the original loses a perturbed gene that nobody expresses"


@pytest.mark.parametrize("seed", range(20))
def test_draws_never_lose_a_perturbed_gene(match, controls, seed):
    batch, columns = match(length=4).batch(controls, [("G0",), ("G3", "G8"), ()], KEYS, seed=seed)
    assert columns.shape == (3, 4)
    assert (np.diff(columns, axis=1) > 0).all()
    flagged = [set(own[flags]) for own, flags in zip(columns, batch.perturbed.numpy().astype(bool), strict=True)]
    assert flagged == [{0}, {3, 8}, set()]
    np.testing.assert_array_equal(batch.values.numpy(), np.take_along_axis(controls.toarray(), columns, axis=1))


def test_draws_belong_to_the_cell(match, controls):
    tokens = match(length=5)
    genes = [("G0",), ("G1",), ()]
    together = tokens.batch(controls, genes, KEYS, seed=3)[1]
    for row in range(3):
        alone = tokens.batch(controls[row], [genes[row]], KEYS[row : row + 1], seed=3)[1]
        np.testing.assert_array_equal(alone[0], together[row])
    assert len({tuple(tokens.batch(controls, genes, KEYS, seed=seed)[1][2]) for seed in range(8)}) > 1


def test_draws_of_the_original_are_shared_and_lose_perturbed_genes(match, controls):
    tokens = match(length=3, overflow="shared")
    lost = 0
    for seed in range(20):
        batch, columns = tokens.batch(controls, [("G0",)] * 3, KEYS, seed=seed)
        assert (columns == columns[0]).all()
        lost += not batch.perturbed.any()
    assert 0 < lost < 20


def test_the_original_takes_the_first_genes_for_the_expressed_ones(match):
    """In batch-wise mode it uses positions among the candidates as numbers of genes."""
    values = np.zeros((1, 12), dtype=np.float32)
    values[0, 4:9] = 1.0
    tokens = match(genes="batch-wise", overflow="shared", length=4)
    seen = {
        int(column)
        for seed in range(20)
        for column in tokens.batch(sp.csr_matrix(values), [()], KEYS[:1], seed=seed)[1][0]
    }
    assert seen == set(range(5))


def test_genes_that_are_not_measured_bring_their_token(match, controls, vocabulary):
    tokens = match(unmeasured="token")
    batch, columns = tokens.batch(controls, [("ELSEWHERE",), ("G1",), ()], KEYS, seed=0, targets=controls)
    assert batch.genes.shape == (3, 10)
    assert columns.shape == (3, 9)
    assert batch.genes[:, 9].tolist() == [vocabulary["ELSEWHERE"], vocabulary.pad_id, vocabulary.pad_id]
    assert batch.mask[:, 9].tolist() == [True, False, False]
    assert batch.perturbed[:, 9].tolist() == [1, 0, 0]
    assert batch.values[0, 9] == batch.target[0, 9] == 0


def test_genes_that_the_model_cannot_be_told_of_are_named(match, controls):
    with pytest.raises(
        ValueError, match=r"no column for ELSEWHERE and no token for G10, NOWHERE\. .*unmeasured='token'"
    ):
        match().check(["G0", "ELSEWHERE", "G10", "NOWHERE"])
    with pytest.raises(ValueError, match="no token for NOWHERE"):
        match(unmeasured="token").batch(controls, [("NOWHERE",), (), ()], KEYS, seed=0)
    with pytest.raises(ValueError, match=r"no token for g1, NOWHERE\. .*Did you mean G1\?"):
        match().check(["G0", "g1", "NOWHERE"])
    match(unmeasured="token").check(["G0", "ELSEWHERE"])


def test_more_perturbed_genes_than_room_are_refused(match, controls):
    with pytest.raises(ValueError, match="room for 3 perturbed genes, found length=2"):
        match(length=2).batch(controls, [("G0", "G1", "G2"), (), ()], KEYS, seed=0)


def test_values_are_those_of_the_tokenizer(match, controls):
    """Bins of a cell are of all its genes, and what is to be predicted stays as it is."""
    batch, columns = match(values="binned", bins=4, length=5).batch(
        controls, [("G0",), (), ()], KEYS, seed=0, targets=controls
    )
    tokens = match(values="binned", bins=4)
    bins = tokens.tokenizer.bin_rows(controls, tokens.features, KEYS).toarray()
    np.testing.assert_array_equal(batch.values.numpy(), np.take_along_axis(bins, columns, axis=1))
    np.testing.assert_array_equal(batch.target.numpy(), np.take_along_axis(controls.toarray(), columns, axis=1))


def test_all_genes_are_the_tokens_of_any_other_cell(match, controls):
    """Without a draw the tokens of a control are those that the tokenizer makes of it elsewhere."""
    for settings in ({}, {"unknown": "pad"}, {"values": "log1p"}):
        tokens = match(**settings)
        batch, _ = tokens.batch(controls, [()] * 3, KEYS, seed=0)
        plain = tokens.tokenizer(controls, tokens.features, KEYS)
        for name in ("genes", "values", "mask"):
            np.testing.assert_allclose(getattr(batch, name).numpy(), getattr(plain, name).numpy(), rtol=1e-6)


def test_the_first_genes_and_the_perturbed_ones_stay(match, controls):
    _, columns = match(length=3, overflow="first").batch(controls, [("G7",), ("G1",), ()], KEYS, seed=0)
    assert columns.tolist() == [[0, 1, 7], [0, 1, 2], [0, 1, 2]]


def test_a_cell_token_has_no_place(match):
    with pytest.raises(ValueError, match="without a cell token for perturbations, found cls=True"):
        match(cls=True)
    with pytest.raises(ValueError, match="without tokens of depth for perturbations"):
        match(depth=True)
