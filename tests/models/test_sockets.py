"""Parts from outside of the package: a part of the embedder, an encoder of two streams, and heads that read both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import scgpt_tools as sct
from scgpt_tools import testing
from scgpt_tools.config import Named, from_dict, settle_fields, to_dict
from scgpt_tools.models import FAMILIES, CellModel, ModelConfig
from scgpt_tools.models.config import ClassifierConfig, ContinuousConfig, EmbedderConfig, ExpressionConfig, GenesConfig
from scgpt_tools.nn.attention import Attention
from scgpt_tools.nn.sockets import Encoded, Encoder, EncoderConfig, HeadConfig, PartConfig
from scgpt_tools.nn.tables import ENCODERS, HEADS, PARTS
from scgpt_tools.train.freezing import frozen, release, stages
from scgpt_tools.train.lora import LoraConfig, adapted_maps
from scgpt_tools.train.optim import OptimizerConfig, parameter_groups

VOCABULARY = testing.tiny_vocabulary()


class Text(nn.Module):
    """A table of texts, as wide as they come, to the width of the model."""

    def __init__(self, rows: int, width: int, dim: int) -> None:
        super().__init__()
        self.table, self.map = nn.Embedding(rows, width), nn.Linear(width, dim)

    def forward(self, genes):
        return self.map(self.table(genes))


@dataclass(frozen=True, kw_only=True)
class TextConfig(PartConfig):
    width: int = 5

    def __post_init__(self):
        settle_fields(self)

    @property
    def reads(self):
        return ("genes",)

    def build(self, sizes):
        return Text(sizes.n_tokens, self.width, sizes.dim)


class TwoStreams(Encoder):
    """Genes among themselves, then expression that looks at genes; padding is seen, and there is no packing."""

    packs = False
    parts = ("genes", "values")
    adapted = {"query": "query", "fused": "fused"}

    def __init__(self, config, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: Attention(dim, config.heads, config.dropout) for name in ("own", "cross")})
            for _ in range(config.layers)
        )
        self.fused = nn.Linear(2 * dim, dim)

    @property
    def stages(self):
        return list(self.layers)

    def forward(self, embedded, batch, layout):
        genes, values = (embedded.parts[name] for name in self.parts)
        layout = layout.unmasked()
        for layer in self.layers:
            genes = genes + layer["own"](genes, layout).context
            values = values + layer["cross"](values, layout, keys=genes).context
        genes, values = layout.keep(genes), layout.keep(values)
        return Encoded(values, {"genes": genes, "fused": self.fused(torch.cat((genes, values), dim=-1))})


@dataclass(frozen=True, kw_only=True)
class TwoStreamsConfig(EncoderConfig):
    def build(self, sizes):
        return TwoStreams(self, sizes.dim)


class Bins(nn.Module):
    """Classes of every token, and what the two streams say of them."""

    def __init__(self, dim: int, bins: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, bins)

    def forward(self, inputs):
        return {"": self.out(inputs.streams["fused"]), "_genes": inputs.streams["genes"] * inputs.parts["genes"]}


@dataclass(frozen=True, kw_only=True)
class BinsConfig(HeadConfig):
    bins: int = 6

    def __post_init__(self):
        settle_fields(self)

    def build(self, sizes):
        return Bins(sizes.dim, self.bins)


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
    for table, kind, row in (
        (PARTS, "text", TextConfig),
        (ENCODERS, "two streams", TwoStreamsConfig),
        (HEADS, "bins", BinsConfig),
    ):
        monkeypatch.setitem(table, kind, row)


@pytest.fixture
def config() -> ModelConfig:
    plain = FAMILIES["scgpt"](VOCABULARY, dim=16, heads=2, layers=2, hidden=8, dropout=0.0)
    return replace(
        plain,
        embedder=EmbedderConfig(
            parts=Named(genes=GenesConfig(norm=False), values=ContinuousConfig(), text=TextConfig()), norm="layer"
        ),
        encoder=TwoStreamsConfig(layers=2, heads=2, dropout=0.0),
        heads=Named(bins=BinsConfig(), disease=ClassifierConfig(classes=3), expression=ExpressionConfig()),
    )


@pytest.fixture
def model(config) -> CellModel:
    torch.manual_seed(0)
    return CellModel(config, VOCABULARY).eval()


def test_files_name_the_kinds(config):
    content = to_dict(config)
    assert content["embedder"]["parts"]["text"] == {"kind": "text", "width": 5}
    assert content["encoder"] == {"kind": "two streams", "layers": 2, "heads": 2, "dropout": 0.0}
    assert content["heads"]["bins"] == {"kind": "bins", "bins": 6}
    assert from_dict(ModelConfig, content) == config


@pytest.mark.parametrize(
    ("place", "found", "message"),
    [
        ("encoder", {"kind": "two stream"}, "no kind of encoder 'two stream'. Did you mean 'two streams'"),
        ("heads", {"x": {"kind": "bin"}}, r"no kind of heads\.x 'bin'. Did you mean 'bins'"),
        ("heads", {"x": {"kind": "bins", "bin": 3}}, "no field of BinsConfig named 'bin'. Did you mean 'bins'"),
        ("heads", {"x": {"kind": "bins", "bins": "3"}}, r"`heads\.x\.bins` to be int"),
        ("heads", {"x": {"bins": 3}}, r"`heads\.x\.kind`, one of"),
    ],
)
def test_unknown_kinds_and_keys_are_refused(config, place, found, message):
    with pytest.raises((ValueError, TypeError), match=message):
        from_dict(ModelConfig, to_dict(config) | {place: found})


def test_a_kind_without_a_row_cannot_be_written(config, monkeypatch):
    monkeypatch.delitem(HEADS, "bins")
    with pytest.raises(ValueError, match="found BinsConfig, which has no row"):
        to_dict(config)


def test_outputs_hold_parts_and_streams(model):
    batch = testing.tiny_batch(model)
    output = model(batch)
    assert set(output.predictions) == {"bins", "bins_genes", "disease", "expression"}
    assert output["bins"].shape == (*batch.genes.shape, 6)
    assert set(output.parts) == {"genes", "values", "text"}
    assert set(output.streams) == {"genes", "fused"}
    assert not output.streams["fused"][~batch.mask].any()
    torch.testing.assert_close(output["bins_genes"], output.streams["genes"] * output.genes)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_cells_are_embedded_with_their_padding(model, pooling):
    batch = testing.tiny_batch(model)
    expected = model.adapt(pooling=pooling)(batch).cell
    torch.testing.assert_close(model.embed_cells(batch, pooling=pooling), expected)
    wider = batch.replace(
        **{name: torch.cat((getattr(batch, name), getattr(batch, name)[:, :2]), dim=1) for name in ("genes", "values")},
        mask=torch.nn.functional.pad(batch.mask, (0, 2)),
    )
    assert not torch.allclose(model.embed_cells(wider, pooling=pooling), expected)
    with pytest.raises(ValueError, match="attention for this encoder, found 'varlen'"):
        model(batch, attention="varlen")


def test_saved_models_are_the_same(model, tmp_path):
    batch = testing.tiny_batch(model)
    again = CellModel.from_pretrained(model.save(tmp_path), device="cpu")
    assert again.config == model.config
    torch.testing.assert_close(again(batch).predictions, model(batch).predictions, rtol=0, atol=0)


def test_training_asks_the_encoder(model):
    assert adapted_maps(model, LoraConfig(targets=("query",))) == [
        f"encoder.layers.{layer}.{name}.query" for layer in range(2) for name in ("own", "cross")
    ]
    assert len(stages(model)) == 4
    release(model, 1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {".".join(name.split(".")[:3]) for name in trained if name.startswith("encoder.layers")} == {
        "encoder.layers.1"
    }
    assert "encoder.fused.weight" in trained
    with frozen(model, "backbone"):
        held = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith(("embedder.", "encoder.")) for name in held)
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, layer_decay=0.5))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["encoder.fused.weight"] == found["encoder.layers.1.own.key.weight"] == 1.0
    assert found["encoder.layers.0.own.key.weight"] == 0.5
    assert found["embedder.text.map.weight"] == 0.25
    assert found["heads.bins.out.weight"] == 1.0


def test_functions_take_the_model(model):
    adata = sct.datasets.pbmc_demo()[:20, :24].copy()
    adata.var_names = [f"GENE{place}" for place in range(adata.n_vars)]
    sct.tl.embed(adata, model, device="cpu")
    assert np.isfinite(adata.obsm["X_scGPT"]).all()
    assert adata.obsm["X_scGPT"].shape == (20, 16)
