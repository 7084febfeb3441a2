"""Parameters of functions as options: types from signatures, help from docstrings."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from inspect import Parameter, signature
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from docstring_parser import parse
from jsonargparse import DefaultHelpFormatter

from scgpt_tools._files import as_path
from scgpt_tools._lookup import lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from jsonargparse import ArgumentParser

# Parameters whose types a shell cannot give, and what it gives instead: texts, or values as YAML has them.
_FROM_SHELL: dict[str, Any] = {
    "rng": int,
    **dict.fromkeys(
        ("model", "device", "mask_var", "symbols", "aliases", "config", "data", "output", "reference"), str
    ),
    **dict.fromkeys(("lora", "corruption", "objectives", "modalities", "callbacks", "loggers"), Any),
}
_HELP = {
    "model": "A released name (see `scgpt-tools models`), a repository of the Hugging Face Hub, or a folder.",
    "as_anndata": "Write the predicted cells as a new table, .h5ad or .zarr, and no layers of the input; --bootstrap does so too.",
    "symbols": "Symbol of each Ensembl id: a column of var, or a .csv or .tsv file with two columns, id and symbol.",
    "aliases": "Current symbols of outdated ones: a .csv or .tsv file with two columns, old and new name.",
}
# Models that answer together: a list as YAML has it, or one name as it stands.
_SEVERAL: Any = list[str] | str
_OF_SEVERAL = (
    "Several answer together as [one,two], to name cell types also with files of `scgpt-tools gene-classifier`."
)
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


class Formatter(DefaultHelpFormatter):
    """Keeps the paragraphs of what is said of a command; the lines of an indented one hang."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            fill(part.strip(), width, initial_indent="  ", subsequent_indent="      ")
            if part[:1] == " "
            else fill(part, width)
            for part in text.split("\n\n")
        )


def add_function(
    parser: ArgumentParser,
    function: Callable[..., Any],
    *,
    skip: Collection[str] = (),
    optional: bool = False,
) -> None:
    """Add the parameters of a function as options, described by its docstring.

    ``skip``: parameters to leave out; ``optional``: require none of them and give those alone that were named, for
    functions whose defaults are no values that a shell knows.
    """
    before = set(parser._actions)
    there = {action.dest for action in before}
    parameters = signature(function).parameters
    left_out: set[str | int] = {*skip, *there}
    anything = {name: Any for name, parameter in parameters.items() if parameter.annotation in ("Any", Any)}
    several = {name: _SEVERAL for name, entry in parameters.items() if name == "model" and takes_several(entry)}
    kinds = {name: kind for name, kind in (_FROM_SHELL | several | anything).items() if name in parameters}
    for name in (name for name in kinds if name not in left_out):
        needed = parameters[name].default is Parameter.empty and not optional
        default = {"required": True} if needed else {"default": SUPPRESS if optional else parameters[name].default}
        parser.add_argument(f"--{name}", type=kinds[name], **default)
        left_out.add(name)
    if "overwrite" in parameters and "overwrite" not in left_out:
        # A word alone, as for tables.
        parser.add_argument("--overwrite", action="store_true")
        left_out.add("overwrite")
    if "resume" in parameters and "resume" not in left_out:
        # As of `train`, a word alone or with a value.
        parser.add_argument("--resume", type=bool, nargs="?", const=True, default=False)
        left_out.add("resume")
    if "pretrained_model" in parameters:
        # A word alone in DeepSC's own command.
        parser.add_argument("--pretrained_model", type=bool, nargs="?", const=True, default=False)
        left_out.add("pretrained_model")
    parser.add_function_arguments(function, skip=left_out, as_group=False, as_positional=False)
    _, described = about(function)
    for action in parser._actions:
        if action in before:
            continue
        if optional and action.dest != "overwrite":
            action.default = SUPPRESS
            action.required = False
            # Where versions of jsonargparse before 4.50 keep it.
            getattr(parser, "required_args", set()).discard(action.dest)
        if action.dest in described:
            action.help = _HELP.get(action.dest, described[action.dest])
            if action.dest in several:
                action.help += f" {_OF_SEVERAL}"


def takes_several(parameter: Parameter) -> bool:
    """Whether a function takes a list of models in the place of one."""
    return "Sequence" in str(parameter.annotation)


def about(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a function does, and what each parameter means, as plain text."""
    text = parse(function.__doc__ or "")
    found = "\n\n".join(plain(part) for part in (text.short_description, text.long_description) if part)
    each = ((name, plain(entry.description or "")) for entry in text.params for name in entry.arg_name.split(", "))
    return found, dict(each)


def plain(text: str) -> str:
    """Text without the marks of reStructuredText."""
    text = re.sub(r"\s*:cite:\w+:`[^`]*`", "", text)
    text = re.sub(r":[\w:]+:`~?([^`]+)`", r"\1", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"\1", text)
    return " ".join(text.replace("``", "").split())


def read_tables_of_names(options: dict[str, Any]) -> None:
    """Put tables in the places of their files."""
    for name in ("symbols", "aliases"):
        given = options.get(name)
        # Symbols may be a column as well.
        if given and (name == "aliases" or Path(given).suffix.lower() in _SEPARATORS):
            options[name] = _read_names(given)


def _read_names(given: str) -> Any:
    """A table of names from a file."""
    path = as_path("table of names", given)
    # Slow to import.
    import pandas as pd

    separator = lookup(_SEPARATORS, path.suffix.lower(), "format of a table of names")
    # Otherwise a gene called NA or NAN is a missing value.
    return pd.read_csv(path, sep=separator, dtype=str, na_filter=False)
