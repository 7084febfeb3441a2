"""Networks: constructors, calls, losses, gradients and optimiser steps of scGPT's three classes."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from golden_runners._compare import close, load, same_gradient, updated_like_adam
from scgpt_tools.models import MultiOmicTransformerModel, TransformerGenerator, TransformerModel
from scgpt_tools.models.formats.scgpt import ATTENTION_NAMES, from_scgpt, to_scgpt
from scgpt_tools.nn.heads import FromCellHead
from scgpt_tools.nn.losses import masked_mse, negative_log_bernoulli

CLASSES = {
    "TransformerModel": TransformerModel,
    "TransformerModel (pretraining form)": TransformerModel,
    "TransformerGenerator": TransformerGenerator,
    "MultiOmicTransformerModel": MultiOmicTransformerModel,
}


def build(case: dict) -> torch.nn.Module:
    arguments = dict(case["constructor"])
    arguments["vocab"] = {key: value for key, value in case["vocab"].items() if key != "n_tokens"}
    cls = CLASSES[case["system"]]
    if cls is MultiOmicTransformerModel:
        arguments["vocab_mod"] = case.get("vocab_mod")
    return cls(**arguments)


def run_model(folder: Path, case: dict) -> None:
    inputs, weights = load(folder / "inputs.safetensors"), load(folder / "weights.safetensors")
    expected = load(folder / "outputs.safetensors") if (folder / "outputs.safetensors").is_file() else {}
    for call in case["calls"]:
        if "expect_error" in call:
            check_refusal(case, call, weights, inputs)
            continue
        model = build(case)
        model.load_state_dict(weights, strict=True)
        check_call(model, case, call, inputs, expected)


def check_refusal(case: dict, call: dict, weights: dict, inputs: dict) -> None:
    """A call that the original refuses must be refused here too; one that is its defect has to work or be refused."""

    def attempt():
        model = build(case)
        model.load_state_dict(weights, strict=True)
        return invoke(model, call, inputs)

    if call["copy_the_error"]:
        with pytest.raises((ValueError, TypeError, KeyError, AssertionError, RuntimeError)):
            attempt()
        return
    try:
        results = attempt()
    except ValueError as refusal:
        assert "Expected" in str(refusal)
    else:
        assert all(torch.isfinite(tensor).all() for tensor in results.values())


def check_call(model, case: dict, call: dict, inputs: dict, expected: dict) -> None:
    trains = "loss" in call
    if call.get("optional"):
        # What an implementation need not reproduce must still run.
        invoke(model, call, inputs)
        return
    results = invoke(model, call, inputs)
    mask = padding_of(call, inputs)
    saturated = None
    if "compare_only_where_probability_saturated" in case:
        saturated = {name: key for name, key in call["outputs"].items() if name.endswith("zero_probs")}
    for name, key in call["outputs"].items():
        ours, theirs = results[name], expected[key]
        if ours.dim() >= 2 and mask is not None and key in call.get("ignore_at_padding", ()):
            keep = ~mask_for(key, mask, ours)
        else:
            keep = torch.ones(ours.shape[: min(2, ours.dim())], dtype=torch.bool)
        if saturated and name.split("_")[0] in {key.split("_")[0] for key in saturated}:
            probability = expected[saturated[name.split("_")[0] + "_zero_probs"]]
            if sampled(call, model):
                keep = keep & ((probability < 1e-6) | (probability > 1 - 1e-6))
        close(ours[keep], theirs[keep], case["tolerance"], f"{call['id']}.{name}")
    if trains:
        check_training(model, case, call, inputs, expected, results)
    for name, key in call.get("buffers_after", {}).items():
        close(model.state_dict()[name], expected[key], case["tolerance"], name)


def sampled(call: dict, model) -> bool:
    forced = isinstance(model, TransformerGenerator) and not call["context"]["training"]
    return bool(call.get("flags", {}).get("do_sample")) or forced


def padding_of(call: dict, inputs: dict) -> dict[str, torch.Tensor] | None:
    masks = {name: inputs[key] for name, key in call["tensors"].items() if name.endswith("key_padding_mask")}
    return masks or None


def mask_for(key: str, masks: dict[str, torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
    """The padding mask that an output goes with; there are two in the pre-training form."""
    name = key.split(".")[-1]
    wanted = "gen_key_padding_mask" if name.startswith("gen") else "pcpt_key_padding_mask"
    mask = masks.get("src_key_padding_mask", masks.get(wanted))
    assert mask is not None
    assert mask.shape == ours.shape[:2]
    return mask


def invoke(model, call: dict, inputs: dict) -> dict[str, torch.Tensor]:
    context = call["context"]
    model.train(context["training"])
    flags = dict(call.get("flags", {}))
    tensors = {name: inputs[key] for name, key in call["tensors"].items()}
    if call["method"] == "pred_perturb":
        genes = len(tensors["gene_ids"])
        x = tensors.pop("batch_data.x")
        batch = SimpleNamespace(pert=["ctrl"] * (len(x) // genes), x=x)
        batch.to = lambda device: batch
        flags["batch_data"] = batch
    seen: dict[str, torch.Tensor] = {}

    def remember(module, arguments, output) -> None:
        # The first pass; a contrastive loss makes a second one.
        seen.setdefault("transformer_output", output)
        seen.setdefault("gene_token_embs", model.cur_gene_token_embs)

    method = model if call["method"] == "forward" else getattr(model, call["method"])
    hook = model.transformer_encoder.register_forward_hook(remember)
    with torch.no_grad() if context["no_grad"] else contextlib.nullcontext(), warnings_ignored():
        result = method(**tensors, **flags)
    hook.remove()
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    results = {"output": result} if isinstance(result, torch.Tensor) else result
    if isinstance(model, TransformerGenerator) and call["method"] == "forward":
        assert "cell_emb" not in results
    return results | seen


@contextlib.contextmanager
def warnings_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def check_training(model, case: dict, call: dict, inputs: dict, expected: dict, results: dict) -> None:
    parts = {name: loss_part(name, model, case, call, inputs, results) for name in call["loss"]["components"]}
    for name, value in parts.items():
        if (key := f"{call['id']}.loss.{name}") in expected:
            close(value.detach(), expected[key], case["tolerance"], key)
    total = sum(weight * parts[name] for name, weight in call["loss"]["components"].items())
    if (key := f"{call['id']}.loss.total") in expected:
        close(total.detach(), expected[key], case["tolerance"], key)
    total.backward()
    layout = attention_names(case)
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    theirs = spelled(gradients, layout)
    for name, key in call.get("grads", {}).items():
        same_gradient(theirs[name], expected[key], case["tolerance"], name)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    if "grad_norm" in call:
        close(norm, expected[call["grad_norm"]], {"atol": 1e-5, "rtol": 1e-3}, "grad_norm")
    if "optimizer_step" in call:
        step = call["optimizer_step"]
        optimizer = getattr(torch.optim, step["optimizer"])(model.parameters(), **step["kwargs"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), step["clip_grad_norm"])
        optimizer.step()
        state = spelled(dict(model.named_parameters()), layout)
        for name, key in step["updated"].items():
            updated_like_adam(state[name].detach(), expected[key], step["kwargs"]["lr"], name)


def spelled(tensors: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    return tensors if layout == "torch" else to_scgpt(from_scgpt(tensors)[0], layout)


def attention_names(case: dict) -> str:
    layout = case.get("weights_layout", "")
    return "wrapped" if "_impl" in layout else "fused" if "Wqkv" in layout else "torch"


def loss_part(name: str, model, case: dict, call: dict, inputs: dict, results: dict) -> torch.Tensor:
    tensors = {key: inputs[value] for key, value in call["tensors"].items()}
    if call["method"] == "generative_forward":
        return generative_loss(name, model, call, tensors, inputs, results)
    target = inputs.get("target_values")
    values = tensors["values"]
    scored = torch.ones_like(values, dtype=torch.bool) if isinstance(model, TransformerGenerator) else values == -1
    terms = {
        "mse": lambda: masked_mse(results["mlm_output"], target, scored),
        "mvc": lambda: masked_mse(results["mvc_output"], target, scored),
        "nzlp": lambda: negative_log_bernoulli(results["mlm_zero_probs"], target, scored),
        "mvc_nzlp": lambda: negative_log_bernoulli(results["mvc_zero_probs"], target, scored),
        "ecs": lambda: results["loss_ecs"],
        "cce": lambda: results["loss_cce"],
        "dab": lambda: F.cross_entropy(results["dab_output"], inputs["batch_labels"]),
        "cls": lambda: F.cross_entropy(results["cls_output"], inputs["celltype_labels"]),
    }
    terms |= {"gep": terms["mse"], "gepc": terms["mvc"]}
    return terms[name]()


def generative_loss(name: str, model, call: dict, tensors: dict, inputs: dict, results: dict) -> torch.Tensor:
    target = next(
        inputs[key] for key in ("gen_target", "gen_expr_target", "target_values", "gen_targets") if key in inputs
    )
    valid = ~tensors["gen_key_padding_mask"]
    if name == "mvc":
        return masked_mse(results["mvc_output"][:, -valid.shape[1] :], target, valid)
    if name == "gen":
        second = model.generative_forward(**tensors, input_cell_emb=results["cell_emb"].detach())
        return masked_mse(second["gen_preds"], target, valid)
    assert name == "mse"
    return masked_mse(results["gen_preds"], target, valid)


def run_mvc_decoder(folder: Path, case: dict) -> None:
    inputs, expected = load(folder / "inputs.safetensors"), load(folder / "outputs.safetensors")
    prefix = "heads.expression_from_cell."
    ours, _ = from_scgpt({f"mvc_decoder.{key}": tensor for key, tensor in load(folder / "weights.safetensors").items()})
    styles = {
        "inner product": "inner",
        "inner product, detach": "inner_detached",
        "concat query": "concat",
        "sum query": "sum",
    }
    constructor = case["constructor"]
    dim = constructor["d_model"]
    head = FromCellHead(
        width=dim,
        query=dim,
        style=styles[constructor.get("arch_style", "inner product")],
        nonzero=constructor.get("explicit_zero_prob", False),
    )
    head.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in ours.items()}, strict=True)
    names = {"pred": "", "zero_probs": "_nonzero"}
    for call in case["calls"]:
        cell, genes = (inputs[call["tensors"][name]] for name in ("cell_emb", "gene_embs"))
        with torch.no_grad():
            results = head.predict(cell, genes).named()
        for name, key in call["outputs"].items():
            close(results[names[name]], expected[key], case["tolerance"], key)


def run_key_layouts(folder: Path, case: dict) -> None:
    weights, table = load(folder / "weights.safetensors"), json.loads((folder / "keys.json").read_text())
    assert set(weights) == {row["torch"] for row in table}
    ours, _ = from_scgpt(weights)
    for layout in ATTENTION_NAMES:
        written = to_scgpt(ours, layout)
        assert set(written) == {row[layout] for row in table}
        for row in table:
            assert list(written[row[layout]].shape) == row["shape"]
            assert torch.equal(written[row[layout]], weights[row["torch"]])
        again, report = from_scgpt(written)
        assert not report.dropped
        assert all(torch.equal(again[key], ours[key]) for key in ours)
    case["system"], case["constructor"]["vocab"] = "TransformerModel", None
    build(case).load_state_dict(weights, strict=True)


RUNNERS = dict.fromkeys(CLASSES, run_model) | {"MVCDecoder": run_mvc_decoder, "checkpoint": run_key_layouts}
