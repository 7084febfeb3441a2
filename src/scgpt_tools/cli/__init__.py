"""The public functions as commands; flags and help come from their signatures and docstrings.

A function is imported when its command runs, so ``scgpt-tools --help`` answers at once.  Results go to files or to
standard output; what is logged, warnings, progress and errors go to standard error.
"""

from __future__ import annotations

from scgpt_tools.cli.command import Command
from scgpt_tools.cli.commands import COMMANDS, OTHER_NAMES
from scgpt_tools.cli.program import main, main_scmodelforge

__all__ = ["COMMANDS", "OTHER_NAMES", "Command", "main", "main_scmodelforge"]
