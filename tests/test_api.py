"""The face of the package follows one pattern, and the documentation lists all of it."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from scgpt_tools.datasets import available_gene_embeddings
from scgpt_tools.models.zoo import RELEASED

DOCS = Path(__file__).parents[1] / "docs" / "api"
PACKAGES = ("datasets", "get", "metrics", "models", "pl", "pp", "tl", "tokens", "train")
VERBS = ("datasets", "get", "pl", "pp", "tl")


def public(package: str) -> list[str]:
    return sorted(getattr(import_module(f"scgpt_tools.{package}"), "__all__", ()))


def documented(page: Path) -> list[str]:
    """Names in the autosummary blocks of a page, and data described on the page itself."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. autosummary::(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    data = re.findall(r"^\.\. py:data:: (\S+)$", text, flags=re.MULTILINE)
    return [line for line in lines if line and not line.startswith(":")] + data


FUNCTIONS = [
    pytest.param(getattr(import_module(f"scgpt_tools.{package}"), name), id=f"{package}.{name}")
    for package in VERBS
    for name in public(package)
]


def test_the_verbs_that_the_readme_names_are_there():
    assert "tokenize" in public("pp")
    assert {"embed", "embed_genes"} <= set(public("tl"))


@pytest.mark.parametrize("package", PACKAGES)
def test_documentation_lists_what_is_public(package):
    page = DOCS / f"{package}.md"
    names = documented(page) if page.exists() else []
    listed = [name for name in names if re.fullmatch(rf"{package}\.\w+", name)]
    assert sorted(listed) == [f"{package}.{name}" for name in public(package)]


def test_the_types_that_signatures_name_are_explained():
    """Names that are not of other packages, by the table on the page of the ground."""
    explained = re.findall(r"^\| `(\w+)` \|", (DOCS / "ground.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {
        word
        for function in (parameter.values[0] for parameter in FUNCTIONS)
        for entry in inspect.signature(function).parameters.values()
        for word in re.findall(r"\b[A-Z]\w+", str(entry.annotation))
    }
    aliases = {
        "Layers",
        "NameTable",
        "Duplicates",
        "RngLike",
        "CellPooling",
        "AttentionBackend",
        "Unmeasured",
        "Direction",
    }
    assert aliases <= named
    assert aliases <= set(explained)


def test_documentation_lists_the_top_level():
    top_level = {"Vocabulary", "settings.Settings"}
    assert top_level <= set(documented(DOCS / "ground.md"))
    objects = {"scGPTConfig", "scGPTModel", "scGPTPerturbationModel", "PerturbationData"}
    assert objects <= set(documented(DOCS / "wrappers.md"))


def test_user_guide_has_every_released_model():
    page = (DOCS.parent / "user_guide" / "checkpoints.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([^`]+)` \| (?:`([^`]+)`|in the package) \|", page, flags=re.MULTILINE)
    assert {name: repository or None for name, repository in table} == {
        name: model.repository or model.bucket for name, model in RELEASED.items()
    }


def test_user_guide_has_all_embeddings_of_texts():
    page = (DOCS.parent / "user_guide" / "checkpoints.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) ?\| (\d+) \| `([^`]+)` \|$", page, flags=re.MULTILINE)
    wanted = available_gene_embeddings()[["texts", "pooling", "width", "file"]].astype(str)
    assert {name: tuple(facts) for name, *facts in table} == {
        name: tuple(row) for name, row in zip(wanted.index, wanted.to_numpy(), strict=True)
    }


@pytest.mark.parametrize("function", FUNCTIONS)
def test_at_most_three_positional_arguments(function):
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    positional = [kind for kind in kinds if kind is not inspect.Parameter.KEYWORD_ONLY]
    assert len(positional) <= 3
    assert not {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} & set(kinds)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_is_described(function):
    text = inspect.getdoc(function) or ""
    _, _, section = text.partition("\nParameters\n----------\n")
    described = re.findall(r"^(\w[\w, ]*)$", section.partition("\nReturns\n")[0], flags=re.MULTILINE)
    names = [name.strip() for line in described for name in line.split(",")]
    assert names == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_are_described(function):
    text = inspect.getdoc(function) or ""
    assert "\nReturns\n-------\n" in text
    assert not re.search(r"^\s*\{\w+\}\s*$", text, flags=re.MULTILINE), "a shared paragraph was not filled in"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_types_are_in_the_signature(function):
    signature = inspect.signature(function)
    bare = [name for name, parameter in signature.parameters.items() if parameter.annotation is parameter.empty]
    assert bare == []
    assert signature.return_annotation is not signature.empty
