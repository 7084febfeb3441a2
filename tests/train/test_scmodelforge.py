"""The three architectures of scModelForge from counts to an embedding, each with its way to make tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scgpt_tools as sct
from scgpt_tools.models import CellModel
from scgpt_tools.objectives import CellType, MaskedBins, MaskedExpression
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.train.pretrain import pretrain

SIZES = {"dim": 16, "layers": 1, "heads": 2, "hidden": 16, "dropout": 0.1}
FAMILIES = {
    "scmodelforge": {"name": "mask_genes"},
    "scmodelforge_causal": {"name": "next_tokens"},
    "scmodelforge_autoencoder": {"name": "mask_values", "ratio": 0.5},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining(tmp_path, cells, family):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = {
        "data": {"paths": ["cells.h5ad"], "validation": 0.2},
        "family": {"name": family, **SIZES},
        "corruption": FAMILIES[family],
        "train": {"epochs": 1, "batch_size": 16, "accelerator": "cpu"},
    }
    model = pretrain(config, data=tmp_path, output=tmp_path / "model")
    history = pd.read_csv(tmp_path / "model" / "run" / "history.csv")
    assert np.isfinite(history["validation_loss"]).all()
    again = CellModel.from_pretrained(tmp_path / "model", device="cpu")
    assert (again.checksum, again.config) == (model.checksum, model.config)
    assert again.vocabulary.tokens[:4] == ("<pad>", "<unk>", "<mask>", "<cls>")
    sct.tl.embed(cells, again, device="cpu")
    assert np.isfinite(cells.obsm["X_scModelForge"]).all()


def test_pretraining_from_cells_with_fewer_molecules(tmp_path, cells):
    """scFoundation's form: both tokens of depth are in the vocabulary, and the model does what others do."""
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = {
        "data": {"paths": ["cells.h5ad"], "validation": 0.2},
        "family": {"name": "scmodelforge_autoencoder", **SIZES, "pretraining_task": "read_depth"},
        "corruption": {"name": "mask_downsampled", "least": 10},
        "train": {"epochs": 2, "batch_size": 16, "accelerator": "cpu"},
    }
    pretrain(config, data=tmp_path, output=tmp_path / "model")
    history = pd.read_csv(tmp_path / "model" / "run" / "history.csv")
    assert np.isfinite(history["validation_loss"]).all()
    model = CellModel.from_pretrained(tmp_path / "model", device="cpu")
    assert set(sct.tokens.DEPTH_TOKENS) < set(model.vocabulary.tokens)
    sct.tl.embed(cells, model, device="cpu")
    assert np.isfinite(cells.obsm["X_scModelForge"]).all()
    gene = next(name for name in cells.var_names if name in model.vocabulary)
    moved = sct.tl.knockout(cells, model, genes=[gene], n_null=None, min_cells=1, show_progress=False)
    assert moved.obs["n_changed"].item() == int((cells[:, gene].X.toarray() > 0).sum())


def test_annotation(cells):
    from scgpt_tools.models import FAMILIES as KNOWN
    from scgpt_tools.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_genes(cells.var_names, KNOWN["scmodelforge"].specials)
    model = CellModel(KNOWN["scmodelforge"](vocabulary, **SIZES), vocabulary).eval()
    tuned = sct.train.finetune(
        cells, model, task="annotate", label_key="kind", epochs=1, lr=1e-3, accelerator="cpu", validation=0.0
    )
    sct.tl.annotate(cells, tuned, key_added="guess")
    assert set(cells.obs["guess"]) <= set(cells.obs["kind"])


@pytest.mark.parametrize(
    ("family", "corruption", "term"),
    [
        ("scmodelforge", None, MaskedExpression()),
        ("deepsc", MaskValues(), MaskedBins()),
    ],
)
def test_fine_tuning_hides_values_by_markers_of_the_model(cells, monkeypatch, family, corruption, term):
    from scgpt_tools.models import FAMILIES as KNOWN
    from scgpt_tools.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_genes(cells.var_names, KNOWN[family].specials).extended(KNOWN[family].last)
    model = CellModel(KNOWN[family](vocabulary, **SIZES), vocabulary).eval()
    used = []
    monkeypatch.setattr(
        MaskValues, "__call__", lambda self, *given, call=MaskValues.__call__: used.append(self) or call(self, *given)
    )
    if family == "deepsc":
        cells.X = cells.X.log1p()
    sct.train.finetune(
        cells, model, task="annotate", label_key="kind", objectives=[CellType(), term], corruption=corruption,
        epochs=1, lr=1e-3, accelerator="cpu",
    )  # fmt: skip
    tokenizer = model.config.tokenizer
    assert {hidden.mask_bin for hidden in used} == {tokenizer.mask_bin}
    assert {hidden.mask_position for hidden in used} == {0 if tokenizer.positions else None}


def test_what_comes_next_is_not_asked_of_an_encoder_that_sees_it(tmp_path, cells):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = {
        "data": {"paths": ["cells.h5ad"]},
        "family": {"name": "scmodelforge", **SIZES},
        "corruption": {"name": "next_tokens"},
    }
    with pytest.raises(ValueError, match="looks back only"):
        pretrain(config, data=tmp_path, output=tmp_path / "model")
    assert not (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_hidden_genes_are_asked_of_the_cell_too(tmp_path, cells, pooling):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = {
        "data": {"paths": ["cells.h5ad"], "validation": 0.2},
        "family": {"name": "scmodelforge", **SIZES, "options": {"pooling": pooling}},
        "corruption": {"name": "mask_genes"},
        "objectives": [{"name": "masked_genes"}, {"name": "masked_genes_from_cell"}],
        "train": {"epochs": 6, "batch_size": 16, "lr": 1e-2, "accelerator": "cpu"},
    }
    model = pretrain(config, data=tmp_path, output=tmp_path / "model")
    history = pd.read_csv(tmp_path / "model" / "run" / "history.csv")["train_masked_genes_from_cell"]
    assert history.iloc[-1] < history.iloc[0]
    assert model.heads["genes_from_cell"].out.out_features == len(model.vocabulary)


def test_parts_of_fresh_tokens_are_of_like_size(cells):
    """Which gene it is, its place and its value have a like share of a token; otherwise some are learnt last."""
    from scgpt_tools.data.rows import RowSource
    from scgpt_tools.models import FAMILIES as KNOWN
    from scgpt_tools.tokens.features import FeatureTable
    from scgpt_tools.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_genes(cells.var_names, KNOWN["scmodelforge"].specials)
    model = CellModel(KNOWN["scmodelforge"](vocabulary, **SIZES | {"dim": 64}), vocabulary).eval()
    source = RowSource(cells)
    batch = model.tokenizer(source.take(np.arange(20)), FeatureTable.from_var(cells.var, vocabulary), source.keys[:20])
    parts = model.embedder(batch).parts
    sizes = {name: float(part.detach()[batch.mask].square().mean().sqrt()) for name, part in parts.items()}
    assert max(sizes.values()) < 5 * min(sizes.values())
