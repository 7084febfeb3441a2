"""Splits of conditions that depend on nothing but the seed and the names.

Genes and conditions are ranked by a hash of seed and name, and the first of the ranking are held out.  So the order of
the cells does not matter, sets have the size their fraction says, and a condition that is added or taken away moves
few others.  The methods are those of GEARS with their faults mended, for any number of genes a condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tools.data.cell_splits import rank
from scgpt_tools.tokens.perturbations import condition_genes, condition_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from scgpt_tools.screens.split_options import SplitOptions

    Rule = Callable[[str, frozenset[str]], bool | None]


@dataclass(frozen=True)
class Round:
    """One division of conditions: what to keep, what to hold out, and what would leak either way."""

    kept: list[str]
    held: list[str]
    dropped: list[str]


def divide(
    method: str, conditions: Sequence[str], options: SplitOptions
) -> tuple[list[str], list[str], list[str], dict[str, dict[str, list[str]]]]:
    """Training, validation and test conditions by one of :data:`METHODS` but ``"no_split"``, and no subgroups."""
    if method == "simulation_single" and any(len(condition_genes(c)) > 1 for c in conditions):
        raise ValueError("Expected single perturbations only for 'simulation_single'; use 'simulation'.")
    rest, test = list(conditions), []
    if method != "no_test":
        first = hold_out(
            method,
            rest,
            seed=options.rng,
            purpose="test",
            genes=1 - options.train_genes,
            complete=1 - options.train_seen2,
            share=options.test_fraction,
            test_genes=options.test_genes,
            test_conditions=options.test_conditions,
        )
        rest, test = first.kept, first.held
    share = options.val_fraction
    second = hold_out(method, rest, seed=options.rng, purpose="val", genes=share, complete=share, share=share)
    return second.kept, second.held, test, {}


def first_share(ranking: Sequence[str], share: float) -> list[str]:
    """The first of a ranking, by rounded share; at least one where the share is not 0 and one is left over."""
    n = round(len(ranking) * share)
    if 0 < share < 1 and len(ranking) > 1:
        n = min(max(n, 1), len(ranking) - 1)
    return list(ranking[:n])


def hold_out(
    method: str,
    conditions: Sequence[str],
    *,
    seed: int,
    purpose: str,
    genes: float,
    complete: float,
    share: float,
    test_genes: Collection[str] | None = None,
    test_conditions: Collection[str] | None = None,
) -> Round:
    """One round of a method.

    ``seed``, ``purpose``: what the ranking depends on; ``purpose`` is ``"test"`` or ``"val"``; ``complete``: share to
    hold out of combinations whose genes are all kept (``"simulation"``); ``share``: share of singles, combinations or
    conditions to hold out (the other methods).
    """
    if method in ("simulation", "simulation_single"):
        return _by_genes(conditions, seed, purpose, genes, complete, test_genes)
    if method in RULES:
        if test_genes is None:
            singles = {name for c in conditions if len(condition_genes(c)) == 1 for name in condition_genes(c)}
            test_genes = first_share(rank(singles, seed, f"{purpose} genes"), share)
        return _by_rule(conditions, frozenset(test_genes), RULES[method])
    pool = [c for c in conditions if method != "combo_seen2" or _is_complete(c, conditions)]
    if test_conditions is None:
        keys = first_share(rank(map(condition_key, pool), seed, f"{purpose} conditions"), share)
    else:
        keys = [condition_key(c) for c in test_conditions]
    return _divide(conditions, lambda c: condition_key(c) in set(keys))


def _by_genes(
    conditions: Sequence[str],
    seed: int,
    purpose: str,
    share: float,
    complete: float,
    test_genes: Collection[str] | None,
) -> Round:
    if test_genes is None:
        names = {gene for c in conditions for gene in condition_genes(c)}
        test_genes = first_share(rank(names, seed, f"{purpose} genes"), share)
    unseen = frozenset(test_genes)
    known = [c for c in conditions if len(condition_genes(c)) > 1 and unseen.isdisjoint(condition_genes(c))]
    ranking = rank(map(condition_key, known), seed, f"{purpose} conditions")
    drawn = set(first_share(ranking, complete))
    return _divide(conditions, lambda c: not unseen.isdisjoint(condition_genes(c)) or condition_key(c) in drawn)


def _by_rule(conditions: Sequence[str], chosen: frozenset[str], rule: Rule) -> Round:
    verdicts = {c: False if chosen.isdisjoint(condition_genes(c)) else rule(c, chosen) for c in conditions}
    return Round(
        kept=[c for c in conditions if verdicts[c] is False],
        held=[c for c in conditions if verdicts[c]],
        dropped=[c for c in conditions if verdicts[c] is None],
    )


def _divide(conditions: Sequence[str], is_held: Callable[[str], bool]) -> Round:
    held = [c for c in conditions if is_held(c)]
    return Round(kept=[c for c in conditions if c not in set(held)], held=held, dropped=[])


def _is_complete(condition: str, conditions: Sequence[str]) -> bool:
    """A combination each of whose genes occurs in another condition too, so that it can count as seen."""
    genes = condition_genes(condition)
    others = {gene for c in conditions if condition_key(c) != condition_key(condition) for gene in condition_genes(c)}
    return len(genes) > 1 and others.issuperset(genes)


def _single(condition: str, chosen: frozenset[str]) -> bool | None:
    return True if len(condition_genes(condition)) == 1 else None


def _combo_seen0(condition: str, chosen: frozenset[str]) -> bool | None:
    return True if chosen.issuperset(condition_genes(condition)) else None


def _combo_seen1(condition: str, chosen: frozenset[str]) -> bool | None:
    genes = condition_genes(condition)
    # A combination of held-out genes only has no seen gene, so it belongs neither to the test nor to training.
    return True if len(genes) == 1 or not chosen.issuperset(genes) else None


RULES: dict[str, Rule] = {"single": _single, "combo_seen0": _combo_seen0, "combo_seen1": _combo_seen1}
"""For conditions that touch a held-out gene: whether they are tested, or dropped (``None``)."""
METHODS = ("simulation", "simulation_single", *RULES, "combo_seen2", "random", "no_test", "no_split")
