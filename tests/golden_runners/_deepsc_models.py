"""DeepSC's networks: outputs, gradients of a step, usage of experts, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from golden_runners._compare import close, load
from scgpt_tools.models import DeepSCClassifier, DeepSCModel
from scgpt_tools.models.deepsc.losses import PretrainingLoss
from scgpt_tools.models.formats.deepsc import unwrap, with_encoder
from scgpt_tools.nn.bin_losses import balanced_cross_entropy, cross_entropy, per_class_cross_entropy
from scgpt_tools.nn.embedders import ContinuousValue
from scgpt_tools.nn.mixture import MixtureConfig, MixtureFeedForward, MixtureRegressor
from scgpt_tools.nn.signed_gates import FusedAttention, GatedAttention

GENERATIONS = {"base": "base", "perturbation_v1": "v1", "perturbation_v2": "v2"}


def files(folder: Path, case: dict) -> tuple[dict, dict, dict]:
    return tuple(
        load(folder / case["files"][kind]) if case["files"][kind] else {} for kind in ("weights", "inputs", "outputs")
    )


def tolerance(case: dict, name: str) -> dict:
    return case["tolerance"]["float"]


def build(case: dict, weights: dict, arguments: dict | None = None, **more) -> DeepSCModel:
    model = DeepSCModel(**(case["constructor_args"] if arguments is None else arguments), **more)
    assert set(model.state_dict()) == set(weights)
    model.load_state_dict(weights, strict=True)
    return model.train(case["call_args"].get("mode") == "train")


def run_model(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    model = build(case, weights, generation=GENERATIONS[case["variant"]])
    if "padding_added" in case["call_args"]:
        check_padding(model, case, weights, inputs, expected)
        return
    with torch.no_grad():
        found = model(**inputs, return_gate_weights=case["call_args"].get("return_gate_weights", False))
    order = case["expected"]["output_order"]
    assert len(found) == len(order)
    assert len(weights) == case["expected"]["state_dict_keys"]
    for name, tensor in zip(order, found, strict=True):
        close(tensor, expected[name], tolerance(case, name), name)


def check_padding(model: DeepSCModel, case: dict, weights: dict, inputs: dict, expected: dict) -> None:
    plain = {name: tensor for name, tensor in inputs.items() if not name.endswith("_padded")}
    padded = {name: inputs[f"{name}_padded"] for name in plain}
    with torch.no_grad():
        close(model(**plain)[0], expected["regression"], tolerance(case, ""), "regression")
        close(model(**padded)[0], expected["regression_padded"], tolerance(case, ""), "regression_padded")
        masked = build(case, weights, padding_mask=True)
        real, length = plain["gene_ids"] != 0, plain["gene_ids"].shape[1]
        first, second = masked(**plain)[0][real], masked(**padded)[0][:, :length][real]
    close(second, first, tolerance(case, ""), "with the mask")
    change = (expected["regression"] - expected["regression_padded"][:, :length]).abs()[real].max()
    close(change, case["expected"]["max_change_on_real_positions"], tolerance(case, ""), "change by padding")


def run_mixture(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    arguments = case["constructor_args"]
    config = MixtureConfig(
        layers=1,
        hidden=arguments["moe_inter_dim"],
        experts=arguments["n_routed_experts"],
        active=arguments["n_activated_experts"],
        shared=arguments["n_shared_experts"],
        score="softmax" if arguments["score_func"] == "softmax" else "sigmoid",
        scale=arguments["route_scale"],
    )
    part = MixtureFeedForward(arguments["dim"], config)
    part.load_state_dict({expert_name(key): tensor for key, tensor in weights.items()}, strict=True)
    part.train(case["call_args"]["mode"] == "train")
    for number in range(case["call_args"]["passes"]):
        close(part(inputs[f"x{number}"]), expected[f"y{number}"], tolerance(case, ""), f"y{number}")
    close(part.router.picks, expected["expert_usage_count"], "exact", "picks")
    close(part.router.total, expected["total_tokens"], "exact", "total")
    usage, said = part.router.usage(), case["expected"]
    named = {
        "expert_usage_ratio": usage.ratio,
        "max_usage_ratio": usage.largest,
        "min_usage_ratio": usage.smallest,
        "usage_variance": usage.variance,
        "collapse_ratio": usage.largest,
        "entropy": usage.entropy,
        "total_tokens": usage.total,
        "is_collapsed_at_0.8": usage.collapsed,
    }
    for name, value in named.items():
        close(value, said[name], tolerance(case, ""), name)


def expert_name(key: str) -> str:
    for theirs, ours in {
        "gate.proj": "router.score",
        "gate.expert_usage_count": "router.picks",
        "gate.total_tokens": "router.total",
        "shared_experts": "shared",
        ".w1.": ".gate.",
        ".w2.": ".back.",
        ".w3.": ".forth.",
    }.items():
        key = key.replace(theirs, ours)
    return key


def run_regressor(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    arguments = case["constructor_args"]
    part = MixtureRegressor(
        arguments["embedding_dim"],
        arguments["number_of_experts"],
        arguments["dropout"],
        temperature=arguments["gate_temperature"],
    ).eval()
    names = {".fc1.": ".expand.", ".fc2.": ".contract.", ".fc3.": ".out.", ".norm1.": ".norm."}
    renamed = {}
    for key, tensor in weights.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        renamed[key] = tensor
    part.load_state_dict(renamed, strict=True)
    values, gates = part(inputs["x"])
    close(values, expected["output"], tolerance(case, ""), "output")
    close(gates, expected["gate_weights"], tolerance(case, ""), "gates")


def run_pretraining(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    arguments = case["constructor_args"]
    model = build(case, weights, arguments["model"])
    loss = PretrainingLoss(**arguments["loss"])
    logits, regression, *_ = model(inputs["gene"], inputs["masked_discrete_expr"], inputs["masked_continuous_expr"])
    found = loss(
        logits,
        inputs["discrete_expr_label"],
        regression,
        inputs["continuous_expr_label"],
        inputs["mask"].bool(),
    )
    for name, tensor in {
        "logits": logits,
        "regression": regression,
        "total": found.total,
        "ce": found.ce,
        "regression_loss": found.regression,
    }.items():
        close(tensor, expected[name], tolerance(case, ""), name)
    found.total.backward()
    gradients = model.gradients()
    for name, tensor in expected.items():
        if name.startswith("grad."):
            close(gradients[name.removeprefix("grad.")], tensor, tolerance(case, ""), name)
    norm = torch.stack([each.norm() for each in gradients.values() if each is not None]).norm()
    close(norm, expected["grad_norm_total"], tolerance(case, ""), "norm")
    assert [name for name, each in gradients.items() if each is None] == case["expected"]["parameters_without_gradient"]


def run_classifier(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    arguments = dict(case["constructor_args"])
    model = DeepSCClassifier(DeepSCModel(**arguments.pop("encoder")), **arguments)
    assert set(model.state_dict()) == set(weights)
    model.load_state_dict(weights, strict=True)
    model.train(case["call_args"]["mode"] == "train")
    cells = {name: inputs[name] for name in ("gene_ids", "value_log1p", "value_binned")}
    with torch.no_grad():
        logits = model(**cells)
        close(logits, expected["cls_output"], tolerance(case, ""), "logits")
        close(model.embed(**cells), expected["cell_embedding"], tolerance(case, ""), "cell")
    labels = inputs["labels"]
    close(cross_entropy(logits, labels), expected["loss_standard"], tolerance(case, ""), "standard")
    close(per_class_cross_entropy(logits, labels), expected["loss_per_class"], tolerance(case, ""), "per class")
    mean = balanced_cross_entropy(logits, labels, first=0)
    close(mean, expected["loss_per_bin_mean"], tolerance(case, ""), "mean of classes")
    assert sorted(model.head_only()) == sorted(case["expected"]["head_only_trainable"])


def run_legacy(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    model = build(case, weights, generation="l0")
    gates = model.cell_model.encoder.gates
    if "gumbel_noise" in inputs:
        gates.noise = inputs.pop("gumbel_noise")
        close(
            gates.logits(model.cell_model.embedder.genes(inputs["gene_ids"])),
            expected["gate_logits"],
            tolerance(case, ""),
            "logits of gates",
        )
    with torch.no_grad():
        found = model(**inputs, return_gate_weights=case["call_args"]["return_gate_weights"])
    order = ("logits", "regression", "y", "gene_emb", "expr_emb", "gate_weights")
    for name, tensor in zip(order, found, strict=True):
        if name == "y" and gates is None:
            assert tensor is None
        else:
            close(tensor, expected[name], tolerance(case, ""), name)


def run_gated(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    arguments = case["constructor_args"]
    genes, values = (
        kind(arguments["d"], arguments["num_heads"], 0.0).eval() for kind in (GatedAttention, FusedAttention)
    )
    names = {"W_Q": "query", "W_K": "key", "W_V": "value", "out_proj": "out", "fused_emb_proj": "fuse"}
    for part, prefix in ((genes, "gene."), (values, "expr.")):
        own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        part.load_state_dict({f"{names[key.split('.')[0]]}.{key.split('.')[1]}": t for key, t in own.items()})
    from scgpt_tools.nn.attention import PaddedLayout

    x, expression, gates = inputs["x"], inputs["expr"], inputs["M"]
    layout = PaddedLayout.from_mask(torch.ones(x.shape[:2], dtype=torch.bool))
    found = {
        "gene_plain": genes.attend(x, layout, None),
        "gene_gated": genes.attend(x, layout, gates),
        "expr_fused_gated": values.attend_fused(x, expression, layout, gates),
        "expr_fused_plain": values.attend_fused(x, expression, layout, None),
        "expr_self_gated": values.attend(expression, layout, gates),
    }
    for name, tensor in found.items():
        close(tensor, expected[name], tolerance(case, name), name)


def run_checkpoint(folder: Path, case: dict) -> None:
    expected, arguments = case["expected"], case["constructor_args"]
    base = DeepSCModel(**arguments)
    weights = base.state_dict()
    assert set(weights) == set(expected["base_keys"])
    for variant, said in expected["transfer"].items():
        other = DeepSCModel(**arguments, generation=GENERATIONS[variant])
        report = other.load_state_dict(weights, strict=case["call_args"]["strict"])
        assert sorted(report.missing_keys) == sorted(said["missing"])
        assert sorted(report.unexpected_keys) == sorted(said["unexpected"])
        with pytest.raises(RuntimeError, match="generation"):
            other.load_state_dict(weights, strict=True)
    wrapped = {
        "fabric": {"model": weights, "epoch": 1},
        "lightning": {"state_dict": {f"model.{key}": tensor for key, tensor in weights.items()}},
        "ddp": {f"module.{key}": tensor for key, tensor in weights.items()},
        "double": {f"module.model.{key}": tensor for key, tensor in weights.items()},
    }
    for kind, names in expected["unwrapped_prefixes"].items():
        found = list(unwrap(wrapped[kind]))
        assert len(found) == int(names[-1])
        assert set(names[:-2]) <= set(found)
    keys = list(with_encoder(weights))
    assert set(expected["encoder_prefixed"]) <= set(keys)


def run_value_encoder(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    arguments = case["constructor_args"]
    part = ContinuousValue(arguments["d_model"], arguments["dropout"]).eval()
    assert arguments["max_value"] == part.CAP
    names = {"linear1": "first", "linear2": "second", "norm": "norm"}
    part.load_state_dict({f"{names[k.split('.')[0]]}.{k.split('.')[1]}": tensor for k, tensor in weights.items()})
    close(part(inputs["x"]), expected["y"], tolerance(case, "y"), "y")


def without_dropout(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0


VARIANTS = {
    "base": run_model,
    "moe_ffn": run_mixture,
    "moe_regressor": run_regressor,
    "pretrain": run_pretraining,
    "classifier": run_classifier,
    "checkpoint": run_checkpoint,
    "legacy_base": run_legacy,
    "legacy_gated_attention": run_gated,
}
