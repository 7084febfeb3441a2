"""Compiled loops over the rows of a sparse matrix; nothing here is public.

Each kernel repeats a rule that :mod:`~scgpt_tools.tokens.values` or :mod:`~scgpt_tools.tokens.orders` states in plain
NumPy, and a test holds the two together.  Kernels that call each other sit in this one file because numba's cache on
disk notices a change of the file of a kernel, not of the files that it calls into.

Values are float32 or float64 and never negative; the callers make sure.  The global interpreter lock is released, so
a thread can tokenize the next batch while a model runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

TIES, SAMPLE = np.uint64(1), np.uint64(2)
"""What a draw is for, so that one seed gives unrelated draws."""

BINNED, LOG1P, RAW = 0, 1, 2
"""What becomes of a value."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT27, _SHIFT30, _SHIFT31 = np.uint64(27), np.uint64(30), np.uint64(31)
_TO_MANTISSA, _TO_BUCKET = np.uint64(11), np.uint64(54)
_BUCKETS = 1024


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, keeping the result on disk where some folder allows it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder to write to, as in a read-only container without a home
        return njit(nogil=True)(function)


# --- draws --------------------------------------------------------------------------------------------------------


@compiled
def mix(state):
    """Finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    state = (state ^ (state >> _SHIFT30)) * _MIX1
    state = (state ^ (state >> _SHIFT27)) * _MIX2
    return state ^ (state >> _SHIFT31)


@compiled
def cell_state(seed, key, purpose):
    """Start of the stream of draws of one cell."""
    return mix(mix(seed + purpose * _GOLDEN) ^ key)


@compiled
def draw(state, token):
    """64 random bits of one token of a cell."""
    return mix(state + np.uint64(token + 1) * _GOLDEN)


@compiled
def choose_smallest(hashes, k, kept):
    """Mark the ``k`` smallest hashes; equal ones (a token that stands twice) count in their order."""
    histogram = np.zeros(_BUCKETS, np.int64)
    for i in range(hashes.size):
        histogram[np.int64(hashes[i] >> _TO_BUCKET)] += 1
    bucket, before = 0, np.int64(0)
    while before + histogram[bucket] < k:
        before += histogram[bucket]
        bucket += 1
    border = np.empty(histogram[bucket], np.int64)
    found = 0
    for i in range(hashes.size):
        place = np.int64(hashes[i] >> _TO_BUCKET)
        kept[i] = place < bucket
        if place == bucket:
            border[found] = i
            found += 1
    order = np.argsort(hashes[border], kind="mergesort")
    for i in range(k - before):
        kept[border[order[i]]] = True


# --- quantile bins ------------------------------------------------------------------------------------------------


@compiled
def sort_by_bits(bits, order, spare):
    """Order of positive floats: as unsigned integers they sort the same, byte by byte from the lowest."""
    n = bits.size
    counts = np.zeros((bits.itemsize, 256), np.int64)
    for i in range(n):
        order[i] = i
        for digit in range(bits.itemsize):
            counts[digit, np.int64((bits[i] >> (8 * digit)) & 255)] += 1
    source, target = order, spare
    for digit in range(bits.itemsize):
        starts = counts[digit]
        if starts[np.int64((bits[0] >> (8 * digit)) & 255)] == n:
            continue  # the same byte everywhere
        total = 0
        for value in range(256):
            starts[value], total = total, total + starts[value]
        for i in range(n):
            byte = np.int64((bits[source[i]] >> (8 * digit)) & 255)
            target[starts[byte]] = source[i]
            starts[byte] += 1
        source, target = target, source
    return source


@compiled
def quantile_edges(ascending, fractions, edges):
    """``numpy.quantile`` of a sorted row.

    Same operations in the same order and precision as NumPy's, because an edge that comes out one ulp beside a value
    decides a bin: the difference is taken in the type of the values, the rest in float64, from the nearer side.
    """
    last = ascending.size - 1
    for k in range(fractions.size):
        place = last * fractions[k]
        if place >= last:
            edges[k] = ascending[last]
            continue
        floor = np.floor(place)
        gamma = place - floor
        low, high = ascending[np.int64(floor)], ascending[np.int64(floor) + 1]
        difference = high - low
        if gamma >= 0.5:
            edges[k] = high - difference * (1 - gamma)
        else:
            edges[k] = low + difference * gamma


@compiled
def bin_row(values, bits, fractions, left, lowest):
    """Number of edges up to each value of a row, and below it; ``bits`` are the values seen as unsigned integers."""
    n = values.size
    order = sort_by_bits(bits, np.empty(n, np.int32), np.empty(n, np.int32))
    edges = np.empty(fractions.size)
    quantile_edges(values[order], fractions, edges)
    upto, below = 0, 0
    for i in order:
        while upto < edges.size and edges[upto] <= values[i]:
            upto += 1
        while below < edges.size and edges[below] < values[i]:
            below += 1
        left[i], lowest[i] = upto, below


# --- rows of a sparse matrix --------------------------------------------------------------------------------------


@compiled
def find_bad(data, start, stop):
    """Place of the first negative, missing or infinite value, or -1."""
    for j in range(start, stop):
        if not 0 <= data[j] < np.inf:
            return j
    return -1


@compiled
def find_outside(indices, start, stop, bound):
    """Place of the first number that is not from 0 to below a bound, or -1."""
    # One comparison after a loop without a way out, which the compiler makes vectors of; a negative number is a large one.
    largest = np.uint64(0)
    for j in range(start, stop):
        largest = max(largest, np.uint64(indices[j]))
    if start >= stop or largest < np.uint64(bound):
        return -1
    for j in range(start, stop):
        if not 0 <= indices[j] < bound:
            return j
    return -1


@compiled
def ascends(indices, indptr):
    """Whether the numbers of every row of a CSR matrix, or column of a CSC one, ascend; equal ones may follow."""
    for r in range(indptr.size - 1):
        for j in range(indptr[r] + 1, indptr[r + 1]):
            if indices[j] < indices[j - 1]:
                return False
    return True


@compiled
def count_known(data, indices, indptr, rows, token_of, lengths):
    """Number of non-zero entries with a token in each row; returns the place of a bad value or column, or -1."""
    size = np.uint64(token_of.size)
    for r in range(rows.size):
        n = 0
        for j in range(indptr[rows[r]], indptr[rows[r] + 1]):
            column = np.uint64(indices[j])  # a negative number becomes a large one
            if not 0 <= data[j] < np.inf or column >= size:
                return j
            n += data[j] != 0 and token_of[column] >= 0
        lengths[r] = n
    return -1


@compiled
def gather_known(data, indices, start, stop, token_of, found, columns):
    """Non-zero entries with a token, in column order."""
    n = 0
    for j in range(start, stop):
        if data[j] != 0 and token_of[indices[j]] >= 0:
            found[n], columns[n] = data[j], indices[j]
            n += 1
    return n


@compiled
def bin_found(found, bits, columns, token_of, state, fractions, random_ties, digits):
    """Bins of the gathered entries of one row."""
    lowest = np.empty(found.size, np.int64)
    bin_row(found, bits, fractions, digits, lowest)
    if random_ties:
        for i in range(found.size):
            token = token_of[columns[i]]
            uniform = np.float64(draw(state, token) >> _TO_MANTISSA) * 2.0**-53
            digits[i] = np.int64(np.ceil(uniform * (lowest[i] - digits[i]) + digits[i]))


@compiled
def bin_block(
    data, indices, indptr, keys, seed, token_of, fractions, random_ties, scratch, bits, starts, columns, bins
):
    """Bins of every row, written as the parts of a CSR matrix; ``bits`` shares the memory of ``scratch``."""
    digits = np.empty(scratch.size, np.int64)
    for row in range(keys.size):
        place = starts[row]
        n = gather_known(data, indices, indptr[row], indptr[row + 1], token_of, scratch, columns[place:])
        if n:
            state = cell_state(seed, keys[row], TIES)
            bin_found(scratch[:n], bits[:n], columns[place:], token_of, state, fractions, random_ties, digits)
            bins[place : place + n] = digits[:n]


@compiled
def keep_some(columns, token_of, state, room, by_draw, kept):
    """Mark which entries of a long row stay: those with the smallest draws, or the first."""
    if not by_draw:
        kept[:] = False
        kept[:room] = True
        return
    hashes = np.empty(columns.size, np.uint64)
    for i in range(columns.size):
        hashes[i] = draw(state, token_of[columns[i]])
    choose_smallest(hashes, room, kept)


@compiled
def convert(found, digits, kind, values):
    """Value of each gathered entry as the model sees it."""
    for i in range(found.size):
        if kind == BINNED:
            values[i] = digits[i]
        elif kind == LOG1P:
            values[i] = np.log1p(np.float64(found[i]))
        else:
            values[i] = found[i]


@compiled
def spread(columns, values, known, dense, all_columns, all_values):
    """Every known column instead of the non-zero ones; ``dense`` is all zero before and after."""
    for i in range(columns.size):
        dense[columns[i]] = values[i]
    for i in range(known.size):
        all_columns[i], all_values[i] = known[i], dense[known[i]]
    for i in range(columns.size):
        dense[columns[i]] = 0


@compiled
def fill(
    data, indices, indptr, rows, keys, seed, token_of, modality_of, known,
    kind, fractions, random_ties, everything, room, by_draw, first, scratch, bits, genes, values, modality,
):  # fmt: skip
    """Write the tokens of some rows behind the ``first`` places of a batch; returns nothing.

    ``genes``, ``values`` and ``modality`` hold the padding and the cell token already.  ``known`` are the columns with
    a token where ``everything`` asks for zeros too, ``room`` the most tokens that a row may have.
    """
    size = max(scratch.size, known.size)
    columns, digits = np.empty(size, np.int64), np.empty(size, np.int64)
    entries, kept = np.empty(size, np.float32), np.empty(size, np.bool_)
    dense = np.zeros(token_of.size if everything else 0, np.float32)
    for r in range(rows.size):
        row = rows[r]
        n = gather_known(data, indices, indptr[row], indptr[row + 1], token_of, scratch, columns)
        if kind == BINNED and n:
            state = cell_state(seed, keys[row], TIES)
            bin_found(scratch[:n], bits[:n], columns, token_of, state, fractions, random_ties, digits)
        convert(scratch[:n], digits, kind, entries)
        if everything:
            spread(columns[:n].copy(), entries[:n].copy(), known, dense, columns, entries)
            n = known.size
        if n > room:
            keep_some(columns[:n], token_of, cell_state(seed, keys[row], SAMPLE), room, by_draw, kept[:n])
        place = first
        for i in range(n):
            if n <= room or kept[i]:
                genes[r, place], values[r, place] = token_of[columns[i]], entries[i]
                if modality_of.size:
                    modality[r, place] = modality_of[columns[i]]
                place += 1
