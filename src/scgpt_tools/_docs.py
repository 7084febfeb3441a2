"""Paragraphs that several docstrings share.

A line of a docstring that holds nothing but ``{name}`` becomes the paragraph of that name.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from textwrap import dedent, indent
from typing import TYPE_CHECKING, TypeVar

from scgpt_tools._lookup import lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    Function = TypeVar("Function", bound=Callable[..., object])
    Class = TypeVar("Class", bound=type)

PARAGRAPHS = {
    "layer": """\
layer
    Key of ``layers`` to read; ``None`` takes ``X``.""",
    "layers": """\
layer
    Key of ``layers`` to read; ``None`` takes ``X``.  For several modalities of a MuData also a mapping from modality to
    key, such as ``{"prot": "counts"}``; those that it does not name take ``X``.""",
    "matching": """\
symbols
    Symbol of each Ensembl id, as a table (a mapping, a series or a frame of two columns) or as the name of a column of
    ``var``; the version of an id does not count.
aliases
    Current symbol of each outdated one, as such a table.
ignore_case
    Let names that match nothing else match in another case; mouse symbols then match human genes of the same letters.
duplicates
    What to do with several columns of one gene: read the one with the most counts, ``"most_counts"``, or the one that is
    matched best, ``"first"``; refuse, ``"error"``; or read each of them, ``"all"``.""",
    "genes": """\
genes
    Column of ``var`` with the gene names that the vocabulary holds; ``None`` takes ``var_names``.""",
    "modality": """\
modality
    Which modality to read; needed for MuData only.""",
    "batch_key": """\
batch_key
    Column of ``obs`` with the technical batch of each cell; needed by models that normalise each batch by itself (as
    fine-tuning for integration makes them), and refused by all others.""",
    "pooling": """\
pooling
    ``"cls"``, the cell token, ``"mean"`` over the tokens of a cell, or ``"weighted"`` by their values; ``None`` takes the
    model's own way, which is ``"cls"`` for scGPT as released.""",
    "length": """\
length
    Most tokens of a cell, the cell token included, at least 2; ``None`` takes what the model was trained with (1200).  Longer
    cells are represented by a random subset of their genes.""",
    "device": """\
device
    ``None`` takes ``settings.device``, else CUDA, MPS or CPU, whichever is there; a loaded model stays where it is.""",
    "precision": """\
precision
    Number format of matrix products: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``, which is bf16 on CUDA devices and fp32
    elsewhere.  bf16 on a processor without instructions for it is slow, and warned of.""",
    "attention": """\
attention
    Backend; ``None`` takes the fastest that the device has.""",
    "rng": """\
rng
    For sampling genes of long cells and for ties between bins: a whole number, a generator, or ``None`` for fresh
    entropy; the number that was used is recorded.  The draws of a cell depend on it and on the name of the cell only,
    never on batch size or order.""",
    "rng_simple": """\
rng
    What is drawn with: a whole number, a generator, or ``None`` for fresh entropy; the number that was used is
    recorded.""",
    "show_progress": """\
show_progress
    Draw a progress bar; ``None`` follows :data:`scgpt_tools.settings`.""",
    "axes": """\
ax
    Axes to draw in; ``None`` makes a figure.
figsize
    Width and height of a new figure in inches.""",
    "show": """\
show
    Show the figure; ``None`` follows ``scanpy.settings.autoshow``.
save
    File to write the figure to, in the format of its ending; ``None`` writes none.
return_fig
    Return the figure and show nothing.""",
    "condition_key": """\
condition_key
    Column of ``obs`` with the conditions, as :func:`scgpt_tools.pp.parse_conditions` spells them.""",
    "copy": """\
copy
    Return a changed copy and leave the input alone.""",
}

_PLACE = re.compile(r"^([ \t]*)\{(\w+)\}[ \t]*$", flags=re.MULTILINE)


def shared_docs(function: Function) -> Function:
    """Decorator that fills the places for shared paragraphs."""
    if function.__doc__ is not None:  # stripped under ``python -OO``
        function.__doc__ = _PLACE.sub(_paragraph, function.__doc__)
    return function


def described_fields(kind: Class) -> Class:
    """Decorator that adds the fields of a dataclass to its docstring, by the texts that stand below them.

    :func:`help` shows docstrings only, and a subclass has the fields of its bases.
    """
    if kind.__doc__ is None:
        return kind
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        texts |= _field_texts(base)
    lines = [f"{field.name}\n{indent(texts[field.name], '    ')}" for field in fields(kind) if field.name in texts]
    kind.__doc__ = "\n".join([inspect.cleandoc(kind.__doc__), "", "Parameters", "----------", *lines])
    return kind


def _field_texts(kind: type) -> dict[str, str]:
    try:
        (body,) = ast.parse(dedent(inspect.getsource(kind))).body
    except (OSError, TypeError):  # no source, as in a frozen program
        return {}
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class is one
    texts = {}
    for entry, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(entry, ast.AnnAssign)
            and isinstance(entry.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            texts[entry.target.id] = inspect.cleandoc(str(following.value.value))
    return texts


def _paragraph(place: re.Match[str]) -> str:
    return indent(lookup(PARAGRAPHS, place[2], "shared paragraph"), place[1])
