"""The programs: find the command, read its words, run it, and say in one line what a user can mend."""

from __future__ import annotations

import os
import re
import select
import sys
import traceback
from argparse import ArgumentError
from importlib.metadata import version
from typing import TYPE_CHECKING

from scgpt_tools._console import ended_by_signal, messages, one_line
from scgpt_tools._lookup import lookup
from scgpt_tools.cli import scmodelforge
from scgpt_tools.cli.command import PROGRAM
from scgpt_tools.cli.commands import COMMANDS, OTHER_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACEBACK_VARIABLE = "SCGPT_TOOLS_TRACEBACK"

# What users can cause and mend; anything else is a bug and ends in a traceback.
_USER_ERRORS = (ArgumentError, ValueError, KeyError, TypeError, OSError, ImportError)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Run a command line.

    Parameters
    ----------
    arguments
        The words after the program's name; ``None`` takes those of this process.
    program
        Its name.

    Returns
    -------
    Exit status: 0, 2 after an error of the user, 130 after an interrupt, 141 where nobody reads on what is printed.
    """
    try:
        try:
            status = _run(arguments, program)
        finally:
            # Nobody could say what goes wrong with it after this.
            sys.stdout.flush()
    except BrokenPipeError:
        # As programs end by the signal of a closed pipe, `| head` say; what is left is not tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(arguments: Sequence[str] | None, program: str) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview(program), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(program, version(PROGRAM))
        return 0
    try:
        scmodelforge.check_command(words[0])
        command = lookup(COMMANDS, OTHER_NAMES.get(words[0], words[0]), "command")
        # Read within, for what is warned about settings is a message like others.
        with messages(quiet="--quiet" in words), ended_by_signal():
            options = command.read(words[0], words[1:], program=program)
            for name in ("quiet", "traceback"):
                options.pop(name)
            command.run(options)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _is_cut_off():
            raise
        if "--traceback" in words or os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(f"{program} {words[0]}: error: {_in_our_words(error)}", file=sys.stderr)
        return 2
    return 0


def _is_cut_off() -> bool:
    """Whether nobody reads what is printed; a broken connection to elsewhere is another matter."""
    if not hasattr(select, "poll"):
        return False
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


def main_scmodelforge() -> int:
    """Run a command line of the program ``scmodelforge``: the same commands, files in its words by default."""
    return main(program=scmodelforge.PROGRAM)


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


def _overview(program: str) -> str:
    width = max(map(len, COMMANDS))
    others: dict[str, list[str]] = {}
    for other, name in OTHER_NAMES.items():
        others.setdefault(name, []).append(other)
    commands = "\n".join(
        f"  {name:{width}}  {command.summary}{''.join(f' (also: {other})' for other in others.get(name, ()))}"
        for name, command in COMMANDS.items()
    )
    return (
        f"usage: {program} COMMAND [options]\n\n"
        "Single-cell foundation models of the scGPT family for tables on disk.\n\n"
        f"commands:\n{commands}\n\n"
        "Every command takes options from a file, `--config file.yaml`, and shows all of them with `--print_config`.\n"
        f"`{program} COMMAND --help` explains a command; `{program} --version` prints the version."
    )
