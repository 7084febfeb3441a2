"""Commands that train: from scratch by a file of settings, and for a task."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from docstring_parser import parse_from_object

from scgpt_tools.cli import configs, scmodelforge
from scgpt_tools.cli.command import PROGRAM, Command, check_words, names_of, resolved
from scgpt_tools.cli.options import add_function, plain, read_tables_of_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jsonargparse import ArgumentParser

# Not __name__, as in the other commands.
logger = logging.getLogger("scgpt_tools.cli")

RUN = "run"
"""Folder of checkpoints and history within that of a model."""
_OTHER_SECTIONS = {"model": "family"}


@dataclass(frozen=True)
class PretrainCommand(Command):
    """Pre-training, whose settings are those of a file, one by one or as a whole."""

    def add_config(self, parser: ArgumentParser) -> None:
        """Add the file and what shows it; they are read before the parser sees the words."""
        parser.add_argument("--config", help="YAML file of settings; a key that does not exist is refused.")
        parser.add_argument("--print_config", action="store_true", help="Print all settings as a file, and stop.")

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the folders, and describe the settings."""
        add_function(parser, function, skip={"config"})
        parser.add_argument(
            "--resume",
            nargs="?",
            const=True,
            default=False,
            help="Go on from the last checkpoint of the run, or from the one named, if it is there; else begin.",
        )
        settings = "\n\n".join(f"  --{name}  {text}" for name, text in _described(_settings()))
        parser.epilog = f"settings, of the file or one by one:\n\n{settings}"

    def read(self, name: str, words: Sequence[str], *, program: str = PROGRAM) -> dict[str, Any]:
        """Options and, as ``config``, the settings."""
        from scgpt_tools.config import from_dict  # imports NumPy

        parser, kind = self.parser(name, program=program), _settings()
        sections = {field.name for field in fields(kind)}
        # The parser would show its own options.
        shows = {"--print_config", "--print-config"} & {*words}
        dotless = {*sections, *_OTHER_SECTIONS, *scmodelforge.SECTIONS} - names_of(parser)
        given = configs.divide([word for word in words if word not in shows], dotless)
        scmodelforge.check_flags(given, names_of(parser))
        check_words(name, given.words, names_of(parser) | sections)
        given = scmodelforge.in_our_words("pretrain", given, known=sections, foreign=program != PROGRAM)
        for other, section in _OTHER_SECTIONS.items():
            if isinstance(given.settings.get(other), dict):
                own = {other: given.settings.pop(other)}
                given.settings = configs.merged(given.settings, {section: own[other]})
        options: dict[str, Any] = parser.parse_args(given.words).as_dict()
        config = from_dict(kind, configs.merged(given.settings, _resuming(options.pop("resume"))))
        options.pop("print_config")
        if shows:
            print(as_yaml(config))
            raise SystemExit(0)
        return {**options, "config": config}

    def run(self, options: dict[str, Any]) -> None:
        """Train, and say what was written."""
        config = options["config"]
        self.resolve()(**options)
        place = Path(options["output"] or config.output)
        run = config.train.folder or place / RUN
        logger.info("Wrote the model to %s, its checkpoints and its history (history.csv) to %s.", place, run)


@dataclass(frozen=True)
class FinetuneCommand(Command):
    """Fine-tuning for any task: options are the arguments of the function, and those not named are the task's."""

    def add_arguments(self, parser: ArgumentParser, function: Callable[..., Any]) -> None:
        """Add the files, and what the function takes."""
        parser.add_argument(
            "input",
            help="Cells to learn from: a table in .h5ad, .h5mu or .zarr, or the name of a data set (see "
            "sct.datasets). It is read into memory unless --sampling is blocks.",
        )
        parser.add_argument(
            "-o",
            "--output",
            required=True,
            help=f"Folder for the model, its history (history.csv), its checkpoints ({RUN}) and, of perturbations, its scores "
            "(scores.csv).",
        )
        parser.add_argument("--overwrite", action="store_true", help="Replace a model in the output folder.")
        add_function(parser, function, skip={"adata", "config", "callbacks"}, optional=True)
        group = parser.add_argument_group("perturbations")
        group.add_argument(
            "--model_type",
            help="Model type of scGenePT, such as scgenept_go_c_gpt_concat; none fine-tunes the model as it is.",
        )
        group.add_argument(
            "--gene_embeddings",
            help="File or folder with the embeddings of the model type's texts; none fetches the published ones by name.",
        )
        group.add_argument(
            "--missing",
            choices=("mask", "draw"),
            help="Genes without a text: mask (the default) has the texts add nothing to them, draw gives them random rows, as "
            "scGenePT.",
        )
        group.add_argument("--frozen", action="store_true", help="Hold the tables of texts and train their map alone.")
        group.add_argument(
            "--rank", type=int, default=0, help="With --frozen, train a correction of this rank to the tables."
        )
        group.add_argument(
            "--compat",
            choices=("upstream",),
            help="upstream builds what scGenePT builds under the model type, with its tables for the genes of the cells.",
        )

    def run(self, options: dict[str, Any]) -> None:
        """Train, save, score perturbations, and say what was written."""
        read_tables_of_names(options)
        resolved("scgpt_tools.cli.finetuning:finetune_files")(self.resolve(), options)


def as_yaml(config: Any) -> str:
    """Settings as a file has them."""
    from scgpt_tools.config import to_dict  # imports NumPy

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True).rstrip()


def _settings() -> type[Any]:
    """What a file of settings for pre-training holds."""
    from scgpt_tools.train.pretrain import PretrainConfig  # imports torch

    return PretrainConfig


def _described(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of settings and what they mean; what is one of several kinds is described as a whole."""
    from scgpt_tools.config import OneOf, hints_of  # imports NumPy

    texts = {entry.arg_name: plain(entry.description or "") for entry in parse_from_object(kind).params}
    cls: Any = kind
    hints: dict[str, Any] = hints_of(cls)
    for field in fields(kind):
        hint = hints[field.name]
        inner: Any = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if inner is not None and not issubclass(inner, OneOf):
            yield from _described(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", texts.get(field.name, "")


def _resuming(checkpoint: Any) -> dict[str, Any]:
    """Settings of a run that goes on: from its last checkpoint (``True``), or from a file."""
    if isinstance(checkpoint, bool):
        return {} if not checkpoint else {"train": {"resume": True}}
    path = Path(str(checkpoint))
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint to go on from at '{path}', found none.")
    if path.name != "last.ckpt":
        raise ValueError(
            f"Expected last.ckpt, which a run goes on from, found '{path}'. Other checkpoints hold weights only; start from "
            "those with `scgpt-tools finetune --model`."
        )
    return {"train": {"resume": True, "folder": str(path.parent)}}
