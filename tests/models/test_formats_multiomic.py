"""A multi-omic checkpoint of scGPT: its files do not name modalities, and it embeds a MuData all the same."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

import scgpt_tools as sct
from mudatas import make_mudata
from scgpt_tools.models import CellModel, MultiOmicTransformerModel

MODALITIES = {"Protein": 0, "RNA": 1, "<pad>": 2, "<cls>": 3, "<eoc>": 4}


@pytest.fixture
def mdata():
    return make_mudata(12)


def folder_of(mdata, path, *, rows: dict[str, int] = MODALITIES, **args):
    """What the tutorial saves: tensors, settings and the vocabulary of genes, special tokens and proteins."""
    names = [*mdata["rna"].var_names, "<pad>", "<cls>", "<eoc>", *(f"p_{name}" for name in mdata["prot"].var_names)]
    ids = {name: place for place, name in enumerate(names)}
    torch.manual_seed(0)
    net = MultiOmicTransformerModel(
        len(ids), 16, 2, 24, 2, vocab=ids, do_mvc=True, do_dab=True, use_batch_labels=True, num_batch_labels=2,
        use_mod=True, ntokens_mod=len(rows), vocab_mod=rows,
    )  # fmt: skip
    path.mkdir()
    torch.save(net.state_dict(), path / "best_model.pt")
    (path / "vocab.json").write_text(json.dumps(ids))
    (path / "args.json").write_text(json.dumps({"embsize": 16, "nheads": 2, "d_hid": 24, "nlayers": 2} | args))
    return path


def test_a_mudata_is_embedded(mdata, tmp_path):
    model = CellModel.from_pretrained(folder_of(mdata, tmp_path / "theirs"), device="cpu")
    assert model.config.tokenizer.modalities == ("prot", "rna", "<pad>", "<cls>", "<eoc>")
    assert model.config.context.modality_pad == 2
    assert model.config.tokenizer.cls_value == 0.0
    sct.tl.embed(mdata, model)
    first = mdata.obsm["X_scGPT"].copy()
    changed = make_mudata(12)
    changed["prot"].X[:] = changed["prot"].X[:, ::-1]
    sct.tl.embed(changed, model)
    assert not np.allclose(changed.obsm["X_scGPT"], first)


def test_it_is_the_same_model_after_saving(mdata, tmp_path):
    model = CellModel.from_pretrained(folder_of(mdata, tmp_path / "theirs"), device="cpu")
    for folder in (model.save(tmp_path / "ours"), model.export(tmp_path / "again")):
        assert CellModel.from_pretrained(folder, device="cpu").config == model.config


def test_rows_are_named_by_the_settings(mdata, tmp_path):
    rows = {"<pad>": 0, "<cls>": 1, "rna": 2, "prot": 3}
    folder = folder_of(mdata, tmp_path / "theirs", rows=rows, modalities=list(rows))
    model = CellModel.from_pretrained(folder, device="cpu")
    assert model.config.tokenizer.modalities == tuple(rows)
    assert [part.prefix for part in model.config.tokenizer.parts] == ["", "p_"]
    sct.tl.embed(mdata, model)
    assert np.isfinite(mdata.obsm["X_scGPT"]).all()


def test_rows_without_names_are_said(mdata, tmp_path, caplog):
    rows = {"<pad>": 0, "<cls>": 1, "rna": 2, "prot": 3}
    folder = folder_of(mdata, tmp_path / "theirs", rows=rows)
    with caplog.at_level(logging.INFO, logger="scgpt_tools"):
        model = CellModel.from_pretrained(folder, device="cpu")
    assert "does not name the 4 rows" in caplog.text
    assert model.config.tokenizer.parts == ()
    folder = folder_of(mdata, tmp_path / "others", rows=rows, modalities=["rna", "prot"])
    with pytest.raises(ValueError, match="to name 4 rows"):
        CellModel.from_pretrained(folder, device="cpu")
