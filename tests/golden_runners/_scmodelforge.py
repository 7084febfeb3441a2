"""What cases of scModelForge share: their models as checkpoint folders, their batches, and how numbers are compared."""

from __future__ import annotations

import json
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

import scgpt_tools as sct
from golden_runners._compare import load
from scgpt_tools.models.families.scmodelforge import SPECIALS
from scgpt_tools.models.formats.rename import write_names
from scgpt_tools.models.formats.scmodelforge import NAMES
from scgpt_tools.tokens.batch import TokenBatch

if TYPE_CHECKING:
    from pathlib import Path

    from scgpt_tools.models import CellModel

# What constructors of the autoencoder call the sizes that configurations have other names for.
_OTHER_NAMES = {"encoder_dim": "hidden_dim", "encoder_layers": "num_layers", "encoder_heads": "num_heads"}


def genes(n_tokens: int) -> dict[str, int]:
    return {f"G{number:03d}": number + len(SPECIALS) for number in range(n_tokens - len(SPECIALS))}


def built(arguments: dict, weights: dict, **more: Any) -> CellModel:
    """A model from a folder that holds what the original would have written."""
    model = {_OTHER_NAMES.get(name, name): value for name, value in arguments.items()}
    return loaded(
        {"model_type": model["architecture"], "model_config": model, **more}, genes(model["vocab_size"]), weights
    )


def loaded(config: dict, vocabulary: dict, weights: dict) -> CellModel:
    from pathlib import Path

    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "gene_vocab.json").write_text(json.dumps(vocabulary))
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")
        return sct.CellModel.from_pretrained(folder, device="cpu")


def batch_of(inputs: dict[str, torch.Tensor], keys: list[str] | None = None) -> TokenBatch:
    """A token batch of their tensors; what the labels ask for is hidden."""
    ids = inputs["input_ids"]
    batch = TokenBatch(
        genes=ids,
        values=inputs["values"],
        mask=inputs["attention_mask"].bool(),
        positions=torch.arange(ids.shape[1]).expand(ids.shape),
        bins=inputs.get("bin_ids") if keys is None or "bin_ids" in keys else None,
    )
    if (labels := inputs.get("labels")) is not None:
        hidden = labels != -100
        batch = batch.replace(
            hidden=hidden, target_genes=labels.clamp(min=0), target=batch.values, target_bins=batch.bins
        )
    return batch.check()


def without_targets(batch: TokenBatch) -> TokenBatch:
    return batch.replace(hidden=None, target=None, target_genes=None, target_bins=None)


def same(ours: Any, theirs: Any, case: dict, what: str) -> None:
    ours, theirs = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} against {theirs.shape}"
    if theirs.dtype.kind in "iub":
        np.testing.assert_array_equal(ours, theirs, err_msg=what)
    else:
        tolerance = case["tolerance"]
        np.testing.assert_allclose(ours, theirs, atol=tolerance["float_abs"], rtol=tolerance["float_rel"], err_msg=what)


def same_gradients(model: CellModel, expected: dict, case: dict) -> None:
    """Every recorded gradient, and none where none was recorded."""
    grads = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
        if not name.startswith("heads.cell_type.")
    }
    if "heads.expression.missing" in grads:
        grads["heads.expression.missing"] = grads["heads.expression.missing"].view(1, 1, -1)
    theirs = write_names(grads, NAMES[model.config.family])
    recorded = {name.removeprefix("grad."): tensor for name, tensor in expected.items() if name.startswith("grad.")}
    recorded = {
        name.removeprefix("backbone."): tensor for name, tensor in recorded.items() if not name.startswith("head.net")
    }
    for name, gradient in theirs.items():
        wanted = recorded.get(name)
        same(gradient, torch.zeros_like(gradient) if wanted is None else wanted, case, f"gradient of {name}")
    assert recorded.keys() <= theirs.keys()


def tensors(folder: Path) -> tuple[dict, dict, dict]:
    return tuple(load(folder / f"{name}.safetensors") for name in ("weights", "inputs", "outputs"))  # type: ignore[return-value]
