"""Models built without memory, and the modes that they are put back into."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from scgpt_tools.models.modes import evaluating, without_memory


def test_modules_are_built_without_memory_and_without_draws():
    before = torch.get_rng_state()
    with without_memory():
        built = nn.Sequential(nn.Embedding(10**9, 512), nn.Linear(512, 3), nn.LayerNorm(3))
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert built[0].weight.shape == (10**9, 512)
    assert torch.equal(torch.get_rng_state(), before)
    assert nn.Embedding(4, 3).weight.abs().sum() > 0, "draws are back"


def test_loading_a_model_does_not_import_the_compiler_of_torch():
    """Which takes a second, of which the rest of loading needs a twentieth."""
    code = (
        "import sys; from scgpt_tools.models import CellModel; CellModel.from_pretrained('scgpt-demo', device='cpu');"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_part_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert [part.training for part in model.modules()] == [True, True, False]
