"""Why a loss is not a number: what can be read from the minibatch, the terms and the model at that moment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from scgpt_tools.nn.output import CellOutput
    from scgpt_tools.tokens.batch import TokenBatch


class LossNotFiniteError(FloatingPointError):
    """A loss, and with it a model, became NaN or infinite; the message says when, where, and why it probably did."""


def describe_failure(
    terms: Mapping[str, Tensor],
    batch: TokenBatch,
    output: CellOutput,
    model: nn.Module,
    *,
    step: int,
    precision: str,
    lr: float,
    validating: bool = False,
) -> str:
    """Message for a loss that is not finite."""
    bad = [name for name, term in terms.items() if not bool(torch.isfinite(term).all())]
    cause = likely_cause(batch, output, model, precision=precision, lr=lr)
    place = "in validation after" if validating else "at"
    return f"Expected a finite loss {place} step {step}, found NaN or infinity in {bad}. {cause}"


def describe_gradients(names: list[str], *, step: int, lr: float) -> str:
    """Message for gradients that are not finite although the loss is."""
    return (
        f"Expected finite gradients at step {step}, found NaN or infinity in those of {len(names)} parameters, the first "
        f"being {names[0]!r}. The loss was finite, so its derivative overflows: lower the learning rate (it was "
        f"{lr:.1e}), or use precision 'fp32'. The weights are those before this step."
    )


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in this process, after one look at the device where there are none.

    ``tensors``: names and tensors; ``None`` and whole numbers are passed over.
    """
    named = [(name, _own(tensor)) for name, tensor in tensors if tensor is not None and tensor.is_floating_point()]
    # Largest absolute values: NaN and infinity stay what they are, and finite numbers cannot overflow as in a sum.
    largest = [torch.linalg.vector_norm(tensor.detach(), ord=math.inf) for _, tensor in named if tensor.numel()]
    if not largest or bool(torch.isfinite(torch.stack(largest)).all()):
        return []
    return [name for name, tensor in named if not _finite(tensor)]


def likely_cause(
    batch: TokenBatch, output: CellOutput, model: nn.Module, *, precision: str = "32-true", lr: float | None = None
) -> str:
    """First thing that explains a loss that is not finite, from the inputs to the outputs."""
    for name, tensor in batch.present("token").items():
        if tensor.is_floating_point() and not _finite(tensor[batch.mask]):
            return f"The `{name}` of this minibatch are not finite: check the matrix that the cells come from."
    if batch.hidden is not None and not bool(batch.hidden.any()):
        return (
            "No value of this minibatch is hidden, so there is nothing to predict: raise the ratio of the corruption, "
            "the batch size or the number of genes."
        )
    broken = [name for name, parameter in model.named_parameters() if not _finite(parameter)]
    if broken:
        rate = "" if lr is None else f" (it was {lr:.1e})"
        return (
            f"{len(broken)} parameters of the model are not finite, the first being {broken[0]!r}: an earlier update "
            f"was too large. Lower the learning rate{rate}, warm up longer, or clip gradients."
        )
    overflowing = [name for name, tensor in _outputs(output).items() if not _finite(tensor)]
    if overflowing and precision.startswith("16"):
        return f"{overflowing[0]!r} overflows float16: use precision 'bf16' or 'fp32'."
    if overflowing:
        return f"{overflowing[0]!r} overflows although inputs and parameters are finite: lower the learning rate."
    return "Inputs, parameters and outputs are finite: a loss term itself overflows; lower its weight or its targets."


def _outputs(output: CellOutput) -> dict[str, Tensor]:
    # Cells are NaN where nothing was read of them.
    cell = {} if bool(output.cell.isnan().all()) else {"cell": output.cell}
    return {"tokens": output.tokens, **cell, **output.predictions}


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(_own(tensor)).all())


def _own(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that is cut into pieces; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
