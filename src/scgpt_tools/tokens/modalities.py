"""The modalities of a cell: which features of each become tokens, what they are called, and what stands for a value.

A :class:`ModalityConfig` is part of the tokenizer's configuration, so it travels with the model.  Every modality is
tokenized by itself, with bins and a length of its own, and the tokens of a cell follow each other behind one cell token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from scgpt_tools._lookup import absent
from scgpt_tools._types import GeneSelection, Overflow, Ties
from scgpt_tools._validate import check_choice, check_integer
from scgpt_tools.config import from_dict, to_dict
from scgpt_tools.tokens.values import fractions_of

if TYPE_CHECKING:
    from collections.abc import Iterable

ModalityValues: TypeAlias = Literal["binned", "log1p", "raw", "clr", "binary"]
"""What stands for a value: its quantile bin within the cell and modality; its ``log1p``; itself; its centred log ratio;
or 1, whatever it is."""

Choice: TypeAlias = Literal["variable", "frequent", "random"]
"""Which features a cap keeps: those that vary most between cells, those above zero in most cells, or some by seed."""

# What is read off the training cells.
_LEARNT = ("keep", "levels", "centers", "spreads")

SPECIALS = ("<pad>", "<cls>", "<eoc>")
"""Modalities of tokens that belong to none, in scGPT's order."""


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """How one modality becomes tokens."""

    name: str
    """Key of ``mdata.mod``."""
    values: ModalityValues = "binned"
    """What stands for a value.  ``clr`` is ``log1p`` of the ratio to the cell's geometric mean, Seurat's form: it is
    never negative, and zero stays zero.  ``binary`` is 1 for every value above zero."""
    bins: int | None = 51
    """Number of bins including zero; only with ``values="binned"``."""
    ties: Ties = "left"
    """Bin of values that sit on several equal edges."""
    scale: float = 1.0
    """What values that are not binned are multiplied with, to have the spread of bins."""
    standard: bool = False
    """Give all features one mean and one spread over cells, so that a rare protein is no smaller than a frequent one;
    only with ``genes="all"`` and values that are not binned."""
    genes: GeneSelection = "expressed"
    """Which features become tokens: those above zero, or all of a cell that was measured."""
    prefix: str = ""
    """What the names of features begin with in the vocabulary, so that the protein CD4 is not the gene CD4."""
    extend: bool = False
    """Add features that the vocabulary lacks when a model learns them; otherwise they are not read."""
    most: int | None = None
    """Most features of the table to learn; ``None`` for all."""
    choose: Choice = "variable"
    """Which features those are."""
    keep: tuple[str, ...] | None = None
    """Tokens that the cap has kept; ``None`` for all that the vocabulary knows."""
    length: int | None = None
    """Most tokens of a cell; ``None`` for all."""
    overflow: Overflow = "sample"
    """What stays of a longer cell."""
    levels: tuple[float, ...] | None = None
    """Mean ``log1p`` value of each bin in the training cells, to read predicted bins by."""
    centers: tuple[float, ...] | None = None
    """Mean of each of the tokens in ``keep`` over the training cells; only with ``standard``."""
    spreads: tuple[float, ...] | None = None
    """Standard deviation of each of the tokens in ``keep``."""

    def __post_init__(self) -> None:
        if not self.name or (self.name.startswith("<") and self.name.endswith(">")):
            raise ValueError(f"Expected the name of a modality, found {self.name!r}.")
        choices = {
            "values": ModalityValues,
            "ties": Ties,
            "genes": GeneSelection,
            "choose": Choice,
            "overflow": Overflow,
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), get_args(known))
        if (self.values == "binned") != (self.bins is not None):
            raise ValueError(f"`bins` goes with values='binned' only, found {self.values=} and {self.bins=}.")
        if self.bins is not None:
            fractions_of(self.bins)  # refuses numbers that cannot be
        if self.scale <= 0 or (self.values == "binned" and self.scale != 1):
            raise ValueError(f"Expected `scale` above 0, and 1 for bins, found {self.scale} for {self.values!r}.")
        if self.standard and (self.genes != "all" or self.values == "binned"):
            raise ValueError(
                f"`standard` goes with genes='all' and values that are not binned, found {self.genes!r}, {self.values!r}."
            )
        for name in ("centers", "spreads"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) != len(self.keep or ()):
                raise ValueError(f"Expected `{name}` for each of {len(self.keep or ())} tokens, found {len(numbers)}.")
        for name in ("most", "length"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))

    def token_of(self, feature: str) -> str:
        """What a feature is called in the vocabulary."""
        return f"{self.prefix}{feature}"


class Span(NamedTuple):
    """Where the columns of a modality are in a matrix of several."""

    name: str
    start: int
    stop: int
    measured: int
    """Column that is 1 for cells that were measured in this modality; -1 if all were."""


_PEAKS = {"values": "binary", "bins": None, "scale": 10.0, "extend": True, "most": 2000, "choose": "frequent"}
# A panel is short and a zero of it is informative, so all of it is read.
_PANEL = {"values": "clr", "bins": None, "standard": True, "genes": "all", "extend": True}
_KINDS: dict[tuple[str, ...], dict[str, Any]] = {
    ("rna", "gex", "mrna", "scrna", "gene expression", "genes"): {},
    # Names as in scGPT's own tutorial.
    ("prot", "protein", "proteins", "adt", "ab", "antibody capture", "antibody", "cite"): _PANEL | {"prefix": "p_"},
    ("hto", "hashtag", "hashtags"): _PANEL,
    ("atac", "peaks", "peak", "chromatin"): _PEAKS,
    ("activity", "gene_activity", "geneactivity", "ga"): {"extend": True, "most": 2000},
}
_OTHER: dict[str, Any] = {"extend": True, "most": 2000}

Modalities: TypeAlias = Sequence[str] | Mapping[str, ModalityConfig | Mapping[str, Any] | None] | None
"""Names of modalities to read, or what to change for each; ``None`` for all with their defaults."""


def default_modality(name: str, **changes: Any) -> ModalityConfig:
    """What a modality gets by its name.

    Parameters
    ----------
    name
        Key of ``mdata.mod``.
    **changes
        Fields to set instead.

    Returns
    -------
    RNA (``rna``, ``gex``) is binned and keeps the names of genes, so that it meets what a model has learnt; proteins
    (``prot``, ``adt``) and hashtags (``hto``) are CLR values of the whole panel, proteins with the prefix ``p_``; peaks (``atac``, ``peaks``) are
    binary, the 2,000 open in most cells; gene activities and any other modality are binned, the 2,000 most variable
    features.  All but RNA and proteins have their name as prefix.
    """
    kind = next((kind for names, kind in _KINDS.items() if name.lower() in names), _OTHER)
    prefix = f"{name}_" if kind and "prefix" not in kind else ""
    fields = {"name": name, "prefix": prefix} | kind | changes
    if (
        fields.get("standard")
        and (fields["genes"] != "all" or fields["values"] == "binned")
        and "standard" not in changes
    ):
        fields["standard"] = False
    if fields.get("values", "binned") == "binned":
        fields |= {key: default for key, default in (("bins", 51), ("scale", 1.0)) if key not in changes}
    elif "bins" not in changes:
        fields["bins"] = None
    return from_dict(ModalityConfig, fields, where=f"modalities[{name!r}]")


def resolve_modalities(
    names: Iterable[str], given: Modalities = None, *, like: Mapping[str, Any] | None = None
) -> tuple[ModalityConfig, ...]:
    """Settings of the modalities to read.

    ``given``: names of those to read, or settings by name; ``None`` for all with their defaults; ``like``: fields that
    modalities without a prefix take over from a model that reads RNA.
    """
    there = list(names)
    if isinstance(given, str):
        raise TypeError(f"Expected `modalities` to be a list of names or a mapping, found one string, {given!r}.")
    chosen = there if given is None else list(given)
    for name in chosen:
        if name not in there:
            raise KeyError(absent(name, there, "modality"))
    if not chosen:
        raise ValueError(f"Expected at least one modality of {there}, found none.")
    settings = given if isinstance(given, Mapping) else {}
    return tuple(_one(name, settings.get(name), like or {}) for name in there if name in chosen)


def modality_names(configs: Sequence[ModalityConfig]) -> tuple[str, ...]:
    """Names in the order of their numbers, as scGPT numbers them: sorted, then the special ones."""
    return (*sorted(config.name for config in configs), *SPECIALS)


def _one(name: str, given: ModalityConfig | Mapping[str, Any] | None, like: Mapping[str, Any]) -> ModalityConfig:
    if isinstance(given, ModalityConfig):
        return replace(given, name=name)
    changes = dict(given or {})
    if not default_modality(name, **changes).extend:
        changes = dict(like) | changes
        if changes.get("values") != like.get("values") and "bins" not in (given or {}):
            changes.pop("bins", None)
    return default_modality(name, **changes)


def summary(config: ModalityConfig) -> str:
    """One line for a record: what differs from the defaults, without long lists."""
    said = to_dict(config)
    plain = to_dict(ModalityConfig(name=config.name))
    differs = {key: value for key, value in said.items() if value != plain[key] and key not in _LEARNT}
    return ", ".join(f"{key}={value}" for key, value in differs.items()) or "defaults"


def values_of(config: ModalityConfig) -> str:
    """What decides the values of tokens, so that kept ones are read by a model that would have made the same."""
    how = (
        f"{config.values} in {config.bins} bins, ties {config.ties}"
        if config.bins
        else f"{config.values} x {config.scale:g}"
    )
    return f"{'standard ' if config.standard else ''}{how}, prefix {config.prefix!r}"
