"""Shared docstring paragraphs, and pages that say what the code says."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import reduce
from pathlib import Path

import pytest

import scgpt_tools
from scgpt_tools._docs import PARAGRAPHS, shared_docs
from scgpt_tools.cli import COMMANDS, OTHER_NAMES, configs, dialects
from scgpt_tools.train.pretrain import read_config

ROOT = Path(__file__).parents[1]
BUILT = {"generated", "_build"}
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if not BUILT & set(path.parts))]


def blocks(page: Path, language: str) -> list[str]:
    """Code of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def calls_of_ours(code: str) -> list[tuple[str, ast.Call]]:
    """Calls such as ``sct.tl.embed(...)`` with their dotted names."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [(name, call) for call in calls if (name := ast.unparse(call.func)).startswith("sct.")]


EXAMPLES = [
    pytest.param(name, call, id=f"{page.stem}: {ast.unparse(call)[:100]}")
    for page in PAGES
    for code in blocks(page, "python")
    for name, call in calls_of_ours(code)
]


@pytest.mark.parametrize(("name", "call"), EXAMPLES)
def test_examples_on_pages_call_what_is_there(name, call):
    function = reduce(getattr, name.split(".")[1:], scgpt_tools)
    inspect.signature(function).bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})


def test_names_on_pages_exist():
    """Both in running text and in tables: `tl.embed`, {func}`~scgpt_tools.tl.embed`."""
    packages = "|".join(name for name in scgpt_tools.__all__ if name.islower() and name != "settings")
    pattern = rf"`(?:sct\.)?({packages})\.(\w+)(?:\(\))?`|scgpt_tools\.({packages})\.(\w+)`"
    named = {
        (found[0] or found[2], found[1] or found[3], page.name)
        for page in PAGES
        for found in re.findall(pattern, page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [place for place in sorted(named) if not hasattr(getattr(scgpt_tools, place[0]), place[1])] == []


COMMAND_LINES = sorted(
    {
        line
        for page in PAGES
        for line in re.findall(
            r"(?:^\$ |`)scgpt-tools ([\w-]+ [^`\n]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        if "--help" not in line
    }
)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_lines_on_pages_are_understood(line):
    name, *words = re.sub(r" --(config|\w+\.[\w.]+)[ =]\S+", "", line).split()
    name = OTHER_NAMES.get(name, name)
    parser = COMMANDS[name].parser(name)
    words = dialects.in_our_words(name, configs.divide(words).words, {action.dest for action in parser._actions})
    assert parser.parse_args(words).quiet is False


def test_the_page_on_commands_has_all_of_them():
    page = (ROOT / "docs" / "user_guide" / "command_line.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE) == list(COMMANDS)


def test_the_configuration_on_the_page_on_training_is_read(tmp_path):
    (text,) = blocks(ROOT / "docs" / "user_guide" / "training.md", "yaml")
    (tmp_path / "run.yaml").write_text(text)
    assert read_config(tmp_path / "run.yaml").data.layer == "counts"


def test_relative_links_of_the_front_page_lead_somewhere():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_paragraphs_take_the_indentation_of_their_place():
    @shared_docs
    def task(adata, *, layer=None):
        """Do something.

        Parameters
        ----------
        adata
            Cells in a dict such as {layer}.
        {layer}
        """

    first, *rest = PARAGRAPHS["layer"].splitlines()
    # From Python 3.13 on the compiler takes the indentation of docstrings away.
    place = " " * (8 if sys.version_info < (3, 13) else 0)
    assert f"{place}{first}\n{place}{rest[0]}\n" in task.__doc__
    assert "such as {layer}." in task.__doc__


def test_an_unknown_paragraph_is_an_error():
    def task():
        """Do something.

        {lair}
        """

    with pytest.raises(ValueError, match="Did you mean 'layer'"):
        shared_docs(task)
