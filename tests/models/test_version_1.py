"""Folders that the first version of our format wrote: they load, and compute what they computed.

``version_1`` holds three models that it wrote, and beside each a minibatch with what came out.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scgpt_tools as sct
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.models import ModelConfig
from scgpt_tools.models.config import AffineConfig, ClassifierConfig, scgpt_embedder
from scgpt_tools.models.formats.version_1 import in_todays_words
from scgpt_tools.tokens.batch import TokenBatch

FOLDER = Path(__file__).parent / "version_1"
MODELS = ("perturbation", "multiomic", "annotation")


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_before(name, tmp_path):
    recorded = load_file(FOLDER / f"{name}.safetensors")
    given = {key[6:]: tensor for key, tensor in recorded.items() if key.startswith("batch.")}
    if "batch" in given:  # as that version called it
        given["batch_id"] = given.pop("batch")
    batch = TokenBatch(**given)
    model = sct.CellModel.from_pretrained(FOLDER / name, device="cpu")
    for loaded in (model, sct.CellModel.from_pretrained(model.save(tmp_path / name), device="cpu")):
        assert loaded.config == model.config
        with torch.no_grad():
            output, cells = loaded(batch), loaded.embed_cells(batch)
        for key, expected in recorded.items():
            found = {"cell": output.cell, "tokens": output.tokens, "embed_cells": cells}.get(key)
            if key.startswith("predictions."):
                found = output[key.removeprefix("predictions.")]
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert {f"predictions.{head}" for head in output.predictions} <= recorded.keys()


def test_heads_and_parts_have_their_settings():
    perturbation = sct.CellModel.from_pretrained(FOLDER / "perturbation", device="cpu").config
    assert perturbation.heads["expression"] == AffineConfig(nonzero=True, activation="ELU", adaptive_offset=True)
    assert perturbation.perturbation is not None
    annotation = sct.CellModel.from_pretrained(FOLDER / "annotation", device="cpu").config
    assert annotation.heads.cell_type == ClassifierConfig(classes=2, layers=2, names=("B", "T"))
    assert annotation.embedder == scgpt_embedder(
        values="binned", value_rows=54, value_pad=53, generation=True, norm="domain"
    )


def test_the_demo_is_one_of_them(tmp_path):
    demo = sct.CellModel.from_pretrained("scgpt-demo", device="cpu")
    demo.save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["version"] == 2
    assert from_dict(ModelConfig, content["model"]) == demo.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedder": {"value": "binned"}}, "field of _Embedder named 'value'. Did you mean 'values'"),
        ({"encoder": {"layers": "3"}}, r"`config\.json\.encoder\.layers` to be int"),
        ({"heads": {"cell_types": None}}, "Did you mean 'cell_type'"),
    ],
)
def test_damage_is_refused_by_place(change, message):
    model = json.loads((FOLDER / "annotation" / "config.json").read_text())["model"]
    with pytest.raises((ValueError, TypeError), match=message):
        in_todays_words({**model, **change}, where="config.json")


def test_what_is_read_can_be_read_again():
    model = json.loads((FOLDER / "annotation" / "config.json").read_text())["model"]
    config = from_dict(ModelConfig, in_todays_words(model, where=""))
    assert from_dict(ModelConfig, to_dict(config)) == config
