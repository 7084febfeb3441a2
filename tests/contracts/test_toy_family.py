"""A family from another package, all of it in this file: a configuration of parts that exist, a format, two rows.

It has no cell token, pools the mean of its tokens, reads log-normalised values as they are, and keeps its weights under
names of its own beside a list of genes.  Nothing in ``src`` knows of it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import scgpt_tools as sct
from scgpt_tools import testing
from scgpt_tools._files import written_together
from scgpt_tools.models import FAMILIES, CellModel, ModelConfig, formats
from scgpt_tools.models.config import (
    ContinuousConfig,
    EmbedderConfig,
    ExpressionConfig,
    GenesConfig,
    Named,
    PerturbationConfig,
    TransformerConfig,
)
from scgpt_tools.models.families import Family, Pretraining
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.format import Checkpoint, Format, Source, share_known
from scgpt_tools.models.formats.rename import Rule, read_names, write_names
from scgpt_tools.tokens import TokenizerConfig
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


# models/families/toy.py -----------------------------------------------------------------------------------------------


def toy(
    vocabulary: Vocabulary,
    *,
    dim: int = 16,
    layers: int = 2,
    heads: int = 2,
    hidden: int = 24,
    dropout: float = 0.1,
    generation: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> ModelConfig:
    """Describe the model."""
    return ModelConfig(
        family="toy",
        n_tokens=len(vocabulary),
        pad_id=vocabulary.pad_id,
        dim=dim,
        encoder=TransformerConfig(layers=layers, heads=heads, hidden=hidden, dropout=dropout),
        pooling="mean",
        heads=Named(expression=ExpressionConfig()),
        tokenizer=tokenizer
        or TokenizerConfig(values="raw", bins=None, length=None, cls=False, pad_value=0.0, expects="log1p"),
    )


def with_flags(
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    head: Any = None,
    dropout: float | None = None,
    flag: int | None = None,
) -> ModelConfig:
    """Describe the same with flags of perturbed genes, which reads all genes."""
    return replace(
        config,
        embedder=EmbedderConfig(
            parts=Named(genes=GenesConfig(), values=ContinuousConfig(), flags=PerturbationConfig(rows=3, pad=0))
        ),
        encoder=config.encoder if dropout is None else replace(config.encoder, dropout=dropout),
        heads=Named(expression=head or ExpressionConfig()),
        tokenizer=replace(config.tokenizer, genes="all"),
        perturbation_flags=config.perturbation_flags if flag is None else (flag,),
    )


TOY = Family(
    name="toy",
    config=toy,
    key="X_toy",
    perturbation=with_flags,
    pretraining={"masked_expression": Pretraining(objectives=({"name": "masked_expression"},))},
)


# models/formats/toy.py ------------------------------------------------------------------------------------------------

LAYOUT = FolderLayout("the toy's format", "toy.json", ("toy.safetensors",), "genes.txt")
NAMES = (
    Rule("gene.", "embedder.genes.table."),
    Rule("gene_norm.", "embedder.genes.norm."),
    Rule("value.", "embedder.values."),
    Rule("layer{i}.", "encoder.blocks.{i}."),
    Rule("expression.", "heads.expression."),
    Rule("step", None, "a counter of steps"),
)


def read_genes(path: Path) -> Vocabulary:
    return Vocabulary(path.read_text().split())


def read(source: Source) -> Checkpoint:
    settings = source.settings_or({"heads": 2})
    vocabulary = source.vocabulary(read_genes)
    weights, transfer = read_names(source.contents.weights, NAMES)
    return Checkpoint(toy(vocabulary, **settings), vocabulary, weights, transfer, settings)


def write(folder: Path, config: ModelConfig, vocabulary: Vocabulary, weights: Mapping[str, torch.Tensor]) -> None:
    encoder = config.encoder
    settings = {"dim": config.dim, "layers": encoder.layers, "heads": encoder.heads, "hidden": encoder.hidden}
    theirs = write_names(weights, NAMES) | {"step": torch.tensor([7.0])}
    with written_together(folder) as aside:
        (aside / LAYOUT.settings).write_text(json.dumps(settings))
        (aside / LAYOUT.vocabulary).write_text("\n".join(vocabulary.tokens))
        save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, aside / LAYOUT.weights[0])


FORMAT = Format(
    layout=LAYOUT,
    recognise=lambda source: share_known(source, NAMES),
    example="tensors such as gene_norm.weight",
    read=read,
    read_vocabulary=read_genes,
    write=write,
    ours=lambda folder: True,
)


# The rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    monkeypatch.setitem(formats.FORMATS, "toy", FORMAT)


# What follows of itself -----------------------------------------------------------------------------------------------

QUICK = {"epochs": 1, "lr": 1e-3, "accelerator": "cpu"}


def build(vocabulary: Vocabulary, config: ModelConfig | None = None) -> CellModel:
    torch.manual_seed(0)
    return CellModel(config or toy(vocabulary), vocabulary, name="toy").eval()


@pytest.fixture
def cells():
    adata = screen(12)
    sct.pp.perturbation_split(adata, draw="stable")
    sct.pp.pair_controls(adata, within="batch")
    return adata


@pytest.fixture
def folder(cells, tmp_path) -> Path:
    """A checkpoint in the family's own format."""
    model = build(Vocabulary.from_genes(cells.var_names))
    return formats.write(tmp_path / "toy", model.config, model.vocabulary, model.state_dict(), "toy")


def load(folder: Path) -> CellModel:
    return CellModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("contract", testing.CONTRACTS)
@pytest.mark.parametrize("perturbed", [False, True])
def test_contracts(contract, perturbed):
    vocabulary = testing.tiny_vocabulary()
    model = build(vocabulary, with_flags(toy(vocabulary), vocabulary, flag=1) if perturbed else None)
    testing.CONTRACTS[contract](model, testing.tiny_batch(model))


def test_its_files_load(folder, cells):
    model = load(folder)
    assert model.config == toy(Vocabulary.from_genes(cells.var_names))
    assert model.checksum == build(model.vocabulary).checksum
    assert model.transfer.dropped == {"step": "a counter of steps"}
    assert load(folder / "toy.safetensors").checksum == model.checksum
    formats.write(folder, model.config, model.vocabulary, model.state_dict(), "toy")
    assert load(folder).checksum == model.checksum


def test_embedding(folder, cells):
    sct.tl.embed(cells, folder, device="cpu")
    model = load(folder)
    features = sct.tokens.FeatureTable.from_var(cells.var, model.vocabulary)
    with torch.no_grad():
        batch = model.tokenizer(cells.X, features, np.arange(cells.n_obs))
        expected = torch.nn.functional.normalize(model(batch, ()).cell, dim=1)
    np.testing.assert_allclose(cells.obsm["X_toy"], expected.numpy(), atol=1e-5)
    assert cells.uns["X_toy"]["model"]["family"] == "toy"
    sct.tl.embed_genes(cells, model)
    assert np.isfinite(cells.varm["X_toy_genes"]).all()


def test_annotating(folder, cells, tmp_path):
    cells.obs["half"] = np.where(cells.X[:, 0].toarray().ravel() > 1, "high", "low")
    tuned = sct.train.finetune(cells, folder, task="annotate", label_key="half", validation=0.0, **QUICK)
    again = load(tuned.save(tmp_path / "annotator"))
    assert (again.config, again.checksum) == (tuned.config, tuned.checksum)
    assert again.config.family == "toy"
    sct.tl.annotate(cells, again, key_added="guess")
    assert set(cells.obs["guess"]) <= {"high", "low"}


def test_perturbing(folder, cells, tmp_path):
    tuned = sct.train.finetune(cells, folder, task="perturb", **QUICK)
    assert isinstance(tuned.config.heads.expression, ExpressionConfig)
    assert "heads.expression.value.0.weight" in tuned.transfer.used
    assert tuned.transfer.missing == ("embedder.flags.weight",)
    again = load(tuned.save(tmp_path / "generator"))
    assert (again.config, again.checksum) == (tuned.config, tuned.checksum)
    sct.tl.predict_perturbation(cells, ["G0", "G1+G2"], again, batch_size=16)
    controls = cells[cells.obs["condition"] == "ctrl"]
    assert np.isfinite(controls.layers["predicted_G0"]).all()
    assert not np.allclose(controls.layers["predicted_G0"], controls.layers["predicted_G1+G2"])


def test_pretraining(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = {
        "data": {"paths": ["cells.h5ad"]},
        "family": {"name": "toy", "dim": 8, "heads": 2, "layers": 1, "hidden": 8},
        "train": {"epochs": 1, "batch_size": 32, "accelerator": "cpu"},
    }
    model = sct.train.pretrain(config, data=tmp_path, output=tmp_path / "model")
    assert load(tmp_path / "model").checksum == model.checksum
    assert model.config.family == "toy"
    assert not model.config.tokenizer.cls
