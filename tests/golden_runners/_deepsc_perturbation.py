"""DeepSC's models of perturbations: outputs, prediction, choice of genes, steps of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from golden_runners._compare import close
from golden_runners._deepsc_models import (
    GENERATIONS,
    build,
    files,
    run_model,
    run_value_encoder,
    tolerance,
    without_dropout,
)
from scgpt_tools.models.deepsc.model import perturbation_flags, selected_columns
from scgpt_tools.models.deepsc.vocabulary import map_raw_id_to_vocab_id
from scgpt_tools.tokens.linear_bins import linear_bins


def run(folder: Path, case: dict) -> None:
    kind = run_model
    if "d_model" in case["constructor_args"]:
        kind = run_value_encoder
    elif "optimizer" in case["call_args"]:
        kind = run_steps
    elif "include_zero_gene" in case["call_args"]:
        kind = run_prediction
    kind(folder, case)


def run_prediction(folder: Path, case: dict) -> None:
    weights, inputs, expected = files(folder, case)
    given = case["call_args"]
    model = build(case, weights, generation=GENERATIONS[case["variant"]])
    predicted = model.pred_perturb(
        SimpleNamespace(x=inputs["x"], pert=given["pert"]),
        include_zero_gene=given["include_zero_gene"],
        gene_ids=inputs["gene_ids"].numpy(),
        genes=given["genes"],
    )
    close(predicted, expected["pred"], tolerance(case, ""), "prediction")


def run_selection(folder: Path, case: dict) -> None:
    _, inputs, expected = files(folder, case)
    given = case["call_args"]
    genes, ids = given["genes"], inputs["gene_ids"]
    x, y = inputs["x"][:, 0].reshape(len(given["pert"]), -1), inputs["y"]
    batch_wise, known = selected_columns(x, "batch-wise"), (ids != 0).nonzero().squeeze(1)
    either = selected_columns(torch.cat((x, y)), "batch-wise")
    flags = perturbation_flags(given["pert"], genes)
    everything = torch.ones_like(x, dtype=torch.bool)
    found = {
        "all_ids": selected_columns(x, "all"),
        "batchwise_ids": batch_wise,
        "batchwise_mapped": map_raw_id_to_vocab_id(batch_wise, ids),
        "valid_only_ids": known,
        "union_valid_ids": either[torch.isin(either, known)],
        "flags": flags,
        # The original's intermediate pipeline; this package never flags what the target tells.
        "flags_with_de2": flags.scatter(1, torch.tensor(given["de_idx"]), 2),
        "bins_positive_only": linear_bins(x, x > 0, given["num_bins"]),
        "bins_all_values": linear_bins(x, everything, given["num_bins"]),
        "bins_all_values_8": linear_bins(x, everything, 8),
    }
    assert set(found) == set(expected)
    for name, tensor in found.items():
        close(tensor, expected[name], "exact", name)


def run_steps(folder: Path, case: dict) -> None:
    """Both pipelines: of bins with accumulated gradients, of numbers with genes without a token set to 0."""
    weights, inputs, expected = files(folder, case)
    given, generation = case["call_args"], GENERATIONS[case["variant"]]
    model = build(case, weights, generation=generation)
    without_dropout(model)
    numbers, ids = generation == "v2", inputs["gene_ids"]
    length = given.get("max_seq_len" if numbers else "data_length")
    parameters = list(model.cell_model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=float(given["optimizer"].split("=")[1]))
    steps = range(sum(name.startswith("x") for name in inputs))
    # Conditions are those of every minibatch, or there is a list for each.
    perts = [given["pert"][step] if isinstance(given["pert"][0], list) else given["pert"] for step in steps]
    before = [inputs[f"x{step}"][:, 0].reshape(len(perts[step]), -1) for step in steps]
    flags = [perturbation_flags(each, given["genes"]) for each in perts]
    known = (ids != 0).float() if numbers else torch.ones(len(ids))
    after = [inputs[f"y{step}"] * known for step in steps]
    if not numbers:
        for step in steps:
            close(linear_bins(before[step], before[step] > 0, 5), expected[f"bins{step}"], "exact", "bins")
            close(flags[step], expected["flags"][step], "exact", "flags")
    if "torch_manual_seed" in given:
        torch.manual_seed(given["torch_manual_seed"])

    def forward(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns that take part, and what becomes of them."""
        columns = selected_columns(before[step], given["include_zero_gene"])
        if length is not None and len(columns) > length:
            # The original takes numbers of the selected columns for columns.
            columns = torch.randperm(len(columns))[:length]
        values = (before[step] * known)[:, columns]
        batch = {"normalized_expr": values, "input_pert_flags": flags[step][:, columns]}
        if not numbers:
            batch["expression_bin"] = linear_bins(values, values > 0, 5)
        tokens = map_raw_id_to_vocab_id(columns, ids).expand(len(values), -1)
        return columns, model.output(tokens, **batch)["expression"]

    def predict(step: int) -> torch.Tensor:
        if numbers:
            cells = SimpleNamespace(x=inputs[f"x{step}"], pert=perts[step])
            options = {"include_zero_gene": given["include_zero_gene"], "gene_ids": ids, "genes": given["genes"]}
            return model.pred_perturb(cells, **options)
        columns, found = forward(step)
        predicted = before[step].clone()
        predicted[:, columns] = found
        return predicted

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            predicted = torch.cat([predict(step) for step in steps])
        model.train()
        truth, de = torch.cat(after), torch.tensor(given["de_idx"]).flatten(0, 1)
        found = {"pred": predicted, "truth": truth, "pred_de": predicted.gather(1, de), "truth_de": truth.gather(1, de)}
        for name, tensor in found.items():
            close(tensor, expected[f"eval.{name}"].to(tensor.dtype), tolerance(case, name), f"eval {name}")
        assert sum(perts, []) == case["expected"]["pert_cat"]

    if not numbers:
        evaluate()
    losses, norms, accumulate = [], [], given.get("grad_acc", 1)
    model.train()
    for step in steps:
        columns, predicted = forward(step)
        loss = F.mse_loss(predicted, after[step][:, columns])
        losses.append(loss.detach())
        (loss / accumulate).backward()
        last = step == steps[-1] and len(norms) < len(expected["grad_norms"])
        if (step + 1) % accumulate and not last:
            continue
        if not norms:
            for name, tensor in expected.items():
                if name.startswith("grad."):
                    close(model.gradients()[name.removeprefix("grad.")], tensor, tolerance(case, name), name)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, given["clip_norm"]))
        optimizer.step()
        optimizer.zero_grad()
    close(torch.stack(losses), expected["losses"], tolerance(case, ""), "losses")
    close(torch.stack(norms), expected["grad_norms"], tolerance(case, ""), "norms")
    assert len(norms) == case["expected"].get("optimizer_steps", len(norms))
    if numbers:
        evaluate()


VARIANTS = {"perturbation_v1": run, "perturbation_v2": run, "pipeline": run_selection}
