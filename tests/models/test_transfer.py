"""The account of weights that went from one network to another."""

from __future__ import annotations

import torch

from scgpt_tools.models.transfer import Transfer, copy_weights


def test_every_tensor_is_accounted_for():
    source = {
        "table": torch.ones(3, 2),
        "encoder.0.map": torch.ones(2),
        "heads.a.map": torch.ones(4),
        "old": torch.ones(1),
    }
    target = {
        "table": torch.zeros(5, 2),
        "encoder.0.map": torch.zeros(2),
        "heads.a.map": torch.zeros(6),
        "new": torch.zeros(1),
    }
    found = copy_weights(source, target, rows=(3, 5))
    assert found == Transfer(
        used={"encoder.0.map": ("encoder.0.map",)},
        reshaped=("table",),
        missing=("heads.a.map", "new"),
        dropped={"heads.a.map": "(4,) where the model has (6,)", "old": ""},
    )
    assert [int(target[key].sum()) for key in target] == [6, 2, 0, 0]
    assert str(found) == (
        "Weights taken over: encoder (1 tensors); taken over in part: table (1 tensors); starting from scratch: heads.a (1 "
        "tensors), new (1 tensors); left behind: heads.a (1 tensors: (4,) where the model has (6,)), old (1 tensors)."
    )


def test_tables_that_are_not_of_the_vocabulary_are_not_cut():
    found = copy_weights({"table": torch.ones(3, 2)}, {"table": torch.zeros(4, 2)}, rows=(7, 8))
    assert (found.reshaped, found.missing) == ((), ("table",))


def test_what_grew_later_is_no_longer_missing():
    found = copy_weights({"heads.a.map": torch.ones(4)}, {"heads.a.map": torch.zeros(6)}, rows=(1, 1)).grown(
        ["heads.a.map"]
    )
    assert found == Transfer(reshaped=("heads.a.map",))
