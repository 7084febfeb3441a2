"""Networks of scModelForge: forward passes, losses, gradients, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, mse_loss

from golden_runners._scmodelforge import batch_of, built, loaded, same, same_gradients, tensors, without_targets
from scgpt_tools.objectives import MaskedBins, MaskedExpression, MaskedGenes

if TYPE_CHECKING:
    from pathlib import Path

    from scgpt_tools.objectives import Objective


def terms_of(arguments: dict, keys: list[str] | None) -> list[Objective]:
    """Loss terms of an architecture."""
    kind = arguments["architecture"]
    if kind == "masked_autoencoder":
        return [MaskedExpression()]
    genes = MaskedGenes(weight=arguments.get("gene_loss_weight", 1.0))
    if kind == "transformer_encoder" or (keys is not None and "bin_ids" not in keys):
        return [genes]
    return [genes, MaskedBins(weight=arguments.get("expression_loss_weight", 1.0))]


def run_model(folder: Path, case: dict) -> None:
    arguments, keys = case["constructor_args"], case["call_args"].get("batch_keys")
    weights, inputs, expected = tensors(folder)
    model = built(arguments, weights)
    batch = batch_of(inputs, keys)
    plain, real = without_targets(batch), batch.mask
    with torch.no_grad():
        same(model.embed_cells(plain), expected["encode"], case, "encode")
        everything = model(plain)
    if "genes" in everything.predictions:
        same(everything["genes"][real], expected["logits"][real], case, "logits")
        same(everything.cell, expected["embeddings"], case, "embeddings")
    else:
        # The cell that its training returns is another pass, over all tokens.
        same(model.embed_cells(plain), expected["embeddings"], case, "embeddings")
    if "bin_logits" in expected:
        same(everything["bins"][real], expected["bin_logits"][real], case, "bin_logits")
    output = model(batch)
    if "expression" in output.predictions:
        same(output["expression"][real], expected["logits"][real], case, "logits")
    terms = terms_of(arguments, keys)
    losses = [term.weight * term({"first": output}, batch) for term in terms]
    loss = sum(losses[1:], start=losses[0])
    same(loss, expected["loss"], case, "loss")
    loss.backward()
    same_gradients(model, expected, case)


def run_export(folder: Path, case: dict) -> None:
    """What the original exported loads, and what is written again has the same tensors under the same names."""
    from safetensors.torch import load_file

    weights, inputs, expected = tensors(folder)
    config, vocabulary = case["call_args"]["config.json"], case["call_args"]["gene_vocab.json"]
    model = loaded(config, vocabulary, weights)
    with torch.no_grad():
        same(model.embed_cells(batch_of(inputs)), expected["encode"], case, "encode")
    from tempfile import TemporaryDirectory

    import scgpt_tools as sct

    with TemporaryDirectory() as place:
        written = model.export(place)
        again = load_file(written / "model.safetensors")
        assert again.keys() == weights.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
        assert sct.CellModel.from_pretrained(written, device="cpu").checksum == model.checksum


def run_classification(folder: Path, case: dict) -> None:
    arguments = case["constructor_args"]
    weights, inputs, expected = tensors(folder)
    model = built(arguments["backbone"], weights)
    batch = batch_of({name: inputs[name] for name in ("input_ids", "attention_mask", "values")})
    output = model(batch, ("cell_type",))
    same(output.cell, expected["embeddings"], case, "embeddings")
    same(output["cell_type"], expected["logits"], case, "logits")
    labels = inputs["task_labels"]
    if arguments["task"] == "regression":
        loss = mse_loss(output["cell_type"].view(labels.shape), labels)
    else:
        loss = cross_entropy(output["cell_type"], labels)
    same(loss, expected["loss"], case, "loss")
    loss.backward()
    same_gradients(model, expected, case)
    out = model.heads["cell_type"].out
    last = max(name for name in expected if name.startswith("grad.head.net.") and name.endswith("weight"))
    same(out.weight.grad, expected[last], case, last)


# Maps that the original adapts unless it is told otherwise, by our names.
_MAPS = {"out_proj": "out", "linear1": "expand", "linear2": "contract"}


def run_adapters(folder: Path, case: dict) -> None:
    """Adapters act as they do once they are merged, in evaluation too, which the original's do not."""
    import peft

    from scgpt_tools.train.lora import LoraConfig, adapted_maps

    lora = case["constructor_args"]["lora"]
    weights, inputs, expected = tensors(folder)
    batch = batch_of(inputs)
    merged = built(case["constructor_args"]["backbone"], weights, lora=lora)
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    model = built(case["constructor_args"]["backbone"], plain)
    settings = LoraConfig(
        rank=lora["rank"], alpha=lora["alpha"], targets=tuple(_MAPS[name] for name in lora["target_modules"] or _MAPS)
    )
    maps = adapted_maps(model, settings)
    with torch.no_grad():
        same(merged.embed_cells(batch), expected["encode_merged"], case, "merged")
        # The original's fast path, which has even numbers of heads alone, does not know of its adapters.
        if model.config.encoder.heads % 2 == 0:
            same(model.embed_cells(batch), expected["encode_recorded_eval"], case, "without adapters")
        kind = peft.LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=0.0, target_modules=maps)
        peft.LoraModel(model, kind, "default")
        ours = {name: model.encoder.adapted[ours] for name, ours in _MAPS.items()}
        trained = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
        for name, tensor in weights.items():
            if ".lora_" in name and not name.startswith("decoder."):
                number, part, rest = (
                    name.split(".", 3)[2],
                    name.split(".lora_")[0].split(".")[-1],
                    name.split(".lora_")[1],
                )
                trained.pop(f"encoder.blocks.{number}.{ours[part]}.lora_{rest}").copy_(tensor)
        assert not trained
        same(model.eval().embed_cells(batch), expected["encode_merged"], case, "adapters in evaluation")
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Cells are embedded without the decoder, so that adapters of it would learn nothing.
    count += sum(tensor.numel() for name, tensor in weights.items() if name.startswith("decoder.") and ".lora_" in name)
    assert count == case["expected"]["trainable_parameters"]
