"""Kinds of commands: a function, a function that adds to a table, embedding, and one function for each task."""

from __future__ import annotations

import json
import logging
from argparse import ArgumentError
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser

from scgpt_tools._lookup import absent, lookup
from scgpt_tools.cli import configs, dialects, scmodelforge
from scgpt_tools.cli.options import Formatter, about, add_function, read_tables_of_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

PROGRAM = "scgpt-tools"
# Not __name__, which is another one under `python -m`.
logger = logging.getLogger("scgpt_tools.cli")

_CHUNK_OPTIONS = ("chunk", "rank", "processes")


@dataclass(frozen=True)
class Command:
    """A function."""

    function: str
    """Its module and name, joined by a colon; it is imported when the command runs."""
    summary: str
    """A line for the list of commands."""

    def resolve(self) -> Callable[..., Any]:
        """The function; imports what it needs."""
        return resolved(self.function)

    def read(self, name: str, words: Sequence[str], *, program: str = PROGRAM) -> dict[str, Any]:
        """Options of a command line, files of settings included.

        ``name``: of the command; ``words``: what follows it; ``program``: name of the program, for messages.
        """
        parser = self.parser(name, program=program)
        sections = scmodelforge.SECTIONS if name in scmodelforge.TRANSLATIONS else frozenset()
        divided = configs.divide(words, sections - names_of(parser))
        divided.words = _gathered(dialects.in_our_words(name, divided.words, names_of(parser)), parser)
        scmodelforge.check_flags(divided, names_of(parser))
        check_words(name, divided.words, names_of(parser))
        given = scmodelforge.in_our_words(name, divided, known=names_of(parser), foreign=program != PROGRAM)
        for key in given.settings:
            if key not in names_of(parser):
                raise ValueError(absent(key, sorted(names_of(parser)), f"option of `{name}` named"))
        settings = ["--config", json.dumps(given.settings)] if given.settings else []
        options = _parsed([*settings, *given.words], parser)
        options.pop("config", None)
        return options

    def parser(self, name: str, *, program: str = PROGRAM) -> ArgumentParser:
        """Parser of this command alone."""
        function = self.resolve()
        parser = ArgumentParser(
            prog=f"{program} {name}", description=self.about(), exit_on_error=False, formatter_class=Formatter
        )
        self.add_arguments(parser, function)
        self.add_config(parser)
        general = parser.add_argument_group("general")
        general.add_argument("--quiet", action="store_true", help="Log warnings only and draw no progress bars.")
        general.add_argument("--traceback", action="store_true", help="Show where an error came from.")
        return parser

    def about(self) -> str:
        """What it does."""
        return about(self.resolve())[0]

    def add_config(self, parser: ArgumentParser) -> None:
        """Add what takes options from a file, and, by the parser itself, what shows them as one."""
        parser.add_argument(
            "--config",
            action=ActionConfigFile,
            help="YAML file with options by name; those of the command line count more, and one that does not exist is "
            "refused.",
        )

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add what the function takes; what it takes by position is named without dashes here, too."""
        for name, parameter in signature(function).parameters.items():
            if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD and name == "input":
                parser.add_argument(name, help=about(function)[1][name])
        if "output" in signature(function).parameters:
            _add_output(parser, function)
        add_function(parser, function)

    def run(self, options: dict[str, Any]) -> None:
        """Call the function."""
        read_tables_of_names(options)
        self.resolve()(**options)


@dataclass(frozen=True)
class TableCommand(Command):
    """A function that adds something to a table, which is its first parameter."""

    takes_mudata: bool = False
    """Whether it works on all modalities of a MuData, and writes to the MuData itself, where none is named."""
    embeddings: bool = False
    """Whether it reads ``obsm``."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the files and what the function takes, its table excepted."""
        add_tables(parser)
        add_function(parser, function, skip={first_of(function), "copy"})

    def run(self, options: dict[str, Any]) -> None:
        """Open the input, call the function, write what it has added to a copy."""
        run_on_table(self.resolve(), options, takes_mudata=self.takes_mudata, embeddings=self.embeddings)


@dataclass(frozen=True)
class MapCommand(TableCommand):
    """A function that adds to a table what another one, the reference, tells."""

    def run(self, options: dict[str, Any]) -> None:
        """Open the reference too where it is one modality of several, which both tables have by the same name."""
        from scgpt_tools.data.stores import open_table  # imports AnnData

        if Path(options["reference"]).suffix != ".h5mu":
            super().run(options)
            return
        with open_table(options["reference"], modality=options.get("modality"), embeddings=True) as table:
            super().run({**options, "reference": table})


@dataclass(frozen=True)
class NewTableCommand(Command):
    """A function of a table that returns a new one, which is written and, as a data frame, printed."""

    shown: str = ""
    """The function that reads a data frame from the new table, as its module and name."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the files and what the function takes, its table excepted."""
        add_tables(parser, output="New table with the results, .h5ad or .zarr.")
        add_function(parser, function, skip={first_of(function)})
        if "modality" not in names_of(parser):
            parser.add_argument("--modality", default=None, help="Which modality of a MuData to read.")

    def run(self, options: dict[str, Any]) -> None:
        """Open the input, call the function, write and print its table."""
        result = write_new_table(self.resolve(), options)
        print(resolved(self.shown)(result).to_string(index=False, max_rows=60, float_format="{:.4g}".format))


@dataclass(frozen=True)
class EmbedCommand(TableCommand):
    """Embedding, which has a second way for tables and machines of any size."""

    by_chunks: str = "scgpt_tools.tl:embed_store"
    """The function of that way, as its module and name."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add those of the second way, too."""
        super().add_arguments(parser, function)
        group = parser.add_argument_group(
            "by chunks",
            "For large tables and several processes: the output has the embedding alone, and can be resumed.",
        )
        group.add_argument(
            "--by_chunks",
            action="store_true",
            help="Work by chunks; so do several processes, and all whose output, unlike their input, ends in .zarr.",
        )
        described = about(resolved(self.by_chunks))[1]
        for name in _CHUNK_OPTIONS:
            group.add_argument(f"--{name}", type=int, default=None, help=described[name])

    def run(self, options: dict[str, Any]) -> None:
        """Take one way or the other."""
        from scgpt_tools.data.processes import check_process  # imports torch

        by_chunks = options.pop("by_chunks")
        chunk = {name: value for name in _CHUNK_OPTIONS if (value := options.pop(name)) is not None}
        processes = check_process(chunk.get("rank"), chunk.get("processes"))[1]
        zarr = [Path(options[name]).suffix == ".zarr" for name in ("input", "output")]
        if not (by_chunks or chunk or processes > 1 or zarr == [False, True]):
            super().run(options)
            return
        _embed_by_chunks(resolved(self.by_chunks), options, chunk)


@dataclass(frozen=True)
class IndexCommand(Command):
    """A function that reads any number of tables and writes a folder."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the files and what the function takes, its tables excepted."""
        described = about(function)[1]
        parser.add_argument("input", nargs="+", help="Tables with embedded cells: .h5ad, .h5mu or .zarr.")
        parser.add_argument("-o", "--output", required=True, help="Folder for the index.")
        parser.add_argument("--annotations", nargs="+", help=described["annotations"])
        add_function(parser, function, skip={"sources", "output", "annotations"})

    def run(self, options: dict[str, Any]) -> None:
        """Call the function."""
        self.resolve()(options.pop("input"), options.pop("output"), **options)


@dataclass(frozen=True)
class TaskCommand(Command):
    """A function for each task: what they take together are the options, and each refuses those of the others.

    :attr:`function` chooses the task: it takes the options that were given, and returns their name and these options.
    """

    functions: Mapping[str, str] = field(default_factory=dict)
    """By task, the function's module and name."""
    tables: bool = False
    """Whether they add something to a table."""

    def about(self) -> str:
        """What it does, and what each task does."""
        each = [f"{task}: {about(resolved(function))[0].splitlines()[0]}" for task, function in self.functions.items()]
        return "\n\n".join([super().about(), *each])

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add what any of the functions takes."""
        if self.tables:
            add_tables(parser)
        add_function(parser, function, skip={"options"})
        for each in map(resolved, self.functions.values()):
            if not self.tables and "input" in signature(each).parameters and "input" not in names_of(parser):
                parser.add_argument("input", help=about(each)[1]["input"])
            if "output" in signature(each).parameters:
                _add_output(parser, each)
            skipped = {first_of(each), "copy"} if self.tables else set()
            add_function(parser, each, skip=skipped, optional=True)

    def run(self, options: dict[str, Any]) -> None:
        """Choose the task, and call its function with what it takes."""
        own = signature(self.resolve()).parameters
        chosen, options = self.resolve()(options, **{name: options.pop(name) for name in own if name in options})
        function = resolved(lookup(self.functions, chosen, "task"))
        check_taken(chosen, options, function, {"input", "output", "overwrite"} if self.tables else ())
        if options.get("as_anndata"):
            write_new_table(function, options)
        elif self.tables:
            run_on_table(function, options, takes_mudata=chosen == "impute", embeddings=True)
        else:
            read_tables_of_names(options)
            function(**options)


# ------------------------------------------------------------------------------------------------------------ parts


def resolved(name: str) -> Callable[..., Any]:
    """A function by its module and name, joined by a colon."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def first_of(function: Callable[..., Any]) -> str:
    """Name of the first parameter."""
    return next(iter(signature(function).parameters))


def add_tables(
    parser: ArgumentParser, *, output: str = "Copy of the input with the results, in the same format."
) -> None:
    """Add a table to read and one to write."""
    parser.add_argument("input", help="Table to read: .h5ad, .h5mu or .zarr. Its matrices are read in blocks.")
    parser.add_argument("-o", "--output", required=True, help=output)
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace the output if it exists; it may be the input then."
    )


def run_on_table(
    function: Callable[..., Any], options: dict[str, Any], *, takes_mudata: bool = False, embeddings: bool = False
) -> None:
    """Open the input, call a function on it, and write what it has added to a copy."""
    from scgpt_tools._validate import check_key_name  # imports NumPy
    from scgpt_tools.data.changes import additions, contents  # imports AnnData
    from scgpt_tools.data.stores import results_for  # AnnData, too

    source, target, overwrite = (options.pop(name) for name in ("input", "output", "overwrite"))
    modality = options.pop("modality", None)
    if options.get("key_added") is not None:
        check_key_name("key_added", options["key_added"])
    read_tables_of_names(options)
    joint = takes_mudata and modality is None and Path(source).suffix == ".h5mu"
    with results_for(source, target, overwrite=overwrite) as write:
        with _opened(source, modality, joint=joint, embeddings=embeddings) as table:
            before = contents(table)
            function(table, **options)
            results = additions(table, before)
        write(results, modality=modality, joint=joint)
    places = (f"{slot}[{name!r}]" for slot, elements in results.items() for name in elements)
    logger.info("Wrote %s with %s.", target, ", ".join(places))


def write_new_table(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Open the input, call a function on it, write the table that it returns, and return that."""
    from scgpt_tools.cli.files import place_for_table, write_table  # imports AnnData
    from scgpt_tools.data.stores import open_table  # AnnData, too

    source, target, overwrite = (options.pop(name) for name in ("input", "output", "overwrite"))
    modality = options.pop("modality", None)
    read_tables_of_names(options)
    final = place_for_table(source, target, overwrite=overwrite)
    with open_table(source, modality=modality, embeddings=True) as table:
        result = function(table, **options)
    write_table(result, final)
    logger.info("Wrote %d rows and %d columns to %s.", *result.shape, final)
    return result


def check_taken(task: str, options: Mapping[str, Any], function: Callable[..., Any], others: Collection[str]) -> None:
    """Refuse options of other tasks, and ask for those that the task needs."""
    parameters = signature(function).parameters
    if wrong := [name for name in options if name not in parameters and name not in others]:
        raise ValueError(f"Expected no --{wrong[0]} for the task {task!r}, found it. `--help` explains the options.")
    needed = {name for name, parameter in parameters.items() if parameter.default is Parameter.empty}
    if missing := sorted(needed - {*options} - ({first_of(function)} if others else set())):
        raise ValueError(f"Expected --{missing[0]} for the task {task!r}, found none.")


def _opened(source: str, modality: str | None, *, joint: bool, embeddings: bool) -> AbstractContextManager[Any]:
    """All modalities of a MuData, or one table."""
    from scgpt_tools.data.stores import open_mudata, open_table  # imports AnnData

    return open_mudata(source) if joint else open_table(source, modality=modality, embeddings=embeddings)


def _add_output(parser: ArgumentParser, function: Callable[..., Any]) -> None:
    if "output" in names_of(parser):
        return
    usual = signature(function).parameters["output"].default
    needed = usual is Parameter.empty
    parser.add_argument(
        "-o", "--output", required=needed, default=None if needed else usual, help=about(function)[1]["output"]
    )


def names_of(parser: ArgumentParser) -> set[str]:
    """Names of the options of a parser."""
    return {action.dest for action in parser._actions} - {"help"}


def check_words(command: str, words: Sequence[str], known: Collection[str]) -> None:
    """Refuse options that do not exist, and name the nearest."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name not in {*known, "help", ""}:
            message = absent(f"--{name}", [f"--{other}" for other in sorted(known)], f"option of `{command}` named")
            raise ValueError(message)


def _parsed(words: Sequence[str], parser: ArgumentParser) -> dict[str, Any]:
    """Options of words; what is missing is named as it is written."""
    try:
        options: dict[str, Any] = parser.parse_args(words).as_dict()
    except ArgumentError as error:
        missing = str(error).partition("arguments are required: ")[2]
        if not missing:
            raise
        written = {action.dest: "/".join(action.option_strings) or action.dest for action in parser._actions}
        names = ", ".join(written.get(name, name) for name in missing.split(", "))
        raise ValueError(f"Expected {names}, found none. `{parser.prog} --help` explains the options.") from None
    return options


def _gathered(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Words of a command line with the models and data of options that come more than once in one list each."""
    from scgpt_tools.config import yaml_value  # imports NumPy

    rest, found = list(words), []
    given: dict[str, list[str]] = {"model": [], "data": []}
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--model", "--data") and (equals or rest):
            given[name[2:]].append(value if equals else rest.pop(0))
        else:
            found.append(word)
    for name, values in given.items():
        if len(values) > 1:
            kinds = {action.dest: str(getattr(action, "_typehint", "")) for action in parser._actions}
            if "list" not in kinds[name] and "Any" not in kinds[name]:
                raise ValueError(
                    f"Expected --{name} once, found it {len(values)} times: {', '.join(map(repr, values))}."
                )
            lists = [yaml_value(value) if value.startswith("[") else [value] for value in values]
            values = [json.dumps([one for several in lists for one in several])]
        found += [f"--{name}={value}" for value in values]
    return found


def _embed_by_chunks(function: Callable[..., Any], options: dict[str, Any], chunk: dict[str, int]) -> None:
    """Call the function that works by chunks with what it knows of the options; refuse the others."""
    if options.pop("overwrite"):
        raise ValueError(
            "Expected no --overwrite for work by chunks, of which no process knows how far the others are. Delete the "
            "output yourself."
        )
    source, target = options.pop("input"), options.pop("output")
    for name in set(options) - set(signature(function).parameters):
        if options.pop(name) is not None:
            raise ValueError(f"Expected no --{name.replace('_', '-')} for work by chunks, found it.")
    read_tables_of_names(options)
    function(source, target, **options, **chunk)
