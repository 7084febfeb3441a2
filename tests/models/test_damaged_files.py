"""Files of models with something wrong: a clear error in our words, or the same model, and always within a moment."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

import damage
from scgpt_tools import scGPTModel, testing
from scgpt_tools.models import FAMILIES, CellModel
from scgpt_tools.models.config import (
    ClassifierConfig,
)
from scgpt_tools.models.reference import ReferenceIndex

VOCABULARY = testing.tiny_vocabulary()
CLEAR = (ValueError, TypeError, KeyError, FileNotFoundError)
# Words of other libraries, which tell a user nothing or the wrong thing.
FOREIGN = re.compile(
    r"weights_only|torch\.serialization|add_safe_globals|allow_pickle|JSONDecode|Expecting |codec|subscriptable|"
    r"not iterable|has no attribute|not supported between|unexpected keyword|missing \d+ required|invalid literal|"
    r"int_max_str|Errno|PytorchStream|Traceback|must be (real|int|str)|object is not|int too large"
)


def build() -> CellModel:
    torch.manual_seed(0)
    config = FAMILIES["scgpt"](VOCABULARY, dim=16, layers=2, heads=2, hidden=24)
    heads = config.heads.replace(cell_type=ClassifierConfig(classes=2, names=("B", "T")))
    return CellModel(replace(config, heads=heads, batch_names=("x", "y")), VOCABULARY).eval()


MODEL = build()


def check(read, same) -> str:
    """What came of reading: how it was refused, or that it gave the same as before."""
    try:
        found = read()
    except CLEAR as error:
        message = str(error)
        assert len(message) < 3000, message[:3000]
        assert not FOREIGN.search(message), message
        assert re.search(r"[Ee]xpected|found|Found|says", message), message
        return "refused"
    assert same(found), "silently another model"
    return "same"


def load(folder):
    return CellModel.from_pretrained(folder, device="cpu")


def same_weights(found) -> bool:
    return all(torch.equal(tensor, MODEL.state_dict()[key]) for key, tensor in found.state_dict().items())


def of_others(folder):
    """An export as somebody else wrote it: without what this package adds."""
    args = json.loads((folder / "args.json").read_text())
    del args["scgpt_tools"]
    (folder / "args.json").write_text(json.dumps(args))
    return folder


def attempt(folder, name, damages, read=load, same=same_weights) -> dict[str, list[str]]:
    """Put damaged files in the place of a good one, each in turn."""
    outcomes: dict[str, list[str]] = {"refused": [], "same": []}
    for what, content in damages:
        (folder / name).write_bytes(content)
        try:
            outcomes[check(lambda: read(folder), same)].append(what)
        except BaseException as error:
            error.add_note(f"{name}: {what}")
            raise
    return outcomes


def test_args(tmp_path):
    folder = MODEL.export(tmp_path)
    args = json.loads((folder / "args.json").read_text())
    outcomes = attempt(folder, "args.json", chain(damage.texts(), damage.settings(args)))
    for key in ("embsize", "nheads", "d_hid", "nlayers", "dropout", "n_bins", "pad_value", "mask_value", "max_seq_len"):
        for value in ("a text", "a list", "true", "beyond floats"):
            assert f"{key} = {value}" in outcomes["refused"]
    for key in ("pre_norm", "class_names", "batch_names", "cell_emb_style", "input_style", "pad_token", "scgpt_tools"):
        assert f"{key} = a text" in outcomes["refused"]
    for value in ("null", "a text", "a list"):
        assert f"dropout = {value}" in outcomes["refused"]
        assert f"pre_norm = {value}" in outcomes["refused"]


def test_args_of_others(tmp_path):
    folder = of_others(MODEL.export(tmp_path))
    args = json.loads((folder / "args.json").read_text())
    attempt(folder, "args.json", damage.settings(args))


@pytest.mark.parametrize("key", ["class_names", "batch_names"])
def test_one_text_is_no_list_of_names(tmp_path, key):
    folder = MODEL.export(tmp_path)
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(args | {key: "xy"}))
    with pytest.raises(TypeError, match=f"Expected `{key}` in `args.json` to be a list of texts, found 'xy'"):
        load(folder)


def test_a_text_is_no_flag(tmp_path):
    folder = MODEL.export(tmp_path, attention_names="fused")
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(args | {"pre_norm": "false"}))
    with pytest.raises(TypeError, match="Expected `pre_norm` in `args.json` to be True or False, found 'false'"):
        load(folder)


def test_settings_of_wrappers(tmp_path):
    model = scGPTModel.from_pretrained(MODEL.save(tmp_path / "ours"), gene_list=["GENE1", "GENE2"], device="cpu")
    folder = model.save(tmp_path / "wrapped")
    args = json.loads((folder / "args.json").read_text())
    record = {"wrapper": args["scgpt_tools"]["wrapper"]}
    for what, content in random.Random(0).sample(list(damage.settings(record)), 100):
        changed = {**args["scgpt_tools"], **json.loads(content)}
        (folder / "args.json").write_text(json.dumps({**args, "scgpt_tools": changed}))
        try:
            check(lambda: scGPTModel.from_pretrained(folder, device="cpu"), lambda found: True)
        except BaseException as error:
            error.add_note(what)
            raise


@pytest.mark.parametrize("name", ["d_model", "nhead", "d_hid", "nlayers", "ntoken", "n_cls", "nlayers_cls"])
def test_settings_of_wrappers_keep_to_the_tensors(tmp_path, name):
    """Refused before anything of that size is built."""
    folder = scGPTModel.from_pretrained(MODEL.save(tmp_path / "ours"), device="cpu").save(tmp_path / "wrapped")
    args = json.loads((folder / "args.json").read_text())
    args["scgpt_tools"]["wrapper"]["config"][name] = 10**7
    (folder / "args.json").write_text(json.dumps(args))
    with pytest.raises(ValueError, match=f"{name}.*found 10000000|args.json says {name} = 10000000"):
        scGPTModel.from_pretrained(folder, device="cpu")


def test_config(tmp_path):
    folder = MODEL.save(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    outcomes = attempt(folder, "config.json", chain(damage.texts(), damage.settings(config)))
    for place in ("encoder.layers", "dim", "n_tokens", "encoder.hidden", "heads.cell_type.layers", "domains"):
        for value in ("huge", "beyond 64 bits", "beyond floats"):
            assert f"model.{place} = {value}" in outcomes["refused"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_of_a_configuration_are_finite(tmp_path, number):
    folder = MODEL.save(tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"cls_value": -2.0', f'"cls_value": {number}'))
    with pytest.raises(ValueError, match="the number|to be a finite number"):
        load(folder)


@pytest.mark.parametrize("write", ["save", "export"])
def test_vocabulary(tmp_path, write):
    folder = getattr(MODEL, write)(tmp_path)
    if write == "export":
        of_others(folder)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "checksums": {}}))
    content = json.loads((folder / "vocab.json").read_text())
    outcomes = attempt(folder, "vocab.json", chain(damage.texts(), damage.vocabularies(content)))
    assert not outcomes["same"]


def test_safetensors(tmp_path):
    folder = MODEL.save(tmp_path)
    good = (folder / "model.safetensors").read_bytes()
    outcomes = attempt(
        folder, "model.safetensors", chain(damage.texts(), damage.cuts(good), damage.flips(good), damage.headers(good))
    )
    assert not outcomes["same"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "checksums": {}}))
    attempt(folder, "model.safetensors", chain(damage.texts(), damage.cuts(good), damage.headers(good)))


def test_headers_of_gigabytes_are_not_read(tmp_path):
    folder = MODEL.save(tmp_path)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 34)
        file.write((1 << 33).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="a header of 8,589,934,592 bytes, more than that of any model"):
        load(folder)


@pytest.mark.parametrize("foreign", [False, True])
def test_state_dicts(tmp_path, foreign):
    folder = MODEL.export(tmp_path)
    good = (folder / "best_model.pt").read_bytes()
    content = torch.load(folder / "best_model.pt", weights_only=True)
    if foreign:
        of_others(folder)
    # One byte of a weight is another weight, which only a checksum can tell.
    bytewise = () if foreign else damage.flips(good)
    outcomes = attempt(
        folder, "best_model.pt", chain(damage.texts(), damage.cuts(good), bytewise, damage.states(content))
    )
    assert set(outcomes["same"]) <= {"one byte more"}
    assert damage.Bomb.armed


@pytest.mark.parametrize("name", ["vectors.npy", "labels.npy", "reference.json"])
@pytest.mark.parametrize("checked", [True, False])
def test_index(tmp_path, name, checked):
    rng = np.random.default_rng(0)
    index = ReferenceIndex(rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 2, 30), ("B", "T"))
    folder = index.save(tmp_path)
    about = json.loads((folder / "reference.json").read_text())
    if not checked:
        (folder / "reference.json").write_text(json.dumps({**about, "checksums": {}}))
    good = (folder / name).read_bytes()
    damages = {
        "vectors.npy": lambda: chain(damage.cuts(good), damage.arrays(index.vectors)),
        "labels.npy": lambda: chain(damage.cuts(good), damage.arrays(index.codes)),
        "reference.json": lambda: damage.settings(about),
    }[name]()
    attempt(
        folder,
        name,
        chain(damage.texts(), damages),
        ReferenceIndex.load,
        lambda found: np.array_equal(found.vectors, index.vectors) and np.array_equal(found.codes, index.codes),
    )
    assert damage.Bomb.armed


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("write", ["save", "export"])
@pytest.mark.parametrize("read", [load, lambda folder: scGPTModel.from_pretrained(folder, device="cpu")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, write, read):
    model = build()
    with torch.no_grad():
        model.encoder.blocks[1].feed_forward.expand.bias[3] = value
    with pytest.warns(UserWarning, match="Nothing will load what is written"):
        folder = getattr(model, write)(tmp_path)
    with pytest.raises(ValueError, match=r"infinite numbers in 1 of \d+ tensors: encoder\.blocks\.1\.feed_forward\.ex"):
        read(folder)


def test_weights_whose_sum_is_too_large_are_finite(tmp_path):
    model = build()
    with torch.no_grad():
        model.encoder.blocks[1].feed_forward.expand.weight.fill_(3e38)
    assert load(model.save(tmp_path)).checksum == model.checksum


@pytest.mark.parametrize("write", ["save", "export"])
def test_a_loaded_model_does_not_care_what_becomes_of_its_files(tmp_path, write):
    folder = getattr(MODEL, write)(tmp_path)
    model = load(folder)
    for path in folder.iterdir():
        with path.open("r+b") as file:
            file.write(b"\1" * (path.stat().st_size // 2))
            file.truncate(path.stat().st_size // 2)
    assert same_weights(model)
