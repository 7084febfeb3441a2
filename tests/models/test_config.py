"""Configurations of models: what is refused, and that they survive files."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from scgpt_tools import testing
from scgpt_tools.config import from_dict, from_yaml, to_dict, to_yaml
from scgpt_tools.models import FAMILIES, ModelConfig
from scgpt_tools.models.config import (
    AdversaryConfig,
    AffineConfig,
    ClassifierConfig,
    ContextConfig,
    DualStreamConfig,
    ExpressionConfig,
    FromCellConfig,
    GenesConfig,
    Named,
    TransformerConfig,
    scgpt_embedder,
)
from scgpt_tools.tokens.tokenizer import TokenizerConfig

BINNED = {"values": "binned", "value_rows": 54}
FULL = ModelConfig(
    family="mine",
    n_tokens=30,
    pad_id=3,
    dim=16,
    embedder=scgpt_embedder(**BINNED, value_pad=53, perturbation_rows=3, perturbation_pad=2, norm="domain"),
    encoder=TransformerConfig(layers=2, heads=4, hidden=8, dropout=0.1, norm="replace"),
    pooling="mean",
    context=ContextConfig(batches=2, modalities=3, modality_pad=0),
    heads=Named(
        expression=ExpressionConfig(nonzero=True),
        expression_from_cell=FromCellConfig(style="inner_detached", nonzero=True, context_in_query=True),
        cell_type=ClassifierConfig(classes=2, layers=1, names=("B", "T")),
        batch=AdversaryConfig(classes=2),
    ),
    tokenizer=TokenizerConfig(values="log1p", bins=None, length=None, modalities=("<pad>", "<cls>", "rna")),
    domains=2,
    batch_names=("one", "two"),
)


def with_heads(**heads) -> dict:
    return {"heads": Named(**heads)}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (scgpt_embedder, {"values": "binned"}, "`value_rows` goes with values='binned' only"),
        (scgpt_embedder, {"value_rows": 5}, "`value_rows` goes with values='binned' only"),
        (scgpt_embedder, {**BINNED, "value_pad": 54}, "`pad` .* row of its table of 54, found 54"),
        (scgpt_embedder, {**BINNED, "value_pad": -2}, "`pad`"),
        (scgpt_embedder, {"value_pad": 3}, "`value_pad` goes with"),
        (scgpt_embedder, {"perturbation_rows": -1}, "`rows` to be at least 1"),
        (scgpt_embedder, {"perturbation_rows": 3, "perturbation_pad": 3}, "`pad`|`rows`"),
        (scgpt_embedder, {"perturbation_pad": 0}, "`pad`|`rows`"),
        (scgpt_embedder, {"values": "scale", "generation": True}, "a part 'values' that is added"),
        (TransformerConfig, {"layers": 0}, "`layers` to be at least 1, found 0"),
        (TransformerConfig, {"heads": 0}, "`heads` to be at least 1"),
        (TransformerConfig, {"hidden": 0}, "`hidden` to be at least 1"),
        (TransformerConfig, {"dropout": 1.0}, r"`dropout` to be in \[0, 1\), found 1.0"),
        (TransformerConfig, {"dropout": -0.1}, "`dropout`"),
        (ContextConfig, {"batches": -1}, "`batches`"),
        (ContextConfig, {"modalities": -1}, "`modalities`"),
        (ContextConfig, {"modalities": 2, "modality_pad": 2}, "`modality_pad`"),
        (FromCellConfig, {"style": "sum", "nonzero": True}, "`nonzero` needs an inner-product style"),
        (ClassifierConfig, {"classes": 0}, "`classes`"),
        (ClassifierConfig, {"layers": 0}, "`layers`"),
        (ClassifierConfig, {"classes": 3, "names": ("A", "B")}, "Expected 3 class names, found 2"),
        (AdversaryConfig, {"classes": 0}, "`classes`"),
        (ModelConfig, {"dim": 15}, "multiple of the number of heads, found 15 and 8"),
        (ModelConfig, {"dim": 0}, "`dim`"),
        (ModelConfig, {"pad_id": 30}, r"`pad_id` within 0 \.\. 29, found 30"),
        (ModelConfig, {"pad_id": -1}, "`pad_id`"),
        (ModelConfig, {"domains": 2}, "`domains` goes with embedder.norm='domain' only"),
        (ModelConfig, {"embedder": scgpt_embedder(norm="domain")}, "`domains` goes with"),
        (
            ModelConfig,
            {"context": ContextConfig(batches=2), **with_heads(expression=AffineConfig())},
            "affine expression head reads no context",
        ),
        (
            ModelConfig,
            with_heads(expression_from_cell=FromCellConfig(context_in_query=True)),
            "`context_in_query` needs batches or modalities",
        ),
        (
            ModelConfig,
            {"context": ContextConfig(batches=2), **with_heads(expression_from_cell=FromCellConfig(style="sum"))},
            "style='sum'",
        ),
    ],
)
def test_refused(make, options, message):
    needed = {"n_tokens": 30, "pad_id": 3} if make is ModelConfig else {}
    needed |= {"classes": 2} if make is AdversaryConfig else {}
    with pytest.raises(ValueError, match=message):
        make(**needed | options)


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        FULL.dim = 3


@pytest.mark.parametrize("config", [FULL, ModelConfig(n_tokens=5, pad_id=0)], ids=["full", "defaults"])
def test_survives_files(tmp_path, config):
    to_yaml(config, tmp_path / "config.yaml")
    assert from_yaml(ModelConfig, tmp_path / "config.yaml") == config
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 3}, "dim"),
        ({"encoder": {"kind": "transformer", "layer": 3}}, "layers"),
        ({"encoder": {"layers": 3}}, r"`encoder.kind`, one of \['transformer', 'dual_stream', 'earlier_stream'\]"),
        ({"encoder": {"kind": "classifier"}}, "no kind of encoder 'classifier'"),
        ({"pooling": "max"}, "pooling"),
        ({"heads": {"expression": {"kind": "afine"}}}, "kind of heads.expression 'afine'. Did you mean 'affine'"),
    ],
)
def test_foreign_content_is_refused_by_place(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        from_dict(ModelConfig, to_dict(FULL) | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_take_their_sizes(family):
    vocabulary = testing.tiny_vocabulary()
    needs = {"modalities": 2} if family == "scgpt_multiomic" else {}
    config = FAMILIES[family](vocabulary, dim=32, layers=3, heads=4, hidden=20, dropout=0.3, **needs)
    assert (config.family, config.dim, config.n_tokens, config.pad_id) == (family, 32, 27, vocabulary.pad_id)
    kind = DualStreamConfig if family.startswith("deepsc") else TransformerConfig
    own = {"gene_layers": 2} if family.startswith("deepsc") else {}
    if family.startswith("scmodelforge"):
        own = {"activation": "gelu", "norm": "pre", "final_norm": True, "eps": 1e-12}
        own |= {"causal": family.endswith("causal"), "sees_hidden": not family.endswith("autoencoder")}
    assert config.encoder == kind(layers=3, heads=4, hidden=20, dropout=0.3, **own)


def test_equal_tables_have_equal_hashes():
    one, other = Named(a=ClassifierConfig(classes=2), b=ExpressionConfig()), ExpressionConfig()
    same = Named(b=other, a=ClassifierConfig(classes=2))
    assert one == same
    assert hash(one) == hash(same)


def test_scgpt_is_the_released_model():
    """51.33 million parameters with 60,697 tokens, as the files have; the tokenizer is that of pre-training."""
    config = replace(FAMILIES["scgpt"](testing.tiny_vocabulary()), n_tokens=60_697)
    tokenizer = config.tokenizer
    assert (config.dim, config.encoder.layers, config.encoder.heads, config.encoder.hidden) == (512, 12, 8, 512)
    assert (tokenizer.bins, tokenizer.length, tokenizer.cls_value, tokenizer.pad_value) == (51, 1200, -2.0, -2.0)
    assert "generation" in config.embedder.parts


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (TokenizerConfig, {"cls_value": float("nan")}, ValueError, "`cls_value` to be a finite number"),
        (TransformerConfig, {"layers": "2"}, TypeError, "`layers` to be int, found '2'"),
        (TransformerConfig, {"dropout": float("nan")}, ValueError, "`dropout` to be a finite number"),
        (TransformerConfig, {"norm": "pree"}, ValueError, "`norm` to be one of"),
        (GenesConfig, {"norm": 1}, TypeError, "`norm` to be bool"),
        (ClassifierConfig, {"classes": 2, "names": "xy"}, TypeError, "`names` to be tuple"),
        (ModelConfig, {"n_tokens": 3, "pad_id": None}, TypeError, "`pad_id` to be int, found None"),
    ],
)
def test_kinds_are_checked_in_python_as_in_files(kind, values, error, message):
    with pytest.raises(error, match=message):
        kind(**values)
