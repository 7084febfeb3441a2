"""Importing the package is cheap, and its names are there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

import scgpt_tools

HEAVY = ("anndata", "lightning", "matplotlib", "mudata", "numba", "numpy", "pandas", "scanpy", "torch")


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, scgpt_tools; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", scgpt_tools.__all__)
def test_public_names_resolve(name):
    assert name in dir(scgpt_tools)
    assert getattr(scgpt_tools, name) is not None


@pytest.mark.parametrize(
    "name", [name for name in scgpt_tools.__all__ if isinstance(getattr(scgpt_tools, name), ModuleType)]
)
def test_completion_offers_what_is_public_and_nothing_else(name):
    package = getattr(scgpt_tools, name)
    assert dir(package) == sorted(package.__all__)
    assert "annotations" not in dir(package)
    assert dir(scgpt_tools) == sorted(scgpt_tools.__all__)


def test_tables_of_genes_are_attributes_in_a_fresh_process():
    code = "import scgpt_tools as sct; print(sct.tokens.orthologs.__name__, sct.tokens.gene_lists.orthologs.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["scgpt_tools.tokens.orthologs", "orthologs"]


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'tools'"):
        _ = scgpt_tools.tools


def test_version_is_the_one_of_the_project_file():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert scgpt_tools.__version__ == project["project"]["version"]


def test_types_are_shipped():
    assert (files("scgpt_tools") / "py.typed").is_file()
