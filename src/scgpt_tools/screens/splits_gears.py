"""Splits of conditions exactly as GEARS 0.1.2 draws them.

The seed names the same test set as in published tables, quirks included: several draws are with replacement, so a set
can hold fewer conditions than its fraction says; ``combo_seen1`` also holds doubles of which no gene was seen;
``combo_seen2`` and ``no_test`` depend on the order of the conditions.  :mod:`scgpt_tools.screens.splits` has the same
methods without these faults.  All draws come from private legacy streams; NumPy's global one is not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tools.tokens.perturbations import condition_genes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from scgpt_tools.screens.split_options import SplitOptions

Parts = tuple[list[str], list[str]]
"""Conditions that are kept and conditions that are held out; those in neither are dropped."""
Groups = dict[str, list[str]]


def divide(
    method: str, conditions: Sequence[str], options: SplitOptions
) -> tuple[list[str], list[str], list[str], dict[str, Groups]]:
    """Training, validation and test conditions, and the subgroups of the latter two (``"simulation"`` only) by part.

    ``conditions`` are without controls, in the order in which they first appear.
    """
    if large := [condition for condition in conditions if len(condition_genes(condition)) > 2]:
        raise ValueError(
            f"Expected at most two genes a condition, which is all that GEARS can split, found {large[0]!r}. "
            "Pass draw='stable'."
        )
    seed, named, val = options.rng, options.test_genes or (), 1 - options.val_fraction
    if method == "simulation":
        rest, test, tested = simulation(
            conditions,
            seed,
            options.train_genes,
            options.train_seen2,
            test_genes=named,
            only_test_genes=options.only_test_genes,
        )
        train, held, validated = simulation(rest, seed, val, val)
        return train, held, test, {"test": tested, "val": validated}
    if method == "simulation_single":
        rest, test = simulation_single(
            conditions, seed, options.train_genes, test_genes=named, only_test_genes=options.only_test_genes
        )
        return *simulation_single(rest, seed, val), test, {}
    stream = np.random.RandomState(seed)
    rest, test = list(conditions), []
    if method != "no_test":
        named_parts = {"test_genes": options.test_genes, "test_conditions": options.test_conditions}
        rest, test = part(method, conditions, stream, options.test_fraction, **named_parts)
    return *part(method, rest, stream, options.val_fraction), test, {}


def simulation(
    conditions: Sequence[str],
    seed: int,
    train_genes: float,
    train_seen2: float,
    *,
    test_genes: Collection[str] = (),
    only_test_genes: bool = False,
) -> tuple[list[str], list[str], Groups]:
    """Hold out genes, and with them every condition that touches one; of the doubles with both genes kept, some.

    ``train_genes`` is the share of genes to keep, ``train_seen2`` the share of doubles with both genes kept to train on;
    ``test_genes`` must be held out, and with ``only_test_genes`` no others are.  Returns conditions kept, held out, and the
    latter by subgroup.
    """
    singles, doubles = _singles(conditions), _doubles(conditions)
    kept = _kept_genes(conditions, seed, train_genes, test_genes, only=only_test_genes)
    held = set(_genes(conditions)) - kept
    seen = {double: sum(gene in kept for gene in condition_genes(double)) for double in doubles}
    both = sorted(double for double in doubles if seen[double] == 2)
    drawn = set(_draw(np.random.RandomState(seed), both, int(len(both) * train_seen2), replace=False))
    groups = {
        "combo_seen0": [double for double in doubles if seen[double] == 0],
        "combo_seen1": [double for double in doubles if seen[double] == 1],
        "combo_seen2": [double for double in both if double not in drawn],
        "unseen_single": _touching(held, singles),
    }
    train = _touching(kept, singles) + [double for double in both if double in drawn]
    return train, [condition for group in groups.values() for condition in group], groups


def _kept_genes(
    conditions: Sequence[str], seed: int, fraction: float, tests: Collection[str], *, only: bool
) -> set[str]:
    genes = _genes(conditions)
    if tests and only:
        return set(genes) - set(tests)
    stream = np.random.RandomState(seed)
    kept = set(_draw(stream, genes, int(len(genes) * fraction), replace=False))
    if tests:
        # Every named gene that was drawn for training is exchanged for another one.
        taken = kept & set(tests)
        kept -= taken
        others = sorted(set(genes) - kept - set(tests))
        if len(others) < len(taken):
            raise ValueError(
                f"Expected at most {len(genes) - len(kept) - len(taken)} `test_genes` for this training fraction, "
                f"found {len(set(tests))}. Pass `only_test_genes=True`, or keep fewer genes for training."
            )
        kept |= set(_draw(stream, others, len(taken), replace=False))
    return kept


def simulation_single(
    conditions: Sequence[str],
    seed: int,
    train_genes: float,
    *,
    test_genes: Collection[str] = (),
    only_test_genes: bool = False,
) -> Parts:
    """Hold out genes where there are single perturbations only."""
    if doubles := _doubles(conditions):
        raise ValueError(f"Expected single perturbations only for 'simulation_single', found {doubles[0]!r}.")
    kept = _kept_genes(conditions, seed, train_genes, test_genes, only=only_test_genes)
    held = set(_genes(conditions)) - kept
    return _touching(kept, conditions), _touching(held, conditions)


def part(
    method: str,
    conditions: Sequence[str],
    stream: np.random.RandomState,
    fraction: float,
    *,
    test_genes: Collection[str] | None = None,
    test_conditions: Collection[str] | None = None,
) -> Parts:
    """Hold out conditions by one of the methods that are not a simulation; returns those kept and those held out.

    ``fraction`` is a share of the number of singles (methods by gene) or of what is drawn from.  With ``test_genes``, none
    are drawn; ``test_conditions`` are doubles to take (``combo_seen2`` only).
    """
    if test_genes is None:
        # Drawn even where a method does not use them, so that later draws agree with GEARS.
        test_genes = _draw(stream, _genes(conditions), int(len(_singles(conditions)) * fraction))
    if method == "combo_seen2":
        doubles = _doubles(conditions)
        if test_conditions is None:
            test_conditions = _draw(stream, doubles, int(len(doubles) * fraction))
        held = list(dict.fromkeys(test_conditions))
        return [condition for condition in conditions if condition not in set(held)], held
    if method == "no_test":
        held = list(dict.fromkeys(_draw(stream, conditions, int(len(conditions) * fraction))))
        return [condition for condition in conditions if condition not in set(held)], held
    chosen = set(test_genes)
    touched = [double for double in _doubles(conditions) if chosen.intersection(condition_genes(double))]
    held = _touching(chosen, _singles(conditions)) + TESTED_DOUBLES[method](touched, chosen)
    gone = set(held) | set(touched)
    return [condition for condition in conditions if condition not in gone], held


TESTED_DOUBLES: dict[str, Callable[[list[str], set[str]], list[str]]] = {
    "single": lambda touched, chosen: [],
    "combo_seen0": lambda touched, chosen: [pair for pair in touched if chosen.issuperset(condition_genes(pair))],
    "combo_seen1": lambda touched, chosen: touched,
}
"""Which of the doubles that touch a held-out gene are tested; the others are dropped."""


def _draw(stream: np.random.RandomState, items: Sequence[str], n: int, *, replace: bool = True) -> list[str]:
    return [str(item) for item in stream.choice(items, n, replace=replace)]


def _genes(conditions: Iterable[str]) -> list[str]:
    return sorted({gene for condition in conditions for gene in condition_genes(condition)})


def _singles(conditions: Iterable[str]) -> list[str]:
    return [condition for condition in conditions if len(condition_genes(condition)) == 1]


def _doubles(conditions: Iterable[str]) -> list[str]:
    return [condition for condition in conditions if len(condition_genes(condition)) == 2]


def _touching(genes: Collection[str], conditions: Iterable[str]) -> list[str]:
    return [condition for condition in conditions if set(genes).intersection(condition_genes(condition))]
