"""Genes as integers.

The number of a token is a row of a model's gene table, so a vocabulary belongs to its checkpoint and never changes:
every method that adds tokens returns a new one and appends at the end.  The file format is scGPT's ``vocab.json``, a
mapping from token to id in arbitrary order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cached_property, partial
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tools._files import as_path, read_json, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray

PAD = "<pad>"
CLS = "<cls>"
EOC = "<eoc>"
SPECIALS = (PAD, CLS, EOC)
"""What scGPT adds to its gene list, in its order; ``<eoc>`` is reserved and used by none of its models."""


class Vocabulary:
    """Immutable mapping between tokens (gene symbols and special tokens) and ids.

    Parameters
    ----------
    tokens
        Tokens in the order of their ids.
    pad
        Token that fills short cells.
    cls
        Token that stands for the whole cell.
    aliases
        Further names of tokens, which are looked up as the tokens themselves.

    Raises
    ------
    TypeError
        If a token is no string.
    ValueError
        If a token is empty or occurs twice, or an alias is a token or stands for none.

    Examples
    --------
    >>> vocabulary = Vocabulary(["ACTB", "CD3D"]).with_specials()
    >>> vocabulary["CD3D"], vocabulary.pad_id
    (1, 2)
    >>> vocabulary.ids(["CD3D", "no such gene"])
    array([ 1, -1])
    """

    tokens: tuple[str, ...]
    """Tokens in the order of their ids."""
    pad: str
    """Token that fills short cells."""
    cls: str
    """Token that stands for the whole cell."""
    aliases: Mapping[str, str]
    """Further names, each with the token that it stands for."""

    def __init__(
        self,
        tokens: Iterable[str],
        pad: str = PAD,
        cls: str = CLS,
        *,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if isinstance(tokens, str):
            raise TypeError(f"Expected `tokens` to be a collection of strings, found one string, {tokens!r}.")
        listed = tuple(tokens)
        _check_tokens(listed)
        # numpy's strings compare equal to Python's but would change what is written and pickled.
        plain = tuple(map(str, listed))
        _check_encodable(plain)
        self.__dict__.update(tokens=plain, pad=pad, cls=cls, _id_of=dict(zip(plain, range(len(plain)), strict=True)))
        if len(self._id_of) < len(plain):
            twice = [token for token, count in Counter(plain).items() if count > 1]
            raise ValueError(f"Expected every token once, found {len(twice)} of them again: {_some(twice)}.")
        wrong = [name for name, token in aliases.items() if name in self._id_of or token not in self._id_of]
        if wrong:
            raise ValueError(f"Expected aliases that are no tokens, each of a token, found {_some(wrong)}.")
        self.__dict__["aliases"] = MappingProxyType({str(name): str(token) for name, token in aliases.items()})
        self._id_of.update((name, self._id_of[token]) for name, token in self.aliases.items())

    @classmethod
    def from_mapping(cls_, mapping: Mapping[str, int], pad: str = PAD, cls: str = CLS) -> Vocabulary:
        """Take tokens with given ids.

        Parameters
        ----------
        mapping
            Id of each token, in any order.
        pad, cls
            Names of the padding and of the cell token.

        Returns
        -------
        The vocabulary.

        Raises
        ------
        ValueError
            If the ids are not exactly 0, 1, ..., n - 1: a hole or a repeated id would move genes to other rows of the
            model's gene table.
        """
        tokens: list[str | None] = [None] * len(mapping)
        for token, index in mapping.items():
            # bool passes for an integer in Python, and true in JSON would become id 1
            if isinstance(index, bool) or not isinstance(index, int | np.integer):
                raise ValueError(f"Expected whole numbers as ids, found {index!r} for {token!r}.")
            if not 0 <= index < len(tokens) or tokens[index] is not None:
                raise ValueError(
                    f"Expected the ids of {len(tokens)} tokens to be 0 to {len(tokens) - 1}, each once, found {index} "
                    f"for {token!r}{_taken_by(tokens, int(index))}."
                )
            tokens[index] = token
        return cls_((token for token in tokens if token is not None), pad, cls)

    @classmethod
    def from_file(cls_, path: str | PathLike[str], pad: str = PAD, cls: str = CLS) -> Vocabulary:
        """Read scGPT's ``vocab.json``.

        Parameters
        ----------
        path
            JSON file with one object, token to id.
        pad, cls
            Names of the padding and of the cell token.

        Returns
        -------
        The vocabulary.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not such JSON.  Pickled vocabularies are refused, since reading one can run any code.
        """
        path = as_path("path", path)
        if path.suffix in (".pkl", ".pickle", ".pt"):
            raise ValueError(
                f"Expected a vocabulary as JSON, found {path.name!r}. A pickle can run any code when it is read; save "
                "the vocabulary as JSON with the package that wrote it."
            )
        return cls_.from_mapping(read_json(path, what="one object, token to id"), pad, cls)

    @classmethod
    def from_genes(
        cls_,
        genes: Iterable[str],
        specials: Iterable[str] = SPECIALS,
        *,
        special_first: bool = True,
        pad: str = PAD,
        cls: str = CLS,
    ) -> Vocabulary:
        """Number a list of genes as scGPT's ``GeneVocab`` does.

        Parameters
        ----------
        genes
            Genes; repeats collapse.  More frequent ones come first, equally frequent ones in the order of their code
            points, so the order of a list without repeats does not matter.
        specials
            Special tokens, in their order.
        special_first
            Put the special tokens before the genes, or after them.
        pad, cls
            Names of the padding and of the cell token.

        Returns
        -------
        The vocabulary.
        """
        if isinstance(genes, str):
            raise TypeError(f"Expected `genes` to be a collection of strings, found one string, {genes!r}.")
        counts = Counter(genes)
        _check_tokens(counts)
        specials = tuple(specials)
        for token in specials:
            counts.pop(token, None)
        ordered = sorted(counts, key=lambda token: (-counts[token], token))
        return cls_((*specials, *ordered) if special_first else (*ordered, *specials), pad, cls)

    def extended(self, tokens: Iterable[str]) -> Vocabulary:
        """Append tokens that are absent.

        Parameters
        ----------
        tokens
            What must be there; tokens that are present keep their id.

        Returns
        -------
        This vocabulary if nothing was absent, else a new one.
        """
        if isinstance(tokens, str):
            raise TypeError(f"Expected `tokens` to be a collection of strings, found one string, {tokens!r}.")
        absent = [token for token in dict.fromkeys(tokens) if token not in self]
        if not absent:
            return self
        return Vocabulary((*self.tokens, *absent), self.pad, self.cls, aliases=self.aliases)

    def with_specials(self) -> Vocabulary:
        """Append those of the padding, cell and ``<eoc>`` tokens that are absent, as scGPT does on loading."""
        return self.extended((self.pad, self.cls, EOC))

    def ids(self, names: Iterable[Any], *, unknown: int | None = -1) -> NDArray[np.int64]:
        """Look up many tokens.

        Parameters
        ----------
        names
            Tokens; anything that is no token, missing values included, is unknown.
        unknown
            Id of unknown tokens; ``None`` refuses them.

        Returns
        -------
        One id per name.

        Raises
        ------
        KeyError
            If ``unknown`` is ``None`` and a name is unknown.
        """
        if isinstance(names, str):
            raise TypeError(f"Expected `names` to be a collection of strings, found one string, {names!r}.")
        names = list(names)
        if unknown is None:
            absent = [name for name in names if name not in self._id_of]
            if absent:
                raise KeyError(f"Expected tokens of {self!r}, found {len(absent)} others: {_some(absent)}.")
        fallback = -1 if unknown is None else unknown
        return np.fromiter((self._id_of.get(name, fallback) for name in names), dtype=np.int64, count=len(names))

    def save(self, path: str | PathLike[str]) -> None:
        """Write ``vocab.json``, token to id.

        Parameters
        ----------
        path
            File to write.
        """
        text = json.dumps({token: number for number, token in enumerate(self.tokens)}, ensure_ascii=False, indent=0)
        replace_file(as_path("path", path), lambda aside: aside.write_text(text, encoding="utf-8"))

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self._special_id(self.pad)

    @property
    def cls_id(self) -> int:
        """Id of the cell token."""
        return self._special_id(self.cls)

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """Tokens that are no genes: padding, cell, and whatever else is written in angle brackets."""
        return tuple(token for token in self.tokens if self.is_special(token))

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the tokens in their order and of which of them pads and which is the cell."""
        content = json.dumps([self.pad, self.cls, *self.tokens])
        if self.aliases:
            content += json.dumps(sorted(self.aliases.items()))
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def is_special(self, token: str) -> bool:
        """Whether a token is no gene."""
        return token in (self.pad, self.cls) or (token.startswith("<") and token.endswith(">"))

    def __getitem__(self, token: str) -> int:
        try:
            return self._id_of[token]
        except KeyError:
            raise KeyError(f"Found no token {token!r} in {self!r}.") from None

    def __contains__(self, token: object) -> bool:
        return token in self._id_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self._content == other._content

    def __hash__(self) -> int:
        return hash((self.tokens, self.pad, self.cls))

    @property
    def _content(self) -> tuple[Any, ...]:
        return self.tokens, self.pad, self.cls, self.aliases

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens: {_some(self.tokens, shown=3)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Vocabulary, aliases=dict(self.aliases)), (self.tokens, self.pad, self.cls)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A vocabulary does not change; `{name}` cannot be set. Make a new one, see `extended`.")

    _id_of: dict[str, int]

    def _special_id(self, token: str) -> int:
        if token not in self:
            raise ValueError(f"Expected {self!r} to hold {token!r}, found none. `with_specials()` appends it.")
        return self._id_of[token]


def _check_tokens(tokens: Iterable[object]) -> None:
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(f"Expected tokens to be strings, found {token!r} of type {type(token).__name__}.")
        if not token:
            raise ValueError("Expected tokens to have a name, found an empty string.")


def _check_encodable(tokens: tuple[str, ...]) -> None:
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Expected tokens of letters that files can keep, found half a letter, {error.object[error.start]!r}."
        ) from None


def _taken_by(tokens: list[str | None], index: int) -> str:
    inside = 0 <= index < len(tokens)
    return f", which {tokens[index]!r} has too" if inside else ""


def _some(names: Iterable[object], *, shown: int = 5) -> str:
    """First few names of possibly many."""
    first = list(islice(names, shown + 1))
    return ", ".join(map(repr, first[:shown])) + (", ..." if len(first) > shown else "")
