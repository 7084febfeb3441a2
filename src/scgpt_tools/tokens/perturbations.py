"""Perturbation labels: ``A+B`` conditions to gene sets, and gene sets to flags on columns.

The canonical spelling is that of GEARS: ``ctrl`` for controls, ``G+ctrl`` for one gene, ``A+B`` for several.  Other
spellings are described by a :class:`ConditionStyle`; nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from scgpt_tools._validate import check_choice
from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray


GeneSet: TypeAlias = tuple[str, ...]
"""Genes that one condition perturbs; empty for controls."""
Labels: TypeAlias = "Sequence[str] | NDArray[Any]"
"""One text a cell."""
Direction: TypeAlias = Literal["up", "down"]
"""What perturbations do to the genes they name; a model has a flag of its own for each."""
Missing: TypeAlias = Literal["error", "warn", "ignore"]
"""What to do with a perturbed gene that has no column or no token."""

CONTROL = "ctrl"
DELIMITER = "+"
UNTOUCHED = 0
PERTURBED = 1
FLAGS = {"up": 1, "down": 2}
"""Flag of a gene by what is done to it: activated (CRISPRa, over-expression), or repressed or cut (CRISPRi, knock-out)."""

# What separates genes in public data sets, for messages; nothing is separated because of it.
SEPARATORS = ("+", "_", ";", ",", "|", "/", "&", ":", " ")
# Longest list of genes in a message; the rest is counted.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class ConditionStyle:
    r"""How a column spells its perturbations.

    Examples
    --------
    >>> ConditionStyle(control=("control",), delimiter="_").genes("CBL_CNN1")
    ('CBL', 'CNN1')
    >>> ConditionStyle(control=("NT",), guide_pattern=r"g\d+$").genes("STAT2g2")
    ('STAT2',)
    """

    control: tuple[str, ...] = (CONTROL,)
    """Labels, or parts of labels, that stand for no perturbation."""
    delimiter: str = DELIMITER
    """Text between two genes; white space around a gene does not count."""
    guide_pattern: str | None = None
    """Regular expression of what to cut off every part, such as the number of a guide."""

    def __post_init__(self) -> None:
        if isinstance(self.control, str) or not self.control or not all(self.control):
            raise ValueError(f"Expected `control` to be a tuple of at least one label, found {self.control!r}.")
        if not self.delimiter:
            raise ValueError("Expected `delimiter` to be text between two genes, found ''.")
        if self.guide_pattern is not None:
            try:
                re.compile(self.guide_pattern)
            except re.error as error:
                raise ValueError(
                    f"Expected `guide_pattern` to be a regular expression, found {self.guide_pattern!r}: {error}."
                ) from error

    def genes(self, label: str, known: Collection[str] = ()) -> GeneSet:
        """Genes of one label, each once, in the order written.

        ``known``: gene names that may hold the delimiter themselves, as ``HLA_A`` does where ``_`` separates.
        """
        text = label.strip()
        if text in self.control:
            return ()
        parts = self.parts(text, known)
        if not all(parts):
            raise ValueError(
                f"Expected genes separated by {self.delimiter!r} or one of the control labels {list(self.control)}, "
                f"found the label {label!r} with an empty part."
            )
        genes = tuple(dict.fromkeys(part for part in parts if part not in self.control))
        if CONTROL in genes:
            raise ValueError(
                f"Expected genes in the label {label!r}, found {CONTROL!r}, the name of controls. Pass control={CONTROL!r}."
            )
        return genes

    def parts(self, label: str, known: Collection[str] = ()) -> list[str]:
        """Parts of one label, controls among them."""
        return [self._cut(part) for part in self._divided(label, known)]

    def _divided(self, text: str, known: Collection[str]) -> list[str]:
        pieces = [piece.strip() for piece in text.split(self.delimiter)]
        if not known:
            return pieces
        parts: list[str] = []
        while pieces:
            length = next((n for n in range(len(pieces), 1, -1) if self._is_name(pieces[:n], known)), 1)
            parts.append(self.delimiter.join(pieces[:length]))
            pieces = pieces[length:]
        return parts

    def _is_name(self, pieces: list[str], known: Collection[str]) -> bool:
        joined = self.delimiter.join(pieces)
        return joined in known or joined in self.control

    def _cut(self, part: str) -> str:
        if part in self.control or self.guide_pattern is None:
            return part
        return re.sub(self.guide_pattern, "", part).strip()


GEARS_STYLE = ConditionStyle()


def condition_genes(condition: str) -> GeneSet:
    """Genes of a condition in GEARS' spelling; ``G+ctrl`` and ``ctrl+G`` are the same."""
    return GEARS_STYLE.genes(condition)


def format_condition(genes: Iterable[str]) -> str:
    """GEARS' spelling of a gene set, in the order given."""
    names = list(genes)
    if not names:
        return CONTROL
    return DELIMITER.join(names if len(names) > 1 else [names[0], CONTROL])


def condition_key(condition: str | Iterable[str]) -> str:
    """Spelling that does not depend on the order in which the genes were written; for hashes and look-ups."""
    genes = condition_genes(condition) if isinstance(condition, str) else condition
    return format_condition(sorted(genes))


def canonical_labels(
    labels: Iterable[str], style: ConditionStyle = GEARS_STYLE, *, known: Collection[str] = ()
) -> dict[str, str]:
    """GEARS' spelling of every label.

    Genes keep the order in which they were written, so that a column in GEARS' spelling stays as it is; a gene set
    that occurs in several orders becomes one condition with its genes sorted.

    ``labels``: labels as found; repeated ones do not matter; ``known``: measured genes: their names may hold the
    delimiter, and what is none of them must not be another spelling of the control or of several of them.
    """
    genes = {label: style.genes(label, known) for label in dict.fromkeys(labels)}
    if known:
        for label, written in genes.items():
            _check_names(label, written, style, known)
    spellings: dict[frozenset[str], set[GeneSet]] = {}
    for written in genes.values():
        spellings.setdefault(frozenset(written), set()).add(written)
    return {
        label: format_condition(written if len(spellings[frozenset(written)]) == 1 else sorted(written))
        for label, written in genes.items()
    }


def _check_names(label: str, genes: GeneSet, style: ConditionStyle, known: Collection[str]) -> None:
    """Refuse names that are no measured gene and look like something else."""
    for gene in genes:
        if gene in known:
            continue
        similar = [control for control in style.control if control.casefold() == gene.casefold()]
        # Beside a control, as in "CTRL+ctrl", the other part can only be a gene.
        if similar and not set(style.control).intersection(style.parts(label, known)):
            raise ValueError(
                f"Expected {similar[0]!r} as the name of controls, found {gene!r} in the label {label!r}, which is no "
                f"measured gene. Run pp.parse_conditions and pass control={[*style.control, gene]}."
            )
        for mark in SEPARATORS:
            pieces = [piece.strip() for piece in gene.split(mark)]
            if len(pieces) > 1 and all(piece in known or piece in style.control for piece in pieces):
                raise ValueError(
                    f"Expected genes separated by {style.delimiter!r}, found the label {label!r}, where {mark!r} "
                    f"separates the names {', '.join(pieces)}. Run pp.parse_conditions and pass delimiter={mark!r}."
                )


def perturbed_genes(conditions: Iterable[str]) -> GeneSet:
    """Sorted genes that occur in some condition."""
    return tuple(sorted({gene for condition in conditions for gene in condition_genes(condition)}))


def expressible(conditions: Iterable[str], genes: Collection[str]) -> list[str]:
    """Conditions all of whose genes are among ``genes``; controls always are."""
    names = set(genes)
    return [condition for condition in conditions if names.issuperset(condition_genes(condition))]


def locate_genes(
    genes: Sequence[str],
    positions: Mapping[str, int],
    *,
    missing: Missing = "warn",
    where: str = "a column",
    hint: str = "",
) -> dict[str, int]:
    """Positions of perturbed genes among columns or tokens.

    ``missing``: a gene without position is an error, is named in a warning, or is left out without a word.
    """
    check_choice("missing", missing, ("error", "warn", "ignore"))
    absent = [gene for gene in genes if gene not in positions]
    if absent and missing != "ignore":
        message = (
            f"Expected {where} for each of the {len(genes)} perturbed genes, found none for {_listing(absent)}. "
            f"No token of a cell can be flagged for these perturbations.{hint}"
        )
        if missing == "error":
            raise ValueError(message)
        warn_user(message)
    return {gene: positions[gene] for gene in genes if gene in positions}


def column_flags(conditions: Sequence[str], names: Sequence[str], *, missing: Missing = "warn") -> np.ndarray:
    """Flag the perturbed columns of every condition.

    ``names``: genes of G columns; of a repeated name the first column is flagged.  Returns (C, G) int8, 1 at perturbed
    genes.
    """
    first = {name: column for column, name in reversed(list(enumerate(names)))}
    columns = locate_genes(perturbed_genes(conditions), first, missing=missing)
    flags = np.zeros((len(conditions), len(names)), dtype=np.int8)
    for row, condition in enumerate(conditions):
        flags[row, [columns[gene] for gene in condition_genes(condition) if gene in columns]] = PERTURBED
    return flags


def flag_of(
    direction: Direction | None, *, rows: int, pad: int | None, trained: Collection[int] = (), training: bool = False
) -> int:
    """Flag that marks perturbed genes for a model.

    ``direction``: what is done to the genes; ``None`` takes the flag that the model was trained with, or
    :data:`PERTURBED`; ``trained``: flags that the model was trained with; empty if unknown; ``training``: the model is
    about to be trained with the flag, so it need not know it yet.
    """
    if direction is None and not training and len(trained) > 1:
        raise ValueError(
            f"Expected `direction` to be {' or '.join(map(repr, FLAGS))} for a model that was trained on both, found None."
        )
    if direction is None:
        return next(iter(trained), PERTURBED)
    flag = FLAGS[check_choice("direction", direction, tuple(FLAGS))]
    if flag >= rows or flag == pad:
        raise ValueError(
            f"Expected a model with a trained flag for direction={direction!r}, found one whose table of {rows} flags has "
            f"none. Make one of a model that knows no perturbations yet."
        )
    if not training and trained and flag not in trained:
        known = [name for name, other in FLAGS.items() if other in trained]
        raise ValueError(
            f"Expected direction={' or '.join(map(repr, known))}, which the model was trained on, found {direction!r}."
        )
    if not training and not trained and flag != PERTURBED:
        warn_user(
            f"Expected a model that was trained on direction={direction!r}, found one that does not say what it was "
            "trained on. Predictions mean nothing if it never saw that flag."
        )
    return flag


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
