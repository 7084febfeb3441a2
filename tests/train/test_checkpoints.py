"""States of a run are whole, wherever temporary files are, and damaged ones are named."""

from __future__ import annotations

import tempfile

import pytest
import torch

from scgpt_tools.train import finetune
from scgpt_tools.train.checkpoints import read_state, whole_files


def test_states_are_written_beside_their_place(make_model, make_cells, tmp_path, monkeypatch):
    """And not by way of the folder for temporary files, which may be on another disk."""
    monkeypatch.setattr(tempfile, "mkstemp", lambda *_, **__: pytest.fail("a temporary file"))
    finetune(
        make_cells(40, seed=1),
        make_model(),
        task="annotate",
        label_key="kind",
        epochs=1,
        folder=tmp_path,
        accelerator="cpu",
    )
    kept = ["best.ckpt", "config.json", "history.csv", "last.ckpt", "run.json", "vocab.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    for name in ("last", "best"):
        assert "state_dict" in read_state(tmp_path / f"{name}.ckpt")


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    whole_files().save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    save = torch.save

    def full(state, file):
        save(state, file)
        with open(file, "r+b") as half:  # noqa: PTH123 - what torch.save takes
            half.truncate(20)
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        whole_files().save_checkpoint({"state_dict": {"a": torch.zeros(3)}}, path)
    assert torch.equal(read_state(path)["state_dict"]["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "text": lambda content: b"nothing to load",
}


def test_damaged_states_are_named(make_model, make_cells, tmp_path):
    options = {"task": "annotate", "label_key": "kind", "folder": tmp_path, "accelerator": "cpu"}
    model, cells = make_model(), make_cells(40, seed=1)
    finetune(cells, model, epochs=1, **options)
    last = tmp_path / "last.ckpt"
    whole = last.read_bytes()
    for damage in DAMAGES.values():
        last.write_bytes(damage(whole))
        with pytest.raises(ValueError, match=r"last.ckpt to hold the state of a run, found a damaged file"):
            finetune(cells, model, epochs=2, resume=True, **options)


def test_other_files_of_torch_are_no_states(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="found something else"):
        read_state(tmp_path / "last.ckpt")
