"""Bins are scGPT's, bit for bit: the compiled code is held against NumPy's own quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scgpt_tools.tokens import kernels
from scgpt_tools.tokens.orders import tie_uniforms
from scgpt_tools.tokens.values import MOST_BINS, bin_dtype, bin_edges, bin_row, bin_rows, canonical

N_ROWS = 1500
DTYPES = ("float32", "float64", "int32", "int64", "uint8", "uint16")
WHOLE = ("int32", "int64", "uint8", "uint16")


def random_row(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Rows as data has them, and rows that are hard: ties, one value, neighbours in floating point, long tails."""
    n = int(rng.choice([1, 2, 3, 10, 49, 50, 51, 99, 200, 1000]))
    kind = rng.integers(8)
    if kind == 0:
        row = np.full(n, rng.integers(1, 200))
    elif kind == 1:
        row = np.arange(1, n + 1) % 250 + 1
    elif kind in (2, 3) or dtype in WHOLE:
        row = np.minimum(rng.negative_binomial(0.5, 0.1, n) + 1, 250)
        row = row if dtype in WHOLE or kind == 2 else np.log1p(row * 1e4 / row.sum())
    elif kind == 4:
        row = np.round(rng.lognormal(size=n), 2) + 0.01
    elif kind == 5:
        row = rng.lognormal(sigma=5, size=n)
    elif kind == 6:  # one ulp apart, where the rounding of an edge shows
        row = np.nextafter(np.full(n, 1.1, dtype), 2, dtype=dtype) * rng.choice([1, 1 + 2.0**-23], n)
    else:
        row = rng.random(n) * 1e-42
    row = row.astype(dtype)
    return row[row > 0] if (row > 0).any() else np.ones(1, dtype)


def numpy_bins(row: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """scGPT's rule in its own words: digits for the right and for the left side of each edge."""
    edges = np.quantile(row, np.linspace(0, 1, bins - 1))
    return np.digitize(row, edges), np.digitize(row, edges, right=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_bins_are_those_of_numpy(dtype):
    rng = np.random.default_rng(1)
    for _ in range(N_ROWS):
        row, bins = random_row(rng, dtype), int(rng.integers(2, 102))
        left, lowest = numpy_bins(row, bins)
        matrix = sp.csr_matrix(row[None])
        np.testing.assert_array_equal(bin_rows(matrix, bins).toarray()[0], left)
        key, seed = rng.integers(2**63, size=2, dtype=np.uint64)
        drawn = bin_rows(matrix, bins, ties="random", keys=np.array([key]), seed=int(seed)).toarray()[0]
        uniforms = tie_uniforms(int(seed), int(key), np.arange(row.size))
        np.testing.assert_array_equal(drawn, np.ceil(uniforms * (lowest - left) + left))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_edges_are_those_of_numpy(dtype):
    rng = np.random.default_rng(2)
    for _ in range(N_ROWS):
        row, bins = np.sort(random_row(rng, dtype)), int(rng.integers(2, 102))
        edges = np.empty(bins - 1)
        kernels.quantile_edges(row, np.linspace(0, 1, bins - 1), edges)
        np.testing.assert_array_equal(edges, np.quantile(row, np.linspace(0, 1, bins - 1)))
        np.testing.assert_array_equal(edges, bin_edges(row, bins))


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_and_compiled_rows_agree_with_zeros_between(dtype):
    rng = np.random.default_rng(3)
    for _ in range(200):
        row = random_row(rng, dtype)
        row[rng.random(row.size) < 0.5] = 0
        bins = int(rng.integers(2, 102))
        compiled = bin_rows(sp.csr_matrix(row[None]), bins).toarray()[0]
        np.testing.assert_array_equal(bin_row(row, bins), compiled)
        assert np.array_equal(compiled > 0, row > 0)


def test_bins_start_at_one_and_end_at_the_last():
    row = np.random.default_rng(0).lognormal(size=300)
    for bins in (2, 3, 51, 256, 257, 1000):
        binned = bin_rows(sp.csr_matrix(row[None]), bins)
        assert binned.dtype == bin_dtype(bins)
        assert (binned.data.min(), binned.data.max()) == (1, bins - 1)


def test_only_ranks_count():
    counts = np.random.default_rng(0).poisson(2, size=(1, 400)).astype(np.float64)
    logs = np.log1p(counts * 1e4 / counts.sum())
    np.testing.assert_array_equal(
        bin_rows(sp.csr_matrix(counts), 51).toarray(), bin_rows(sp.csr_matrix(logs), 51).toarray()
    )


def test_random_ties_are_uniform_between_the_equal_edges():
    """A constant row ties everywhere, so each of its bins is as likely as another."""
    matrix = sp.csr_matrix(np.full((1, 20000), 3.0, dtype=np.float32))
    drawn = bin_rows(matrix, 11, ties="random", keys=np.array([5], dtype=np.uint64), seed=1).data
    shares = np.bincount(drawn, minlength=11) / drawn.size
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], 0.1, atol=0.015)


def test_columns_without_a_token_do_not_count():
    matrix = sp.csr_matrix(np.array([[1.0, 100, 2, 3, 200]], dtype=np.float32))
    token_of = np.array([4, -1, 0, 7, -1])
    binned = bin_rows(matrix, 4, token_of=token_of).toarray()[0]
    np.testing.assert_array_equal(binned, [1, 0, 2, 3, 0])


def test_empty_rows_and_matrices():
    assert bin_rows(sp.csr_matrix((3, 4), dtype=np.float32), 51).nnz == 0
    assert bin_rows(sp.csr_matrix((0, 4), dtype=np.float32), 51).shape == (0, 4)
    assert bin_row(np.empty(0), 51).size == 0


def test_a_column_that_stands_twice_is_summed_and_zeros_that_are_stored_do_not_count():
    twice = sp.csr_matrix((np.array([1.0, 2, 0, 5, 4]), np.array([3, 0, 1, 3, 2]), np.array([0, 5])), shape=(1, 4))
    before = [part.copy() for part in (twice.data, twice.indices, twice.indptr)]
    np.testing.assert_array_equal(bin_rows(twice, 4).toarray()[0], bin_row(np.array([2.0, 0, 4, 6]), 4))
    for part, old in zip((twice.data, twice.indices, twice.indptr), before, strict=True):
        np.testing.assert_array_equal(part, old)


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">f8", "bool", "int8", "longdouble"])
def test_other_types_of_numbers(dtype):
    row = np.array([1, 0, 3, 2, 5, 100, 0], dtype=np.float64).astype(dtype)
    expected = bin_row(row.astype(np.float64), 51)
    np.testing.assert_array_equal(bin_rows(canonical(row[None]), 51).toarray()[0], expected)


def test_canonical_keeps_what_is_fine():
    matrix = sp.csr_matrix(np.eye(3, dtype=np.float32))
    assert canonical(matrix) is matrix
    with pytest.raises(TypeError, match="Expected a matrix of numbers, found one of type <U1"):
        canonical(np.array([["a"]]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bins": 1}, ValueError, "Expected `bins` to be at least 2, found 1"),
        ({"bins": MOST_BINS + 1}, ValueError, "Expected `bins` to be at most 32768"),
        ({"bins": 2.5}, TypeError, "Expected `bins` to be a whole number, found 2.5"),
        ({"bins": 51, "ties": "both"}, ValueError, "Expected `ties` to be one of 'left', 'random', found 'both'"),
        ({"bins": 51, "ties": "random"}, ValueError, "Expected `keys` for ties='random', found None"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        bin_rows(sp.csr_matrix(np.eye(2)), **arguments)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_values_that_no_cell_has(value):
    matrix = sp.csr_matrix(np.array([[0.0, 1, 0], [2, 0, value]]))
    with pytest.raises(ValueError, match=f"Expected finite values that are not negative, found {value} in row 1"):
        bin_rows(matrix, 51)


def test_plain_refusals():
    with pytest.raises(ValueError, match="Expected `uniforms` to hold 2 numbers for ties='random', found None"):
        bin_row(np.array([1.0, 0, 2]), 51, ties="random")
    with pytest.raises(ValueError, match=r"Expected `uniforms` to hold 2 numbers .* found shape \(3,\)"):
        bin_row(np.array([1.0, 0, 2]), 51, ties="random", uniforms=np.zeros(3))
    with pytest.raises(ValueError, match="Expected finite values, found NaN or infinity"):
        bin_row(np.array([1.0, np.nan]), 51)


def test_compiling_without_a_folder_for_the_cache():
    """A function that belongs to no file cannot be cached, as none can in a read-only container."""
    namespace: dict = {}
    exec("def double(x):\n    return 2 * x", namespace)
    assert kernels.compiled(namespace["double"])(21) == 42
