"""Files that are malicious, damaged or something else are refused."""

from __future__ import annotations

import pickle

import pytest
import torch

from scgpt_tools import testing
from scgpt_tools.models import CellModel, formats


def load(folder) -> CellModel:
    return CellModel.from_pretrained(folder, device="cpu")


def embedding(model: CellModel) -> torch.Tensor:
    with torch.no_grad():
        return model.embed_cells(testing.tiny_batch(model))


def refused(folder, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        load(folder)


@pytest.fixture
def expected(original, tmp_path) -> CellModel:
    return load(original.write(tmp_path / "expected"))


class Bomb:
    """What a malicious file could hold: reading it as a pickle would run a function."""

    armed = True

    def __reduce__(self):
        return (setattr, (Bomb, "armed", False))


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_file_is_not_run(original, tmp_path, as_zip):
    folder = original.write(tmp_path)
    torch.save({"weights": Bomb()}, folder / "best_model.pt", _use_new_zipfile_serialization=as_zip)
    refused(folder, "cannot be read as tensors only")
    assert Bomb.armed


def test_a_bare_pickle_is_not_run(original, tmp_path):
    folder = original.write(tmp_path)
    (folder / "best_model.pt").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "cannot be read as tensors only")
    assert Bomb.armed


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(original, tmp_path, keep):
    folder = original.write(tmp_path)
    whole = (folder / "best_model.pt").read_bytes()
    (folder / "best_model.pt").write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    refused(folder, r"best_model\.pt")
    with pytest.raises(ValueError, match=r"best_model\.pt"):
        formats.read(folder)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"a": 3}, torch.zeros(2), "text"], ids=["list", "int", "tensor", "text"]
)
def test_a_file_of_something_else_is_refused(original, tmp_path, content):
    folder = original.write(tmp_path)
    torch.save(content, folder / "best_model.pt")
    refused(folder, "to map names to tensors")


def test_an_incomplete_folder_lists_what_is_there(original, tmp_path):
    folder = original.write(tmp_path / "part")
    (folder / "best_model.pt").rename(folder / "weights.bin")
    refused(folder, "args.json, vocab.json, weights.bin", FileNotFoundError)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*best_model\.pt.*weights\.bin"):
        formats.read(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        formats.read(tmp_path / "nowhere")


def test_a_format_that_is_not_known_is_refused(expected, tmp_path):
    with pytest.raises((KeyError, ValueError), match="native"):
        formats.write(tmp_path, expected.config, expected.vocabulary, expected.state_dict(), "nativ")
