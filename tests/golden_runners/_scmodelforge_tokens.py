"""Tokens of scModelForge: its tokenizers, its masking, and the choice of genes by minibatch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from golden_runners._scmodelforge import batch_of, same, tensors
from scgpt_tools.data.gene_embeddings import GeneEmbeddings
from scgpt_tools.models.families.scmodelforge import SPECIALS, scmodelforge_tokens
from scgpt_tools.tokens import FeatureTable, MaskGenes, Tokenizer, TokenizerConfig, select_genes
from scgpt_tools.tokens.edges import quantile_edges, uniform_edges
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from scgpt_tools.tokens.batch import TokenBatch


def settings_of(arguments: dict, inputs: dict) -> TokenizerConfig:
    """Their constructor's arguments in our words."""
    style, n_bins = arguments["strategy"], arguments.get("n_bins", 51)
    zeros = arguments.get("include_zero_genes", style not in ("rank_value", "gene_embedding"))
    edges = None
    if arguments.get("bin_edges") is not None:
        edges = tuple(arguments["bin_edges"])
    elif style == "binned_expression":
        quantile = arguments.get("binning_method", "uniform") == "quantile"
        edges = (
            quantile_edges(inputs["fit_values"].numpy(), n_bins)
            if quantile
            else uniform_edges(n_bins, arguments.get("value_max", 10.0))
        )
    return TokenizerConfig(
        genes="all" if zeros and style != "rank_value" else "expressed",
        values="log1p" if arguments.get("log_transform", False) else "raw",
        bins=None,
        length=arguments["max_len"],
        overflow="first",
        cls=arguments.get("prepend_cls", True),
        cls_value=0.0,
        pad_value=0.0,
        order="rank" if style == "rank_value" else "columns",
        edges=edges,
    )


def features_of(ids: torch.Tensor) -> tuple[Vocabulary, FeatureTable]:
    """A vocabulary in which the columns have the ids of the case."""
    names = [f"G{number:05d}" for number in range(int(ids.max()) + 1 - len(SPECIALS))]
    vocabulary = Vocabulary([*SPECIALS, *names])
    var = pd.DataFrame(index=[vocabulary.tokens[int(number)] for number in ids])
    return vocabulary, FeatureTable.from_var(var, vocabulary, min_coverage=0)


def tokens(config: TokenizerConfig, vocabulary: Vocabulary, features: FeatureTable, X: Any) -> TokenBatch:
    table = sp.csr_matrix(np.asarray(X))
    return Tokenizer(config, vocabulary)(table, features, np.arange(table.shape[0]))


def same_batch(batch: TokenBatch, expected: dict, case: dict) -> None:
    found = {
        "input_ids": batch.genes,
        "gene_indices": batch.genes,
        "attention_mask": batch.mask.long(),
        "values": batch.values,
        "bin_ids": batch.bins,
        "lengths": batch.mask.sum(dim=1),
    }
    for name, tensor in found.items():
        if name in expected:
            same(tensor, expected[name], case, name)


def run_tokens(folder: Path, case: dict) -> None:
    _, inputs, expected = tensors(folder)
    config = settings_of(case["constructor_args"], inputs)
    vocabulary, features = features_of(inputs["gene_indices"])
    same_batch(tokens(config, vocabulary, features, inputs["expression"]), expected, case)
    if "bin_edges" in expected:
        same(np.asarray(config.edges), expected["bin_edges"], case, "bin_edges")
    if "table" in inputs:
        made = case["constructor_args"]
        vocabulary = Vocabulary([*SPECIALS, *made["vocab_genes"]])
        found = aligned(made["table_names"], inputs["table"].numpy(), vocabulary)
        same(found, expected["aligned_table"], case, "aligned_table")


def aligned(names: list[str], table: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """A row for each token; of a name that is there twice, the last counts."""
    last = {name: row for row, name in enumerate(names)}
    given = GeneEmbeddings(tuple(last), table[list(last.values())])
    return given.rows(vocabulary, missing="mask")


def run_selection(folder: Path, case: dict) -> None:
    made = case["constructor_args"]
    _, inputs, expected = tensors(folder)
    vocabulary, features = features_of(inputs["gene_indices"])
    X = sp.csr_matrix(inputs["expression"].numpy())
    chosen = select_genes(X, features, made["n_genes"], how=made["strategy"])
    if "selected" in expected:
        assert set(chosen.ids.tolist()) == set(expected["selected"].tolist())
    config = settings_of({**made, "strategy": made["tokenizer"]}, inputs)
    same_batch(tokens(config, vocabulary, chosen, inputs["expression"]), expected, case)


def run_pipeline(folder: Path, case: dict) -> None:
    made, called = case["constructor_args"], case["call_args"]
    _, inputs, expected = tensors(folder)
    vocabulary = Vocabulary([*SPECIALS, *called["vocab_genes"]])
    assert len(vocabulary) == case["expected"]["vocab_size"]
    assert all(vocabulary[name] == number for name, number in case["expected"]["special_ids"].items())
    preparing = made["preprocessing"]
    config = replace(
        scmodelforge_tokens(made["strategy"], length=made["max_len"]),
        values="log1p" if preparing["log1p"] else "raw",
        target_sum=preparing["target_sum"] if preparing["normalize"] == "library_size" else None,
        cls=made["prepend_cls"],
    )
    features = FeatureTable.from_var(pd.DataFrame(index=called["data_genes"]), vocabulary, min_coverage=0)
    batch = tokens(config, vocabulary, features, inputs["counts"])
    same_batch(batch, expected, case)
    # Expressed genes of a cell are counted before those are left out that are too many for it.
    everything = tokens(replace(config, length=None), vocabulary, features, inputs["counts"])
    same(everything.mask.sum(dim=1) - int(config.cls), expected["n_genes"], case, "n_genes")


def run_masking(folder: Path, case: dict) -> None:
    """By the recorded draws: an order of the tokens that may be hidden, and other tokens."""
    made = case["constructor_args"]
    _, inputs, expected = tensors(folder)
    batch = batch_of(inputs)
    other = made["random_replace_ratio"]
    corruption = MaskGenes(
        ratio=made["mask_ratio"],
        other=other,
        keep=round(1 - made["mask_action_ratio"] - other, 10),
        compat=True,
        keep_first=int(bool((batch.genes[:, 0] == SPECIALS.index("<cls>")).all())),
        mask_gene=SPECIALS.index("<mask>"),
    )
    order = torch.full_like(batch.genes, 10**6)
    drawn = torch.zeros_like(batch.genes)
    for row in range(len(batch)):
        places = torch.nonzero(batch.mask[row] & (batch.genes[row] != SPECIALS.index("<cls>"))).flatten()
        permutation = inputs["permutation"][row]
        order[row, places[permutation[: len(places)]]] = torch.arange(len(places))
        # The draws are in the order of the tokens that are exchanged, which come after those that are masked.
        used = inputs["random_tokens"][row]
        drawn[row] = drawn_at(used, order[row], len(places), corruption)
    found = corruption.applied(batch, order, drawn)
    same(found.genes, expected["input_ids"], case, "input_ids")
    same(found.values, expected["values"], case, "values")
    same(found.hidden.to(torch.uint8), expected["masked_positions"], case, "masked_positions")
    labels = torch.where(found.hidden, found.target_genes, -100)
    same(labels, expected["labels"], case, "labels")


def drawn_at(used: torch.Tensor, order: torch.Tensor, n: int, corruption: MaskGenes) -> torch.Tensor:
    """Recorded tokens at the places that take them."""
    chosen = max(1, round(n * corruption.ratio))
    first = round(chosen * (1 - corruption.other - corruption.keep))
    drawn = torch.zeros_like(order)
    for number, token in enumerate(used[used >= 0].tolist()):
        drawn[order == first + number] = token
    return drawn
