"""Laws that hold for any input: of the tokenizer, the vocabulary, conditions, the formats and configurations."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from campaign.inputs import embedder
from campaign.sampling import LONG
from campaign.verdicts import is_clear
from scgpt_tools.config import from_dict, from_yaml, to_dict, to_yaml
from scgpt_tools.models import FAMILIES, CellModel, formats
from scgpt_tools.models.config import ModelConfig
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.perturbations import ConditionStyle, canonical_labels, condition_genes, format_condition
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.values import bin_row
from scgpt_tools.train import FitConfig
from scgpt_tools.vocabulary import Vocabulary

law = settings(
    max_examples=400 if LONG else 20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# Any text that files can hold; names of genes have dashes, dots and much else in them.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
tokens = st.lists(texts, min_size=1, max_size=30, unique=True)
symbols = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.", min_size=1, max_size=8).filter(lambda text: text != "ctrl")
GENES = [f"G{i}" for i in range(12)]
counts = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(12)), elements=st.integers(0, 30).map(float))
tokenizers = st.builds(
    TokenizerConfig,
    genes=st.sampled_from(["expressed", "all"]),
    bins=st.integers(2, 60),
    ties=st.sampled_from(["left", "random"]),
    length=st.one_of(st.none(), st.integers(2, 20)),
    overflow=st.sampled_from(["sample", "first"]),
    cls=st.just(value=True),
    pad_value=st.sampled_from([-2.0, 0.0]),
)


# ---------------------------------------------------------------------------------------------------------- vocabulary


@law
@given(tokens)
def test_a_vocabulary_is_read_as_it_was_written(names):
    vocabulary = Vocabulary(names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        vocabulary.save(path)
        again = Vocabulary.from_file(path)
    assert again == vocabulary
    assert again.checksum == vocabulary.checksum
    np.testing.assert_array_equal(again.ids(names), np.arange(len(names)))


@law
@given(tokens, tokens)
def test_new_tokens_move_no_old_one(names, more):
    vocabulary = Vocabulary(names)
    larger = vocabulary.extended(more)
    assert larger.tokens[: len(names)] == tuple(names)
    assert set(larger.tokens) == set(names) | set(more)
    assert larger.extended(more) is larger


@law
@given(st.dictionaries(texts, st.one_of(st.integers(-2, 12), st.floats(), st.none(), st.booleans(), texts), max_size=8))
def test_ids_are_whole_and_complete_or_refused(mapping):
    try:
        vocabulary = Vocabulary.from_mapping(mapping)
    except (ValueError, TypeError) as error:
        assert not is_clear(error)
        return
    assert {token: vocabulary[token] for token in vocabulary} == mapping
    assert not any(isinstance(index, bool) for index in mapping.values())


# ----------------------------------------------------------------------------------------------------------- tokenizer


def _tokens(
    X: np.ndarray, config: TokenizerConfig, keys: np.ndarray | None = None
) -> list[tuple[list[int], list[float]]]:
    """Tokens of each cell without its padding."""
    vocabulary = Vocabulary.from_genes(GENES)
    features = FeatureTable.from_var(pd.DataFrame(index=GENES), vocabulary)
    batch = Tokenizer(config, vocabulary)(
        sp.csr_matrix(X), features, np.arange(len(X)) if keys is None else keys, rng=3
    )
    return [
        (genes[mask].tolist(), values[mask].tolist())
        for genes, values, mask in zip(batch.genes, batch.values, batch.mask, strict=True)
    ]


@law
@given(counts, tokenizers)
def test_a_cell_has_the_same_tokens_alone_and_among_others(X, config):
    together = _tokens(X, config)
    alone = [_tokens(X[row : row + 1], config, np.array([row]))[0] for row in range(len(X))]
    assert together == alone


@law
@given(counts, tokenizers)
def test_tokens_are_no_more_than_allowed_and_of_expressed_genes(X, config):
    vocabulary = Vocabulary.from_genes(GENES)
    for row, (genes, values) in zip(X, _tokens(X, config), strict=True):
        assert genes[0] == vocabulary.cls_id
        assert len(genes) <= (config.length or 13)
        assert len(set(genes)) == len(genes)
        for gene, value in zip(genes[1:], values[1:], strict=True):
            count = row[GENES.index(vocabulary.tokens[gene])]
            assert 0 <= value < config.bins
            assert (value == 0) == (count == 0)
            assert count > 0 or config.genes == "all"


@law
@given(
    arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 50).map(float)),
    st.integers(2, 60),
    st.integers(1, 9),
)
def test_bins_rise_with_the_values_whatever_their_scale(values, bins, scale):
    binned = bin_row(values, bins)
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(binned[order]) >= 0)
    np.testing.assert_array_equal(bin_row(values * 2.0**scale, bins), binned)


# ---------------------------------------------------------------------------------------------------------- conditions


@law
@given(st.lists(symbols, min_size=1, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_one_set_of_genes_has_one_label(genes, rng):
    shuffled = rng.sample(genes, len(genes))
    spelled = ["+".join(genes), "+".join(shuffled), "+".join([*shuffled, "ctrl"])]
    labels = canonical_labels(spelled)
    assert len(set(labels.values())) == 1
    assert set(condition_genes(labels[spelled[0]])) == set(genes)


@law
@given(st.lists(symbols, max_size=4, unique=True))
def test_a_label_gives_back_its_genes(genes):
    label = format_condition(genes)
    assert set(condition_genes(label)) == set(genes)
    assert format_condition(condition_genes(label)) == label


@law
@given(st.text(max_size=20), st.sampled_from(["+", "_", ";", "||"]))
def test_any_label_is_read_or_refused(label, delimiter):
    try:
        genes = ConditionStyle(delimiter=delimiter).genes(label)
    except ValueError as error:
        assert not is_clear(error)
        return
    assert all(gene.strip() == gene and gene for gene in genes)
    assert len(set(genes)) == len(genes)


# ------------------------------------------------------------------------------------------------- formats and settings


@law
@given(
    family=st.sampled_from(["scgpt", "scgpt_perturbation"]),
    names=tokens,
    heads=st.sampled_from([1, 2]),
    layers=st.integers(1, 2),
    seed=st.integers(0, 99),
    format=st.sampled_from(["native", "scgpt"]),
)
def test_a_model_is_read_as_it_was_written(family, names, heads, layers, seed, format):
    assume(not {"<pad>", "<cls>", "<eoc>"} & set(names))
    vocabulary = Vocabulary(names).with_specials()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = FAMILIES[family](vocabulary, dim=8, layers=layers, heads=heads, hidden=8)
        model = CellModel(config, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        formats.write(Path(folder) / "model", config, vocabulary, model.state_dict(), format)
        again = CellModel.from_pretrained(Path(folder) / "model", device="cpu")
    assert again.vocabulary == vocabulary
    assert again.config == config or format == "scgpt"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


@law
@given(tokenizers)
def test_settings_are_read_as_they_were_written(config):
    changed = replace(embedder().config, tokenizer=config)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(changed)))) == changed


@law
@given(
    lr=st.floats(1e-8, 1),
    epochs=st.integers(1, 1000),
    schedule=st.sampled_from(["constant", "cosine", "step"]),
    clip=st.one_of(st.none(), st.floats(1e-3, 10)),
)
def test_settings_of_training_survive_a_file(lr, epochs, schedule, clip):
    config = FitConfig(lr=lr, epochs=epochs, schedule=schedule, clip=clip)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.yaml"
        to_yaml(config, path)
        assert from_yaml(FitConfig, path) == config


@law
@given(st.data())
def test_a_value_of_another_kind_is_refused_by_its_place(data):
    mapping = to_dict(embedder().config)
    place = data.draw(st.sampled_from(["dim", "n_tokens", "pad_id"]))
    value = data.draw(st.one_of(st.none(), texts, st.floats(), st.booleans(), st.lists(st.integers(), max_size=2)))
    with pytest.raises((TypeError, ValueError), match=place) as caught:
        from_dict(ModelConfig, mapping | {place: value})
    assert not is_clear(caught.value)
