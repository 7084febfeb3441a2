"""scGPT's collators, masks and batch sampler.

They draw at random, so rules are compared: what the recorded draw obeys, ours has to obey, and as often as it should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from golden_runners._tokens import (
    Tensors,
    check_refusal,
    check_tokens,
    features_of,
    pairs,
    tokenized,
    vocabulary_of,
)
from scgpt_tools.data.samplers import SubsetBatches
from scgpt_tools.tokens.batch import TokenBatch
from scgpt_tools.tokens.corruptions import GenerateValues, MaskValues
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.values import bin_row

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from scgpt_tools.vocabulary import Vocabulary

REPEATS = 300


# --- collators ----------------------------------------------------------------------------------------------------


def stacked(batches: list[TokenBatch], pad_id: int, pad_value: float) -> TokenBatch:
    width = max(batch.genes.shape[1] for batch in batches)

    def padded(name: str, fill: float) -> torch.Tensor:
        tensors = [getattr(batch, name) for batch in batches]
        return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1]), value=fill) for row in tensors])

    return TokenBatch(genes=padded("genes", pad_id), values=padded("values", pad_value), mask=padded("mask", False))


class Collated:
    """Our answer to the examples of one call of a collator."""

    def __init__(self, call: dict[str, Any], inputs: Tensors, vocabulary: Vocabulary) -> None:
        self.flags = flags = call["flags"]
        self.vocabulary = vocabulary
        self.genes = [inputs[f"{call['id']}.genes{i}"] for i in range(call["n_examples"])]
        self.expressions = [inputs[f"{call['id']}.expressions{i}"] for i in range(call["n_examples"])]
        self.first = flags.get("keep_first_n_tokens", 1)
        self.binned = flags.get("do_binning", True)
        self.pad_value = flags.get("pad_value", 0)
        self.ratio = ratio(flags.get("mlm_probability", 0.15))
        assert flags["pad_token_id"] == vocabulary.pad_id

    def batch(self, *, length: int | None, seed: int = 0) -> TokenBatch:
        """Tokens of all examples.

        The first tokens of an example are special and keep their values.  The cell token is ours to set; others, which
        our tokenizer does not know, are put in front of what it makes of the rest.
        """
        # Even if none is to be kept, a negative value marks a special token, unless it is to be binned with the others.
        apart = self.first or int(not self.binned and any(values[0] < 0 for values in self.expressions))
        examples = zip(self.genes, self.expressions, strict=True)
        batches = [self._one(*pair, apart, length, seed + place) for place, pair in enumerate(examples)]
        return stacked(batches, self.vocabulary.pad_id, self.pad_value)

    def _one(self, genes: torch.Tensor, values: torch.Tensor, apart: int, length: int | None, seed: int) -> TokenBatch:
        """One example, whose entries are a matrix of one row with their own order of genes."""
        cls = apart == 1 and genes[0] == self.vocabulary.cls_id
        config = TokenizerConfig(
            genes="all",
            values="binned" if self.binned else "raw",
            bins=51 if self.binned else None,
            length=None if length is None else length - (0 if cls else apart),
            overflow="sample" if self.flags.get("sampling", True) else "first",
            cls=cls,
            cls_value=float(values[0]),
            pad_value=self.pad_value,
        )
        row = values[apart:].numpy()
        prebinned = self.binned and not apart  # special tokens take part in the quantiles, negative as they are
        row = bin_row(row, 51) if prebinned else row
        features = features_of(genes[apart:], self.vocabulary)
        batch = tokenized(Tokenizer(config, self.vocabulary), row[None], features, seed, prebinned=prebinned)
        return batch if cls else in_front(genes[:apart], values[:apart], batch)

    def everything(self) -> TokenBatch:
        """All steps in turn, for calls that are to be refused."""
        return self.masking()(self.batch(length=self.flags["max_length"]), 0)

    def masking(self) -> MaskValues:
        return MaskValues(
            ratio=self.ratio,
            count="bernoulli",
            mask_value=self.flags.get("mask_value", -1),
            keep_first=self.first,
            zeros=self.pad_value != 0,
        )


def in_front(genes: torch.Tensor, values: torch.Tensor, batch: TokenBatch) -> TokenBatch:
    return TokenBatch(
        genes=torch.cat([genes[None], batch.genes], 1),
        values=torch.cat([values[None], batch.values], 1),
        mask=torch.cat([torch.ones(1, len(genes), dtype=torch.bool), batch.mask], 1),
    )


def ratio(value: float | list[float]) -> float | tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else value


def run_collator(folder: Path, case: dict[str, Any]) -> None:
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    for call in case["calls"]:
        if "expect_error" in call:
            check_refusal(call, lambda call=call: Collated(call, inputs, vocabulary_of(case)).everything())
            continue
        collated = Collated(call, inputs, vocabulary_of(case))
        expected = {name: outputs[key] for name, key in call["outputs"].items()}
        style = call["flags"].get("data_style", "pcpt")
        if style == "both" and call["flags"].get("do_mlm", True):
            check_split(collated, expected)
        else:
            check_unsplit(collated, expected, style)


def check_unsplit(collated: Collated, expected: Tensors, style: str) -> None:
    names = ("gene", "expr") if style == "pcpt" else ("pcpt_gene", "pcpt_expr")
    batch, whole = collated.batch(length=collated.flags["max_length"]), collated.batch(length=None)
    seen = {name: expected[name] for name in names}
    check_tokens(
        {names[0]: batch.genes, names[1]: batch.values}, seen, whole, names, collated.vocabulary, collated.first
    )
    if "masked_expr" not in expected:
        return
    if not collated.flags.get("do_mlm", True):
        assert torch.equal(expected["masked_expr"], expected["expr"])
        return
    check_masked(expected["expr"], expected["masked_expr"], collated)
    check_masked_share(collated.masking(), batch, collated)


def check_masked(values: torch.Tensor, masked: torch.Tensor, collated: Collated) -> None:
    changed = masked != values
    assert (masked[changed] == collated.flags.get("mask_value", -1)).all()
    assert not changed[:, : collated.first].any()
    assert not changed[values == collated.pad_value].any()


def check_masked_share(masking: MaskValues, batch: TokenBatch, collated: Collated) -> None:
    """Every value by itself, each as often as the probability says."""
    allowed = batch.mask & (batch.values != collated.pad_value)
    allowed[:, : collated.first] = False
    often = torch.zeros(batch.values.shape)
    for seed in range(REPEATS):
        masked = masking(batch, seed)
        check_masked(batch.values, masked.values, collated)
        assert torch.equal(masked.target, batch.values)
        assert torch.equal(masked.hidden, masked.values != masked.target)
        often += masked.hidden
    share = (often / REPEATS)[allowed]
    ratios = np.atleast_1d(collated.ratio)
    spread = np.sqrt(np.mean(ratios) * (1 - np.mean(ratios)) / REPEATS)
    assert (share - np.mean(ratios)).abs().max() < 6 * spread


def check_split(collated: Collated, expected: Tensors) -> None:
    length, first = collated.flags["max_length"], collated.first
    whole = collated.batch(length=None)
    check_sides(expected, whole, collated)
    generate = GenerateValues(ratio=collated.ratio, mask_value=collated.flags.get("mask_value", -1), keep_first=first)
    widths = set()
    for seed in range(30):
        split = generate(collated.batch(length=length, seed=seed), seed)
        sides = sides_of(split)
        widths.add(sides["gen_gene"].shape[1])
        check_sides(sides, whole, collated)
        assert not (split.values[split.hidden] != generate.mask_value).any()
        assert torch.equal(split.hidden, split.generated & split.mask)
    widest = min(int(whole.mask.sum(1).max()), length)
    assert widths == {int((widest - first) * ratio) for ratio in np.atleast_1d(collated.ratio).tolist()}


def sides_of(split: TokenBatch) -> Tensors:
    border = int((~split.generated[0]).sum())
    assert torch.equal(split.generated, (torch.arange(split.genes.shape[1]) >= border).expand_as(split.generated))
    return {
        "pcpt_gene": split.genes[:, :border],
        "pcpt_expr": split.values[:, :border],
        "gen_gene": split.genes[:, border:],
        "gen_expr_target": split.target[:, border:],
    }


def check_sides(sides: Tensors, whole: TokenBatch, collated: Collated) -> None:
    """Widths, first tokens, numbers of tokens, padding, and every token with its own bin on at most one side."""
    first, length = collated.first, collated.flags["max_length"]
    lengths = whole.mask.sum(1)
    width = min(int(lengths.max()), length)
    n_generated = sides["gen_gene"].shape[1]
    fitting = [r for r in np.atleast_1d(collated.ratio).tolist() if int((width - first) * r) == n_generated]
    assert fitting
    assert sides["pcpt_gene"].shape[1] == width - n_generated
    for cell, n in enumerate(lengths.tolist()):
        both = [
            real(sides, "pcpt_gene", "pcpt_expr", cell, collated),
            real(sides, "gen_gene", "gen_expr_target", cell, collated),
        ]
        tokens = pairs(whole.genes[cell, :n], whole.values[cell, :n])
        assert both[0] + both[1] <= tokens
        assert torch.equal(sides["pcpt_gene"][cell, :first], whole.genes[cell, :first])
        assert both[1].total() in {min(int((n - first) * r), n_generated) for r in fitting}
        assert both[0].total() in {min(n - int((n - first) * r), width - n_generated) for r in fitting}


def real(sides: Tensors, genes: str, values: str, cell: int, collated: Collated) -> Counter:
    """Tokens of one side, which have to stand before its padding."""
    ids, numbers = sides[genes][cell], sides[values][cell]
    padding = ids == collated.vocabulary.pad_id
    assert torch.equal(padding, torch.arange(len(ids)) >= (~padding).sum())
    assert (numbers[padding] == collated.pad_value).all()
    return pairs(ids[~padding], numbers[~padding])


# --- masks and batches --------------------------------------------------------------------------------------------


def run_random_mask(folder: Path, case: dict[str, Any]) -> None:
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    for call in case["calls"]:
        values, flags = inputs[call["tensors"]["values"]], call["flags"]
        pad_value, mask_value = flags.get("pad_value", 0), flags.get("mask_value", -1)
        part = flags.get("mask_ratio", 0.15)
        real_values = values != pad_value
        batch = TokenBatch(genes=torch.zeros_like(values, dtype=torch.int64), values=values.clone(), mask=real_values)
        masking = MaskValues(ratio=part, mask_value=mask_value, keep_first=0)
        expected = outputs[call["outputs"]["output"]]
        for result in (expected, *(masking(batch, seed).values for seed in range(20))):
            assert result.dtype == expected.dtype
            changed = (result == mask_value) & (values != mask_value)
            counts = [int(part * n) for n in real_values.sum(1).tolist()]
            assert changed.sum(1).tolist() == counts
            assert torch.equal(result[~changed], values[~changed])
            assert not (changed & ~real_values).any()
        assert torch.equal(batch.values, values)


def run_subset_batches(folder: Path, case: dict[str, Any]) -> None:
    for row in case["table"]:
        flags = {"shuffle": "intra_subset_shuffle", "shuffle_batches": "inter_subset_shuffle"}
        shuffles = {ours: row.get(theirs, False) for ours, theirs in flags.items()}
        sampler = SubsetBatches(case["subsets"], row["batch_size"], drop_last=row["drop_last"], **shuffles)
        assert len(sampler) == row["length"]
        for _ in range(2):
            batches = list(sampler)
            assert sorted(map(len, batches)) == sorted(map(len, row["batches"]))
            assert all(any(set(batch) <= set(subset) for subset in case["subsets"]) for batch in batches)
            if not any(shuffles.values()):
                assert batches == row["batches"]


RUNNERS = {
    "DataCollator": run_collator,
    "DataCollator (pretraining form)": run_collator,
    "random_mask_value": run_random_mask,
    "SubsetsBatchSampler": run_subset_batches,
}
