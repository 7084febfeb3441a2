"""scGPT's binning, preprocessor and tokenizer.

Where the original draws at random, the rule is compared: what its recorded draw obeys, ours has to obey.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors.torch import load_file

import scgpt_tools as sct
from golden_runners._tokens import (
    Arrays,
    check_refusal,
    check_tokens,
    features_of,
    numbered,
    tokenized,
    vocabulary_of,
)
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig
from scgpt_tools.tokens.units import looks_logged
from scgpt_tools.tokens.values import bin_edges, bin_row, bin_rows

if TYPE_CHECKING:
    from pathlib import Path


# --- binning ------------------------------------------------------------------------------------------------------


def run_binning(folder: Path, case: dict[str, Any]) -> None:
    arrays = dict(np.load(folder / "arrays.npz"))
    for entry in case["rows"]:
        name = entry["row"]
        parts = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
        check_row(arrays[name], entry["n_bins"], parts)


def check_row(row: np.ndarray, bins: int, expected: Arrays) -> None:
    if "left" not in expected:
        assert not expected["binned"].any()
        for ties in ("left", "random"):
            result = bin_row(row, bins, ties=ties, uniforms=np.zeros(row.size))
            assert result.dtype == row.dtype
            np.testing.assert_array_equal(result, expected["binned"])
        return
    np.testing.assert_array_equal(bin_edges(row[row != 0], bins), expected["edges"])
    np.testing.assert_array_equal(bin_row(row, bins), expected["left"])
    drawn = bin_row(row, bins, ties="random", uniforms=expected["uniform"])
    assert drawn.dtype == row.dtype
    np.testing.assert_array_equal(drawn, expected["binned"])
    if row.min() >= 0:
        check_compiled(row, bins, expected)


def check_compiled(row: np.ndarray, bins: int, expected: Arrays) -> None:
    matrix = sp.csr_matrix(row[None])
    np.testing.assert_array_equal(bin_rows(matrix, bins).toarray()[0], expected["left"])
    for seed in range(20):
        binned = bin_rows(matrix, bins, ties="random", keys=np.array([3], dtype=np.uint64), seed=seed).toarray()[0]
        assert np.all((expected["lowest"] <= binned) & (binned <= expected["left"]))


# --- preprocessing ------------------------------------------------------------------------------------------------


def run_check_logged(folder: Path, case: dict[str, Any]) -> None:
    for row in case["table"]:
        X = np.asarray(row["X"], dtype=np.float32)
        for form in (np.asarray, sp.csr_matrix, sp.csc_matrix):
            if row.get("expect_error"):
                with pytest.raises(ValueError, match="positive"):
                    looks_logged(form(X))
            else:
                assert looks_logged(form(X)) == row["is_logged"], X


def run_preprocessor(folder: Path, case: dict[str, Any]) -> None:
    arrays = dict(np.load(folder / "arrays.npz"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some cells have zero counts")
        for form in (np.asarray, sp.csr_matrix):
            check_preprocessed(arrays, case["config"], form)
        if "X_normed_int_or_float" in arrays:
            check_target(arrays["X"], arrays["X_normed_int_or_float"])


def check_preprocessed(arrays: Arrays, config: dict[str, Any], form) -> None:
    result = sct.pp.preprocess(numbered(form(arrays["X"])), **preprocess_arguments(config))
    for key, index in (("kept_genes", result.var_names), ("kept_cells", result.obs_names)):
        if key in arrays:
            assert index.astype(int).tolist() == arrays[key].tolist()
    tolerance = {"atol": 1e-5, "rtol": 1e-5}
    for layer in ("X_normed", "X_log1p"):
        if layer in arrays:
            np.testing.assert_allclose(dense(result.layers[layer]), arrays[layer], **tolerance)
    if "X_binned" in arrays:
        last = "X_log1p" if "X_log1p" in result.layers else "X_normed"
        # The recorded values, since one ulp decides a bin.
        check_bins(arrays, arrays.get(last, dense(result.layers[last])), config["binning"])
        np.testing.assert_array_equal(result.layers["X_binned"].toarray(), arrays["X_binned_left"])


def check_bins(arrays: Arrays, values: np.ndarray, bins: int) -> None:
    draws = iter(sorted((key for key in arrays if key.startswith("uniform")), key=lambda key: int(key[7:])))
    for cell, row in enumerate(values):
        uniforms = arrays[next(draws)] if row.any() else None
        np.testing.assert_array_equal(bin_row(row, bins, ties="random", uniforms=uniforms), arrays["X_binned"][cell])
        edges = bin_edges(row[row != 0], bins) if row.any() else np.zeros(bins - 1)
        if "bin_edges" in arrays:
            np.testing.assert_array_equal([0, *edges], arrays["bin_edges"][cell])


def check_target(X: np.ndarray, expected: np.ndarray) -> None:
    """Whatever number the original came to use, given that number we scale to it, be it whole or not."""
    totals = expected.sum(axis=1, dtype=np.float64)
    target = np.median(totals[totals > 0])
    result = sct.pp.preprocess(numbered(X), target_sum=target, log1p=False, bins=None)
    np.testing.assert_allclose(result.layers["X_normed"], expected, atol=1e-5, rtol=1e-5)
    whole = sct.pp.preprocess(numbered(X), target_sum=500, log1p=False, bins=None).layers["X_normed"].sum(axis=1)
    np.testing.assert_allclose(whole[whole > 0], 500, rtol=1e-5)


def preprocess_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the original as ours: False and True (for 1) are no numbers here."""
    renamed = {
        "min_gene_counts": number(config.get("filter_gene_by_counts", False)),
        "min_cell_counts": number(config.get("filter_cell_by_counts", False)),
        "target_sum": number(config.get("normalize_total", 1e4)),
        "log1p": config.get("log1p", False),
        "n_top_genes": number(config.get("subset_hvg", False)),
        "hvg_flavor": config.get("hvg_flavor", "seurat_v3"),
        "bins": number(config.get("binning") or False),
    }
    known = {"filter_gene_by_counts", "filter_cell_by_counts", "normalize_total", "log1p", "subset_hvg", "hvg_flavor"}
    others = {name: value for name, value in config.items() if name not in known and not name.startswith("result_")}
    others.pop("binning", None)
    assert set(others.values()) <= {None, "X"}, f"arguments that this runner does not know: {others}"
    return renamed


def number(value: float | bool) -> float | None:
    return None if value is False else 1 if value is True else value


def dense(X) -> np.ndarray:
    return X.toarray() if sp.issparse(X) else np.asarray(X)


# --- tokens -------------------------------------------------------------------------------------------------------


def run_tokenizer(folder: Path, case: dict[str, Any]) -> None:
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    vocabulary = vocabulary_of(case)
    for call in case["calls"]:
        assert call["method"] == "tokenize_and_pad_batch"
        flags = dict(call["flags"])
        modalities = tuple(sorted(case["vocab_mod"], key=case["vocab_mod"].get)) if flags["with_mod_type"] else ()
        config = TokenizerConfig(
            genes="all" if flags["include_zero_gene"] else "expressed",
            values="raw",
            bins=None,
            length=flags["max_len"],
            cls=flags["append_cls"],
            cls_value=0.0,
            pad_value=flags["pad_value"],
            modalities=modalities,
        )
        features = features_of(inputs["gene_ids"], vocabulary)
        if modalities:
            features = replace(features, modality=inputs["mod_type"].numpy())
        tokenizer = Tokenizer(config, vocabulary)
        if "expect_error" in call:
            check_refusal(call, lambda t=tokenizer, f=features: tokenized(t, inputs["data"].numpy(), f))
            continue
        batch = tokenized(tokenizer, inputs["data"].numpy(), features)
        ours = {"genes": batch.genes, "values": batch.values, "mod_types": batch.modality}
        expected = {name: outputs[key] for name, key in call["outputs"].items()}
        whole = tokenized(Tokenizer(replace(config, length=None), vocabulary), inputs["data"].numpy(), features)
        check_tokens(ours, expected, whole, ("genes", "values"), vocabulary, first=int(flags["append_cls"]))


RUNNERS = {
    "binning": run_binning,
    "Preprocessor.check_logged": run_check_logged,
    "Preprocessor": run_preprocessor,
    "tokenizer": run_tokenizer,
}
