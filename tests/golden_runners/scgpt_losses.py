"""scGPT's loss functions, as pure functions and as the objectives that wrap them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from golden_runners._compare import close, load
from scgpt_tools.nn import losses
from scgpt_tools.nn.output import CellOutput
from scgpt_tools.objectives import MaskedExpression, Objective, ZeroLikelihood
from scgpt_tools.tokens.batch import TokenBatch

Tensors = dict[str, torch.Tensor]


def run(folder: Path, case: dict[str, Any]) -> None:
    inputs = load(folder / "inputs.safetensors")
    for name, expected in load(folder / "outputs.safetensors").items():
        assert name in COMPUTE, f"no runner for the output {name!r}; known: {sorted(COMPUTE)}"
        close(COMPUTE[name](inputs), expected, case["tolerance"], name)
    with pytest.raises(ValueError, match="mask"):
        losses.masked_relative_error(inputs["input"], inputs["target"], torch.zeros_like(inputs["mask"]))


def term(objective: Objective, inputs: Tensors, **predictions: torch.Tensor) -> torch.Tensor:
    """The value of an objective whose batch hides the entries of the mask."""
    zeros = torch.zeros_like(inputs["input"])
    output = CellOutput(tokens=zeros, cell=zeros, predictions=predictions)
    everywhere = torch.ones_like(inputs["mask"])
    batch = TokenBatch(zeros.long(), zeros, everywhere, target=inputs["target"], hidden=inputs["mask"])
    return objective({"first": output}, batch)


def mse(inputs: Tensors) -> torch.Tensor:
    value = losses.masked_mse(inputs["input"], inputs["target"], inputs["mask"])
    torch.testing.assert_close(term(MaskedExpression(), inputs, expression=inputs["input"]), value)
    return value


def mse_empty_mask(inputs: Tensors) -> torch.Tensor:
    return losses.masked_mse(inputs["input"], inputs["target"], torch.zeros_like(inputs["mask"]))


def mse_grad(inputs: Tensors) -> torch.Tensor:
    prediction = inputs["input"].clone().requires_grad_()
    losses.masked_mse(prediction, inputs["target"], inputs["mask"]).backward()
    assert prediction.grad is not None
    return prediction.grad


def neg_log_bernoulli(inputs: Tensors) -> torch.Tensor:
    value = losses.negative_log_bernoulli(inputs["probs"], inputs["target"], inputs["mask"])
    torch.testing.assert_close(term(ZeroLikelihood(), inputs, expression_nonzero=inputs["probs"]), value)
    return value


def neg_log_bernoulli_safe(inputs: Tensors) -> torch.Tensor:
    return losses.negative_log_bernoulli(inputs["probs"].clamp(0.05, 0.95), inputs["target"], inputs["mask"])


def relative_error(inputs: Tensors) -> torch.Tensor:
    return losses.masked_relative_error(inputs["input"], inputs["target"], inputs["mask"])


COMPUTE = {
    compute.__name__: compute
    for compute in (mse, mse_empty_mask, mse_grad, neg_log_bernoulli, neg_log_bernoulli_safe, relative_error)
}

RUNNERS = {"losses": run}
