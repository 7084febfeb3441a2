"""Single files of weights, what training loops wrap them in, and formats of other packages."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import pytest
import torch
from safetensors.torch import save_file

from scgpt_tools import _plugins, testing
from scgpt_tools.models import FAMILIES, CellModel, formats
from scgpt_tools.models.folders import FolderLayout
from scgpt_tools.models.formats.format import Checkpoint, Format, share_known
from scgpt_tools.models.formats.rename import Rule, read_names
from scgpt_tools.models.formats.scgpt import ALL_NAMES
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.vocabulary import Vocabulary


def load(place, **options) -> CellModel:
    return CellModel.from_pretrained(place, device="cpu", **options)


@pytest.fixture
def expected(original, tmp_path) -> CellModel:
    return load(original.write(tmp_path / "expected"))


@dataclass
class RunSettings:
    """What a training loop saves of itself, as an object of a class of its own."""

    heads: int = 2
    names: tuple[str, ...] = ("B", "T")


# One file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.pt", "epoch=3.ckpt", "pytorch_model.bin", "weights.safetensors"])
def test_one_file_with_a_vocabulary(original, expected, tmp_path, name):
    if name.endswith(".safetensors"):
        save_file(original.weights, tmp_path / name)
    else:
        torch.save(original.weights, tmp_path / name)
    model = load(tmp_path / name, vocabulary=original.vocabulary, settings=original.args)
    assert (model.checksum, model.config) == (expected.checksum, expected.config)
    assert model.name == name.rpartition(".")[0]


def test_files_beside_it_are_taken(original, expected, tmp_path):
    folder = original.write(tmp_path)
    (folder / "best_model.pt").rename(folder / "tuned.pt")
    model = load(folder / "tuned.pt")
    assert (model.checksum, model.config) == (expected.checksum, expected.config)
    assert set(model.transfer.used) == set(original.weights)


def test_a_vocabulary_and_settings_from_files(original, expected, tmp_path):
    folder = original.write(tmp_path / "whole")
    torch.save(original.weights, tmp_path / "alone.pt")
    model = load(tmp_path / "alone.pt", vocabulary=folder / "vocab.json", settings=folder / "args.json")
    assert (model.checksum, model.config) == (expected.checksum, expected.config)


def test_a_vocabulary_of_a_model(original, expected, tmp_path):
    torch.save(original.weights, tmp_path / "alone.pt")
    assert load(tmp_path / "alone.pt", vocabulary=expected, settings=original.args).vocabulary == expected.vocabulary


def test_a_given_vocabulary_is_taken_for_a_folder_without(original, expected, tmp_path):
    folder = original.write(tmp_path, vocabulary=False)
    assert load(folder, vocabulary=original.vocabulary).checksum == expected.checksum


def test_what_tensors_do_not_tell_is_taken_with_a_warning(original, tmp_path):
    torch.save(original.weights, tmp_path / "alone.pt")
    with pytest.warns(UserWarning, match=r"nheads = 8 is taken, which tensors do not tell.*settings=\{'nheads': 8\}"):
        model = load(tmp_path / "alone.pt", vocabulary=original.vocabulary)
    assert model.config.encoder.heads == 8


def test_a_file_without_a_vocabulary_is_refused(original, tmp_path):
    torch.save(original.weights, tmp_path / "alone.pt")
    with pytest.raises(FileNotFoundError, match="plausible but meaningless.*or pass it as `vocabulary`"):
        load(tmp_path / "alone.pt", settings=original.args)


def test_a_folder_without_settings_names_them(original, expected, tmp_path):
    folder = original.write(tmp_path / "part")
    (folder / "args.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"Expected args\.json beside .*best_model\.pt', whose tensors are of scGPT"
    ):
        load(folder)
    assert load(folder, settings=original.args).config == expected.config


def test_a_file_of_ours_beside_its_configuration(expected, tmp_path):
    folder = expected.save(tmp_path)
    assert load(folder / "model.safetensors").checksum == expected.checksum
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json', which says what the tensors are parts of.*`settings`"):
        load(folder / "model.safetensors")
    assert load(folder / "model.safetensors", settings=tmp_path / "elsewhere.json").config == expected.config


# What is around the tensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_wrappers_and_prefixes_are_taken_off(original, expected, tmp_path, wrapper, prefix):
    weights = {prefix + key: tensor for key, tensor in original.weights.items()}
    loop = {"epoch": 3, "optimizer": {"state": {}}, "type2id": {"B": 0, "T": 1}}
    torch.save(weights if wrapper is None else {wrapper: weights, **loop}, tmp_path / "run.ckpt")
    assert (
        load(tmp_path / "run.ckpt", vocabulary=original.vocabulary, settings=original.args).checksum
        == expected.checksum
    )
    beside = {} if wrapper is None else {"epoch": 3, "type2id": {"B": 0, "T": 1}}
    assert read_contents(tmp_path / "run.ckpt").beside == beside


def test_objects_of_a_training_loop_are_read_as_plain_values(original, expected, tmp_path):
    """What Lightning writes where a module saves a configuration of its own among its hyper-parameters."""
    saved = {"state_dict": original.weights, "hyper_parameters": {"config": RunSettings(heads=4), "place": tmp_path}}
    torch.save(saved, tmp_path / "run.ckpt")
    contents = read_contents(tmp_path / "run.ckpt")
    assert contents.beside["hyper_parameters"]["config"] == {"heads": 4, "names": ["B", "T"]}
    assert (
        load(tmp_path / "run.ckpt", vocabulary=original.vocabulary, settings=original.args).checksum
        == expected.checksum
    )


def test_a_wrapper_in_itself_is_refused(tmp_path):
    endless: dict = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="to map names to tensors, found dict at 'model'"):
        read_contents(tmp_path / "run.ckpt")


def test_references_do_not_grow_beyond_memory(tmp_path):
    value: list = [0]
    for _ in range(64):
        value = [value, value]
    torch.save({"state_dict": {"a": torch.zeros(1)}, "laughs": value}, tmp_path / "run.ckpt")
    assert list(read_contents(tmp_path / "run.ckpt").weights) == ["a"]


def test_a_pickled_network_is_not_read(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors only"):
        read_contents(tmp_path / "whole.pt")


def test_one_name_twice_is_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(1), "module.a.weight": torch.zeros(1)}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r"'a\.weight' more than once"):
        read_contents(tmp_path / "both.pt")


# Formats --------------------------------------------------------------------------------------------------------------


def test_what_no_format_knows_says_what_was_looked_for_and_found(tmp_path):
    torch.save({"tower.0.mixer.weight": torch.zeros(1), "tower.0.bias": torch.zeros(1)}, tmp_path / "a.pt")
    message = r"embedder\.genes.*this package.*encoder\.embedding\.weight.*scGPT.*Found 2 tensors: tower\.0\.mixer"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.pt", vocabulary=testing.tiny_vocabulary())


# A dialect of another package: the parts of scGPT under names of its own, and genes from a list.
TOY_RULES = (
    Rule("genes.", "embedder.genes.table."),
    Rule("genes_norm.", "embedder.genes.norm."),
    Rule("counter", None, "a counter of steps"),
    Rule("rest.", ""),
)


def read_toy(source) -> Checkpoint:
    settings = source.settings_or({"heads": 2})
    vocabulary = source.vocabulary(TOY.read_vocabulary)
    weights, transfer = read_names(source.contents.weights, TOY_RULES)
    dim = weights["embedder.genes.table.weight"].shape[1]
    config = FAMILIES["scgpt"](vocabulary, dim=dim, layers=1, heads=settings["heads"], hidden=8)
    return Checkpoint(replace(config, family="toy"), vocabulary, weights, transfer, settings)


TOY = Format(
    layout=FolderLayout("the toy's format", "config.json", ("model.safetensors",), "genes.json"),
    recognise=lambda source: share_known(source, TOY_RULES),
    example="tensors such as genes.weight",
    read=read_toy,
    read_vocabulary=lambda path: Vocabulary.from_genes(json.loads(path.read_text())),
)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A folder of the dialect, whose files are called as ours are, and the model that it holds."""
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    monkeypatch.setattr(_plugins, "_READ", set())
    found = [EntryPoint(name="toy", value=f"{__name__}:TOY", group=formats.GROUP)]
    monkeypatch.setattr(_plugins, "entry_points", lambda *, group: found if group == formats.GROUP else [])
    genes = ["A", "B", "C"]
    vocabulary = Vocabulary.from_genes(genes)
    model = CellModel(FAMILIES["scgpt"](vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
    weights = {"counter": torch.zeros(1)}
    for key, tensor in model.state_dict().items():
        name = key.replace("embedder.genes.table.", "genes.").replace("embedder.genes.norm.", "genes_norm.")
        weights[name if name != key else f"rest.{key}"] = tensor.clone()
    folder = tmp_path / "toy"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"heads": 2}))
    (folder / "genes.json").write_text(json.dumps(genes))
    return folder, model


def test_a_package_adds_a_format(toy):
    folder, model = toy
    found = load(folder)
    assert (found.checksum, found.config.family) == (model.checksum, "toy")
    assert found.transfer.dropped == {"counter": "a counter of steps"}
    assert load(folder / "model.safetensors", vocabulary=folder / "genes.json").checksum == model.checksum


def test_the_format_that_knows_most_of_the_tensors_reads_them(toy, monkeypatch, original, tmp_path):
    """A dialect may have all names of another and one more, such as the norm of scGenePT."""
    read = []
    more = replace(
        TOY,
        recognise=lambda source: share_known(source, (*ALL_NAMES, Rule("ln.", "norm."))),
        read=lambda source: read.append(set(source.contents.weights)) or formats.FORMATS["scgpt"].read(source),
    )
    monkeypatch.setitem(formats.FORMATS, "more", more)
    torch.save(original.weights, tmp_path / "plain.pt")
    load(tmp_path / "plain.pt", vocabulary=original.vocabulary, settings=original.args)
    assert not read
    torch.save(original.weights | {"ln.weight": torch.zeros(16)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match=r"1 that none of its parts takes: ln\.weight"):
        load(tmp_path / "more.pt", vocabulary=original.vocabulary, settings=original.args)
    assert read == [set(original.weights) | {"ln.weight"}]


def test_saving_into_a_folder_of_another_format_is_refused(toy):
    folder, model = toy
    with pytest.raises(FileExistsError, match="found config.json, model.safetensors of something else"):
        model.save(folder)
    with pytest.raises(ValueError, match="which is only read"):
        formats.write(folder.parent / "new", model.config, model.vocabulary, model.state_dict(), "toy")
