"""Which conditions to train on and which to hold out, and a hash that says so.

"Norman, simulation, seed 1" has named two different test sets in print, so every split carries a hash of what it holds
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, TypeAlias

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_choice, check_texts, check_type
from scgpt_tools.data.parts import PARTS
from scgpt_tools.screens import splits_gears, splits_stable
from scgpt_tools.screens.split_options import SplitOptions
from scgpt_tools.tokens.perturbations import condition_genes, condition_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

Draw: TypeAlias = Literal["gears", "stable"]
"""Draw as GEARS does, fault by fault, or by a hash of the names."""
Subgroups: TypeAlias = dict[str, tuple[str, ...]]

GEARS_METHODS = (
    "simulation",
    "simulation_single",
    "single",
    "combo_seen0",
    "combo_seen1",
    "combo_seen2",
    "no_test",
    "no_split",
)


@dataclass(frozen=True, kw_only=True)
class ConditionSplit:
    """Conditions by their part in training and evaluation."""

    method: str
    draw: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    """Conditions in no part, because they would leak a held-out gene into training."""
    subgroups: Mapping[str, Subgroups] = field(default_factory=dict)
    """Of ``"val"`` and ``"test"``: conditions by how many of their genes were seen in training."""

    def assignment(self) -> dict[str, str]:
        """Condition to part; dropped conditions are absent."""
        return {condition: name for name in PARTS for condition in getattr(self, name)}

    def empty(self) -> list[str]:
        """What the split leaves no condition for, though it should: ``"train on"``, ``"validate on"``, ``"test"``."""
        asked = {"train on": self.train, "validate on": self.val, "test": self.test}
        perturbed = {verb: any(map(condition_genes, own)) for verb, own in asked.items()}
        unwanted = {
            "no_split": ("train on", "validate on"),
            "no_test": ("test",),
            "custom": ("validate on", "test") if perturbed["validate on"] or perturbed["test"] else ("validate on",),
        }.get(self.method, ())
        return [verb for verb, there in perturbed.items() if not there and verb not in unwanted]

    def digest(self, part: str = "test") -> str:
        """Hash of the conditions of one part."""
        return condition_hash(getattr(self, check_choice("part", part, PARTS)))


def condition_hash(conditions: Iterable[str]) -> str:
    """SHA-256 of a set of conditions; spelling, order and repeats of conditions do not matter."""
    return sha256("\n".join(sorted(set(map(condition_key, conditions)))).encode()).hexdigest()


def split_conditions(
    conditions: Iterable[str], method: str = "simulation", *, draw: Draw = "gears", options: SplitOptions | None = None
) -> ConditionSplit:
    """Divide conditions into training, validation and test.

    ``conditions``: labels in GEARS' spelling in the order in which they first appear, controls included; ``method``:
    ``"simulation"`` holds out genes, and with them every condition that touches one; ``"simulation_single"`` is the
    same for singles; ``"single"``, ``"combo_seen0"`` and ``"combo_seen1"`` test singles of held-out genes, and
    combinations with no or some gene seen; ``"combo_seen2"`` tests combinations of seen genes; ``"no_test"`` has a
    validation set only; ``"no_split"`` tests everything; ``"random"`` (``draw="stable"`` only) takes conditions;
    ``draw``: ``"gears"`` gives the sets that GEARS 0.1.2 gives; ``"stable"`` depends on seed and names only.  Returns
    the split; controls are trained on.
    """
    options = options or SplitOptions()
    check_choice("draw", draw, ("gears", "stable"))
    check_choice("method", method, GEARS_METHODS if draw == "gears" else splits_stable.METHODS)
    labels = list(dict.fromkeys(conditions))
    controls = [label for label in labels if not condition_genes(label)]
    perturbed = [label for label in labels if condition_genes(label)]
    if not perturbed:
        raise ValueError("Expected at least one perturbed condition to split, found controls only.")
    _check_names(perturbed, options)
    _check_used(method, draw, options)
    if method == "no_split":
        return _sorted_split(method, draw, labels, train=(), val=(), test=labels)
    divide = splits_gears.divide if draw == "gears" else splits_stable.divide
    train, val, test, groups = divide(method, perturbed, options)
    return _sorted_split(method, draw, labels, train=[*controls, *train], val=val, test=test, groups=groups)


def custom_split(
    conditions: Iterable[str], *, train: Collection[str], val: Collection[str] = (), test: Collection[str] = ()
) -> ConditionSplit:
    """Take parts as named (GEARS' ``custom``), in any order of genes; conditions that are named nowhere are dropped."""
    labels = list(dict.fromkeys(conditions))
    by_key = {condition_key(label): label for label in labels}
    named = {"train": list(train), "val": list(val), "test": list(test)}
    keys = [condition_key(name) for names in named.values() for name in names]
    if unknown := [key for key in keys if key not in by_key]:
        raise ValueError(absent(unknown[0], by_key, "condition"))
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"Expected every condition in one part, found {twice!r} in two.")
    trained, validated, tested = ([by_key[condition_key(name)] for name in names] for names in named.values())
    return _sorted_split("custom", "named", labels, train=trained, val=validated, test=tested)


def named_parts(argument: str, parts: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Conditions of each part as a user names them, for :func:`custom_split`."""
    check_type(argument, parts, Mapping)
    if not parts:
        raise ValueError(f"Expected `{argument}` to name conditions of {', '.join(PARTS)}, found no part.")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"Expected `{argument}` to name {', '.join(PARTS)}, found {sorted(map(str, unknown))}.")
    return {"train": ()} | {name: check_texts(f"{argument}[{name!r}]", own, least=0) for name, own in parts.items()}


def seen_groups(held: Iterable[str], train: Iterable[str]) -> Subgroups:
    """Held-out conditions by what training saw of them.

    ``"unseen_single"`` and ``"seen_single"``; ``"combo_seen<k>"`` for doubles of which k genes occur in training;
    ``"combo<n>_seen<k>"`` for n genes.
    """
    seen = {gene for condition in train for gene in condition_genes(condition)}
    groups: dict[str, list[str]] = {"combo_seen0": [], "combo_seen1": [], "combo_seen2": [], "unseen_single": []}
    for condition in held:
        if genes := condition_genes(condition):
            groups.setdefault(_group(len(genes), sum(gene in seen for gene in genes)), []).append(condition)
    return {name: tuple(members) for name, members in groups.items()}


def _group(n_genes: int, n_seen: int) -> str:
    if n_genes == 1:
        return "seen_single" if n_seen else "unseen_single"
    return f"combo_seen{n_seen}" if n_genes == 2 else f"combo{n_genes}_seen{n_seen}"


def _check_used(method: str, draw: str, options: SplitOptions) -> None:
    """Refuse names that the method would pass over."""
    simulated = method.startswith("simulation")
    used = {
        "test_genes": simulated or method in ("single", "combo_seen0", "combo_seen1"),
        "test_conditions": method in ("combo_seen2", "random"),
    }
    for name, counts in used.items():
        if getattr(options, name) is not None and not counts:
            raise ValueError(f"Expected no `{name}` for the method {method!r}, which does not look at them.")
    if options.only_test_genes and not (simulated and draw == "gears" and options.test_genes):
        raise ValueError(
            "Expected `only_test_genes` with `test_genes`, a simulation and draw='gears', found it without one of them."
        )


def _check_names(perturbed: Sequence[str], options: SplitOptions) -> None:
    genes = {gene for condition in perturbed for gene in condition_genes(condition)}
    for name in options.test_genes or ():
        if name not in genes:
            raise ValueError(absent(name, sorted(genes), "perturbed gene"))
    keys = {condition_key(condition) for condition in perturbed}
    for name in options.test_conditions or ():
        if condition_key(name) not in keys:
            raise ValueError(absent(name, perturbed, "condition"))


def _sorted_split(
    method: str,
    draw: str,
    labels: Sequence[str],
    *,
    train: Collection[str],
    val: Collection[str],
    test: Collection[str],
    groups: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> ConditionSplit:
    """Parts in the order of the labels; a condition drawn twice is held out (test before validation)."""
    tested = set(test)
    validated = set(val) - tested
    trained = set(train) - tested - validated
    parts = {"train": trained, "val": validated, "test": tested}
    ordered = {part: tuple(label for label in labels if label in members) for part, members in parts.items()}
    if groups:
        subgroups = {part: {name: tuple(group) for name, group in found.items()} for part, found in groups.items()}
    else:
        subgroups = {part: seen_groups(ordered[part], ordered["train"]) for part in ("val", "test")}
    return ConditionSplit(
        method=method,
        draw=draw,
        dropped=tuple(label for label in labels if not any(label in members for members in parts.values())),
        subgroups=subgroups,
        **ordered,
    )
