"""The public functions as commands; flags and help come from their signatures and docstrings.

A function is imported when its command runs, so ``scgpt-tools --help`` answers at once.  Results go to files or to
standard output; what is logged, warnings, progress and errors go to standard error.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from argparse import ArgumentError
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from docstring_parser import parse
from jsonargparse import ArgumentParser

from scgpt_tools._console import ended_by_signal, messages, one_line, print_rows
from scgpt_tools._files import as_path
from scgpt_tools._lookup import lookup
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

PROGRAM = "scgpt-tools"
TRACEBACK_VARIABLE = "SCGPT_TOOLS_TRACEBACK"
# Not __name__, which is another one under `python -m`.
logger = logging.getLogger("scgpt_tools.cli")

# What users can cause and mend; anything else is a bug and ends in a traceback.
_USER_ERRORS = (ArgumentError, ValueError, KeyError, TypeError, OSError, ImportError)
# Parameters whose types a shell cannot give, and what it gives instead.
_FROM_SHELL: dict[str, type] = {
    "rng": int,
    **dict.fromkeys(("model", "device", "mask_var", "symbols", "aliases", "config", "data", "output"), str),
}
_HELP = {
    "model": "A released name (see `scgpt-tools models`), a repository of the Hugging Face Hub, or a folder.",
    "config": "YAML file with the configuration; a key that does not exist is refused.",
    "symbols": "Symbol of each Ensembl id: a column of var, or a .csv or .tsv file with two columns, id and symbol.",
    "aliases": "Current symbols of outdated ones: a .csv or .tsv file with two columns, old and new name.",
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_CHUNK_OPTIONS = ("chunk", "rank", "processes")
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


@dataclass(frozen=True)
class Command:
    """A function without a table."""

    function: str | Callable[..., None]
    """The function, or its module and name joined by a colon."""
    summary: str
    """A line for the list of commands."""

    def resolve(self) -> Callable[..., Any]:
        """The function; imports what it needs."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)

    def parser(self, name: str) -> ArgumentParser:
        """Parser of this command alone."""
        function = self.resolve()
        parser = ArgumentParser(prog=f"{PROGRAM} {name}", description=_about(function)[0], exit_on_error=False)
        self.add_arguments(parser, function)
        general = parser.add_argument_group("general")
        general.add_argument("--quiet", action="store_true", help="Log warnings only and draw no progress bars.")
        general.add_argument("--traceback", action="store_true", help="Show where an error came from.")
        return parser

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add what the function takes."""
        _add_function(parser, function, skip=set())

    def run(self, options: dict[str, Any]) -> None:
        """Call the function."""
        self.resolve()(**options)


@dataclass(frozen=True)
class TableCommand(Command):
    """A function that adds something to a table."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the files and what the function takes, its table excepted."""
        parser.add_argument("input", help="Table to read: .h5ad, .h5mu or .zarr. Its matrices are read in blocks.")
        parser.add_argument(
            "-o", "--output", required=True, help="Copy of the input with the results, in the same format."
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="Replace the output if it exists; it may be the input then."
        )
        _add_function(parser, function, skip={"adata", "copy"})

    takes_mudata: bool = False
    """Whether it works on all modalities of a MuData, and writes to the MuData itself, where none is named."""

    def run(self, options: dict[str, Any]) -> None:
        """Open the input, call the function, write what it has added to a copy."""
        from scgpt_tools._validate import check_key_name  # imports NumPy
        from scgpt_tools.data.changes import additions, contents  # imports AnnData
        from scgpt_tools.data.stores import results_for  # AnnData, too

        source, target, overwrite = (options.pop(name) for name in ("input", "output", "overwrite"))
        modality = options.pop("modality", None)
        if options["key_added"] is not None:
            check_key_name("key_added", options["key_added"])
        _read_tables_of_names(options)
        joint = self.takes_mudata and modality is None and Path(source).suffix == ".h5mu"
        with results_for(source, target, overwrite=overwrite) as write:
            with _opened(source, modality, joint=joint) as table:
                before = contents(table)
                self.resolve()(table, **options)
                results = additions(table, before)
            write(results, modality=modality, joint=joint)
        places = (f"{slot}[{name!r}]" for slot, elements in results.items() for name in elements)
        logger.info("Wrote %s with %s.", target, ", ".join(places))


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
        described = _about(Command(self.by_chunks, "").resolve())[1]
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
        _embed_by_chunks(Command(self.by_chunks, "").resolve(), options, chunk)


@dataclass(frozen=True)
class IndexCommand(Command):
    """A function that reads any number of tables and writes a folder."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the files and what the function takes, its tables excepted."""
        parser.add_argument("input", nargs="+", help="Tables with embedded cells: .h5ad, .h5mu or .zarr.")
        parser.add_argument("-o", "--output", required=True, help="Folder for the index.")
        parser.add_argument("--annotations", nargs="+", help=_about(function)[1]["annotations"])
        _add_function(parser, function, skip={"sources", "output", "annotations"})

    def run(self, options: dict[str, Any]) -> None:
        """Call the function."""
        self.resolve()(options.pop("input"), options.pop("output"), **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    arguments
        The words after the program's name; ``None`` takes those of this process.

    Returns
    -------
    Exit status: 0, 2 after an error of the user, 130 after an interrupt.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(PROGRAM, version(PROGRAM))
        return 0
    try:
        command = lookup(COMMANDS, words[0], "command")
        options = command.parser(words[0]).parse_args(_with_underscores(words[1:])).as_dict()
        options.pop("traceback")
        with messages(quiet=options.pop("quiet")), ended_by_signal():
            command.run(options)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if "--traceback" in words or os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(f"{PROGRAM} {words[0]}: error: {_in_our_words(error)}", file=sys.stderr)
        return 2
    return 0


def models(*, format: Literal["table", "json"] = "table") -> None:
    """List the models that can be loaded by name.

    Parameters
    ----------
    format
        A short table, or all that is known as JSON: repository, licences, citation and source as well.
    """
    # Imports torch.
    from scgpt_tools.models.zoo import available

    table = available()
    if format == "json":
        print(table.reset_index().to_json(orient="records", indent=2))
        return
    titles = {"training_data": "TRAINED ON", "recommended_for": "RECOMMENDED FOR", "weights_licence": "LICENCE"}
    print_rows([("NAME", *titles.values()), *table[list(titles)].itertuples()])


def demo(*, output: str = "demo_output", model: str = "scgpt-demo", rng: int = 0) -> None:
    """Embed bundled blood cells with the bundled model, offline; score and draw the result beside PCA.

    Parameters
    ----------
    output
        Folder for the scores, the figure and the cells.
    model
        Another model: a released name, a repository of the Hugging Face Hub, or a folder.
    rng
        Whole number, generator or ``None`` (fresh entropy) for everything that is drawn.
    """
    # Imported by name like the function of every command, which is of the same layer here.
    print(import_module("scgpt_tools.demo").run_demo(output, model=model, rng=rng))


def finetune(
    *,
    dataset: str,
    output: str,
    task: Literal["perturb"] = "perturb",
    model: str = "scgpt-human",
    model_type: str | None = None,
    gene_embeddings: str | None = None,
    condition_key: str = "condition",
    split: str = "split",
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-4,
    step_epochs: int = 1,
    dropout: float | None = None,
    length: int = 1536,
    patience: int = 10,
    accelerator: str = "auto",
    overwrite: bool = False,
    rng: int = 42,
) -> None:
    """Fine-tune a model on a perturbation screen, and score it on held-out perturbations beside baselines.

    Parameters
    ----------
    dataset
        A table in .h5ad or .zarr, or the name of a data set in the folder of SCGPT_TOOLS_DATA, with log-normalised cells.
    output
        Folder for the model, its history (``history.csv``) and its scores (``scores.csv``).
    task
        What to learn.
    model
        Where to start from.
    model_type
        Model type of scGenePT, such as ``scgenept_go_c_gpt_concat``; none fine-tunes the model as it is.
    gene_embeddings
        File or folder with the embeddings of the model type's texts; none fetches the published ones by name.
    condition_key
        Column of ``obs`` with the conditions.
    split
        Column of ``obs`` with the parts; if there is none, perturbations are held out as GEARS' simulation split.
    epochs
        Visits of every training cell; none takes those of the authors.
    batch_size
        Cells of a minibatch.
    lr
        Learning rate.
    step_epochs
        Epochs between two steps down of the learning rate.
    dropout
        Probability in the encoder; none takes that of the authors.
    length
        Most genes of a cell; of more, some are drawn for each cell and epoch.
    patience
        Epochs without a better score on the validation part after which to stop.
    accelerator
        ``auto``, ``cpu``, ``gpu`` or ``mps``.
    overwrite
        Replace a model in the output folder.
    rng
        Seed of the division and the training.
    """
    from scgpt_tools import datasets, pp, tl  # all of these import torch or AnnData
    from scgpt_tools.data.stores import open_table  # AnnData
    from scgpt_tools.models import parse_model_type, to_scgenept  # torch
    from scgpt_tools.models.formats import check_target  # torch
    from scgpt_tools.train import finetune as learn  # torch

    place = check_target(output)
    if (place / "config.json").exists() and not overwrite:
        raise FileExistsError(
            f"Expected a folder without a model, found one in {output!r}. Pass --overwrite to replace it."
        )
    kind = None if model_type is None else parse_model_type(model_type)
    if Path(dataset).exists():
        with open_table(dataset) as table:
            cells = table.to_memory()
    else:
        cells = datasets.load(dataset)
    pp.parse_conditions(cells, condition_key)
    if split not in cells.obs:
        pp.perturbation_split(cells, rng=rng, key_added=split)
    start: Any = model
    if kind is not None:
        texts: Any = gene_embeddings
        if kind.sources and texts is None:
            texts = {name: datasets.gene_embeddings(source) for name, source in kind.sources.items()}
        start = to_scgenept(model, kind, texts, rng=rng)
    chosen: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    tuned = learn(
        cells,
        start,
        task=task,
        validation=split,
        batch_size=batch_size,
        lr=lr,
        step_epochs=step_epochs,
        dropout=dropout,
        length=length,
        patience=patience,
        accelerator=accelerator,
        rng=rng,
        **chosen,
    )
    tuned.save(place)
    if tuned.history is not None:
        tuned.history.to_csv(place / "history.csv")
    scores = tl.evaluate_perturbation(cells, {"model": tuned}, split=split, rng=rng)
    scores.table.to_csv(place / "scores.csv", index=False)
    print(scores)


def info() -> None:
    """Show versions, devices, attention backends and settings, for reports of bugs."""
    import torch  # slow to import
    from session_info2 import session_info  # for this command only

    import scgpt_tools.tl  # noqa: F401 - brings in what the report is about
    from scgpt_tools.data.threads import usable_threads  # imports torch

    lines = repr(session_info(cpu=True, dependencies=True)).splitlines()
    versions = sorted(
        {tuple(line.split("\t")) for line in lines} - {("----", "----")}, key=lambda row: row[0].casefold()
    )
    devices = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    modules = {"sdpa": "torch", "eager": "torch", "varlen": "torch", "flash": "flash_attn"}
    backends = [name for name, module in modules.items() if find_spec(module) is not None]
    chosen = [(f"settings.{field.name}", str(getattr(settings, field.name))) for field in fields(settings)]
    rows = [("devices", ", ".join([*devices, f"cpu ({usable_threads()} threads)"]))]
    print_rows([*versions, *rows, ("attention", ", ".join(backends)), *chosen])


COMMANDS: dict[str, Command] = {
    "embed": EmbedCommand("scgpt_tools.tl:embed", "embed cells with a model", takes_mudata=True),
    "embed-genes": TableCommand("scgpt_tools.tl:embed_genes", "look up a model's embedding of each gene"),
    "tokenize": TableCommand("scgpt_tools.pp:tokenize", "bin each cell's expressed genes as a model does"),
    "index": IndexCommand("scgpt_tools.tl:index_store", "index annotated cells to map others to"),
    "models": Command(models, "list the models that can be loaded by name"),
    "pretrain": Command("scgpt_tools.train.pretrain:pretrain", "train a model from scratch"),
    "finetune": Command(finetune, "fine-tune a model on a perturbation screen"),
    "deepsc-perturb": Command("scgpt_tools.deepsc:deepsc_perturb", "fine-tune DeepSC on a screen, score and draw it"),
    "demo": Command(demo, "embed bundled cells with the bundled model, offline"),
    "info": Command(info, "show versions, devices and settings"),
}


# ---------------------------------------------------------------------------------------------------------- parsing


def _in_our_words(error: BaseException) -> str:
    """The message of an error, those of the parser about a value as all others are."""
    text = one_line(error)
    name, value = re.search(r'Parser key "([\w.]+)"', text), re.search(r"(?:Got|Given) value: ?(.*)$", text)
    if name is None or value is None:
        return text
    choices = re.search(r"Literal\[(.*?)\]", text)
    kinds = [_KINDS[kind] for kind in dict.fromkeys(re.findall(r"Expected a <class '(\w+)'>", text)) if kind in _KINDS]
    wanted = f"one of {choices[1]}" if choices else " or ".join(kinds) or "another value"
    return f"Expected --{name[1]} to be {wanted}, found {value[1]!r}. `{PROGRAM} COMMAND --help` explains the options."


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [options]\n\n"
        "Single-cell foundation models of the scGPT family for tables on disk.\n\n"
        f"commands:\n{commands}\n\n"
        f"`{PROGRAM} COMMAND --help` explains a command; `{PROGRAM} --version` prints the version."
    )


def _add_function(parser: ArgumentParser, function: Callable[..., Any], *, skip: set[str]) -> None:
    """Add the parameters of a function as options, described by its docstring."""
    parameters = signature(function).parameters
    left_out: set[str | int] = {*skip}
    for name in (name for name in _FROM_SHELL if name in parameters and name not in skip):
        needed = parameters[name].default is Parameter.empty
        default = {"required": True} if needed else {"default": parameters[name].default}
        parser.add_argument(f"--{name}", type=_FROM_SHELL[name], **default)
        left_out.add(name)
    if "overwrite" in parameters:
        # A word alone, as for tables.
        parser.add_argument("--overwrite", action="store_true")
        left_out.add("overwrite")
    parser.add_function_arguments(function, skip=left_out, as_group=False)
    _, described = _about(function)
    for action in parser._actions:
        if action.dest in described:
            action.help = _HELP.get(action.dest, described[action.dest])


def _about(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a function does, and what each parameter means, as plain text."""
    text = parse(function.__doc__ or "")
    about = "\n\n".join(_plain(part) for part in (text.short_description, text.long_description) if part)
    each = ((name, _plain(entry.description or "")) for entry in text.params for name in entry.arg_name.split(", "))
    return about, dict(each)


def _plain(text: str) -> str:
    """Text without the marks of reStructuredText."""
    text = re.sub(r"\s*:cite:\w+:`[^`]*`", "", text)
    text = re.sub(r":[\w:]+:`~?([^`]+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())


def _with_underscores(words: Sequence[str]) -> list[str]:
    """Let ``--batch-size 8`` stand for ``--batch_size 8``."""
    return [re.sub(r"^--[\w-]+", lambda flag: f"--{flag[0][2:].replace('-', '_')}", word) for word in words]


def _opened(source: str, modality: str | None, *, joint: bool) -> AbstractContextManager[Any]:
    """All modalities of a MuData, or one table."""
    from scgpt_tools.data.stores import open_mudata, open_table  # imports AnnData

    return open_mudata(source) if joint else open_table(source, modality=modality)


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
    _read_tables_of_names(options)
    function(source, target, **options, **chunk)


def _read_tables_of_names(options: dict[str, Any]) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
