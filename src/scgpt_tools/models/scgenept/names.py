"""What the names of scGenePT's model types stand for.

The names grew with the original's code: its README, its scripts and its released files spell them differently, and four
kinds of names build something else there than they say (:attr:`ModelType.upstream`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from scgpt_tools._lookup import absent
from scgpt_tools._validate import check_choice, check_flag, check_text

Text = Literal["ncbi", "ncbi+uniprot"]
Axis = Literal["c", "f", "p", "all"]
Pooling = Literal["concat", "avg"]
Compat = Literal["upstream"]

_NO_ATTENTION = "_no_attention"
_NAME = re.compile(
    r"(?:(?P<prefix>sc|)genept_)?"
    r"(?:(?P<text>ncbi\+uniprot|ncbi)(?:_gpt)?(?:_(?=go_)|(?=_scgpt)|$))?"
    r"(?:go_(?P<go>all|c|f|p)(?:_gpt)?(?:_(?P<pooling>concat|avg))?)?"
    r"(?P<counts>_scgpt_counts)?"
)
_PLAIN = {"scgpt": (True, True), "scgpt_counts": (False, True), "scgpt_tokens": (True, False)}


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """Which streams of scGenePT make up a gene's vector; flags of perturbed genes are always among them."""

    token: bool = True
    """The gene itself, as scGPT learnt it."""
    count: bool = True
    """Its expression in the control cell."""
    text: Text | None = None
    """Summaries of the gene: NCBI's, or NCBI's and UniProt's of its protein."""
    go: Axis | None = None
    """Terms of the Gene Ontology: cellular components, molecular functions, biological processes, or all."""
    go_pooling: Pooling = "concat"
    """One embedding of all terms of a gene together, or the average of one for each."""
    pretrained_attention: bool = True
    """Start the transformer from scGPT's, in place of random numbers."""

    def __post_init__(self) -> None:
        for name in ("token", "count", "pretrained_attention"):
            check_flag(name, getattr(self, name))
        for name, choices in (("text", Text), ("go", Axis)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), get_args(choices))
        check_choice("go_pooling", self.go_pooling, get_args(Pooling))

    @property
    def sources(self) -> dict[str, str]:
        """Which texts each language stream reads, by the name of its part: ``{"go": "go_c_concat"}``."""
        go = None if self.go is None else f"go_{self.go}_{self.go_pooling}"
        return {name: source for name, source in (("text", self.text), ("go", go)) if source is not None}

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in the order in which they are added."""
        there = {"gene_token": self.token, "count": self.count}
        texts = [self.text and f"text_{self.text.replace('+', '_')}", self.go and f"go_{self.go}"]
        return (*(name for name, on in there.items() if on), *(name for name in texts if name), "pert_flag")

    @property
    def name(self) -> str:
        """The original's name, or what it would be; the streams where its names have none for them."""
        go = f"go_{self.go}_gpt_{self.go_pooling}" if self.go else ""
        text = f"{self.text}_gpt" if self.text else ""
        end = "" if self.pretrained_attention else _NO_ATTENTION
        for name, on in _PLAIN.items():
            if not self.sources and (self.token, self.count) == on:
                return name + end
        if not self.count and (self.token or not self.sources):
            return "+".join(self.streams) + end
        if self.count and not self.token:
            return ("scgenept_" if text else "") + "_".join(filter(None, (text, go))) + "_scgpt_counts" + end
        prefix = "scgenept_" if self.token else "genept_" if text else ""
        return prefix + "_".join(filter(None, (text, go))) + end

    @property
    def upstream(self) -> ModelType:
        """What the original builds under this name; its labels of some streams are not those that it looks for."""
        if self.token and not self.count and not self.sources:
            return replace(self, token=False)
        if self.count and not self.token and self.sources:
            return replace(self, text=None, go=None)
        return self


def parse_model_type(name: str, *, compat: Compat | None = None) -> ModelType:
    """Read a name of a model type as its README, code or released files spell it.

    Parameters
    ----------
    name
        Such as ``"scgenept_ncbi+uniprot_gpt"``, ``"go_all_gpt_concat"``, ``"scgenept_go_c"``, ``"scgpt_counts"``, or any
        with ``"_no_attention"`` at its end.  GO without a pooling means ``"concat"``.
    compat
        ``"upstream"`` builds what the original builds: ``scgpt_tokens`` has no token there, and names that end in
        ``_scgpt_counts`` have no text.  ``None`` builds what the name says.

    Returns
    -------
    The streams.

    Raises
    ------
    ValueError
        If it is no such name; the message has the nearest one.

    Examples
    --------
    >>> from scgpt_tools.models.scgenept.names import parse_model_type
    >>> parse_model_type("scgenept_go_c").sources
    {'go': 'go_c_concat'}
    """
    if compat is not None:
        check_choice("compat", compat, get_args(Compat))
    found = _parsed(check_text("model_type", name))
    return found if compat is None else found.upstream


def _parsed(name: str) -> ModelType:
    bare = name.removesuffix(_NO_ATTENTION)
    attention = bare == name
    if bare in _PLAIN:
        token, count = _PLAIN[bare]
        return ModelType(token=token, count=count, pretrained_attention=attention)
    match = _NAME.fullmatch(bare)
    parts: dict[str, Any] = match.groupdict() if match else {}
    # Texts stand after "genept_" only, and without it are those of GO alone.
    if not (parts.get("text") and parts["prefix"] is not None) and not (parts.get("go") and not parts["text"]):
        raise ValueError(absent(name, MODEL_TYPES, "model_type of scGenePT"))
    with_scgpt = parts["prefix"] == "sc" and not parts["counts"]
    return ModelType(
        token=with_scgpt,
        count=with_scgpt or bool(parts["counts"]),
        text=cast("Text | None", parts["text"]),
        go=cast("Axis | None", parts["go"]),
        go_pooling=cast("Pooling", parts["pooling"] or "concat"),
        pretrained_attention=attention,
    )


def _names() -> list[str]:
    texts, axes = get_args(Text), get_args(Axis)
    go = [f"go_{axis}_gpt_{pooling}" for axis in axes for pooling in get_args(Pooling)]
    short = [f"go_{axis}{end}" for axis in axes for end in ("", "_gpt")]
    found = [*_PLAIN, *(f"scgenept_{text}{end}" for text in texts for end in ("", "_gpt"))]
    found += [f"scgenept_{name}" for name in (*short, *go)]
    found += [f"genept_{text}_gpt" for text in texts] + go
    found += [f"scgenept_{text}_gpt_{name}" for text in texts for name in go]
    found += [f"scgenept_{text}_gpt_scgpt_counts" for text in texts] + [f"go_{axis}_scgpt_counts" for axis in axes]
    return found + [name + _NO_ATTENTION for name in found]


MODEL_TYPES: tuple[str, ...] = tuple(_names())
"""All names of the original's README, code and released files."""
