"""Checkpoint folders in the original's format, as small as can be."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from scgpt_tools import testing
from scgpt_tools.models import TransformerModel
from scgpt_tools.models.formats.scgpt import from_scgpt, to_scgpt
from scgpt_tools.vocabulary import Vocabulary

# What training wrote beside the eight settings that count; all of it has to be read past.
CLUTTER = {"data_source": "/data/human", "save_dir": "save", "load_model": None, "dist_url": "tcp://x", "rank": 0,
           "mask_ratio": [0.25, 0.5, 0.75], "training_tasks": "both", "no_cls": True, "fp16": True}  # fmt: skip


@dataclass
class Original:
    """What a folder holds; change it, then :meth:`write`."""

    vocabulary: Vocabulary = field(default_factory=testing.tiny_vocabulary)
    args: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.args = {"embsize": 16, "nheads": 2, "d_hid": 24, "nlayers": 2, "n_layers_cls": 3, "dropout": 0.2,
                     "pad_token": "<pad>", "pad_value": -2, "mask_value": -1, "input_style": "binned", "n_bins": 51,
                     "input_emb_style": "continuous", "max_seq_len": 1200, "fast_transformer": True} | CLUTTER  # fmt: skip
        torch.manual_seed(0)
        ids = {token: place for place, token in enumerate(self.vocabulary)}
        model = TransformerModel(len(ids), 16, 2, 24, 2, vocab=ids, do_mvc=True, use_generative_training=True)
        self.weights = dict(model.state_dict())

    def spelled(self, attention: str) -> Original:
        self.weights = to_scgpt(from_scgpt(self.weights)[0], attention)
        return self

    def write(self, folder: Path, *, weights: str = "best_model.pt", vocabulary: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.weights, folder / weights)
        (folder / "args.json").write_text(json.dumps(self.args))
        if vocabulary:
            ids = {token: place for place, token in enumerate(self.vocabulary)}
            # The released files are not in the order of the ids.
            (folder / "vocab.json").write_text(json.dumps(dict(sorted(ids.items(), reverse=True))))
        return folder


@pytest.fixture
def original() -> Original:
    """The released form: with the flag of generation and the decoder from the cell, without a classifier."""
    return Original()
