"""Configuration of the documentation; builds offline."""

from __future__ import annotations

import inspect
import os
import shutil
import warnings
from datetime import date
from importlib import import_module
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Sphinx announces a change to the authors of this extension, who are not the readers of our log.
warnings.filterwarnings("ignore", module="sphinx_autodoc_typehints")

info = metadata("scgpt-tools")
project = info["Name"]
author = "scgpt-tools developers"
copyright = f"{date.today():%Y}, {author}"
version = release = info["Version"]
repository = "https://github.com/scgpt-tools/scgpt-tools"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "scanpydoc.definition_list_typed_field",
    "scanpydoc.elegant_typehints",
]

exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
# The first one is what autosummary writes.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
suppress_warnings = ["etoc.toctree"]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "repository_url": repository,
    "use_repository_button": True,
    "path_to_docs": "docs",
    "use_fullscreen_button": False,
}
# One search, which is in the head of each page: narrow pages have no sidebar.
html_sidebars = {"**": ["navbar-logo.html", "icon-links.html", "sbt-sidebar-nav.html"]}

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are committed with their output; the tests run them.
nb_execution_mode = "off"

# Sphinx reads below this folder only; the notebooks lie where users look for them.
HERE = Path(__file__).parent
for notebook in (HERE.parent / "tutorials").glob("*.ipynb"):
    shutil.copyfile(notebook, HERE / "tutorials" / notebook.name)

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_use_param = True
typehints_defaults = "braces"
always_use_bars_union = True

# Links to other projects need the network, so they are made where the pages are published.
if os.environ.get("READTHEDOCS") == "True":
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

nitpicky = True
# A name of our own must resolve; one of another project can only with the network.
nitpick_ignore_regex = [
    ("py:.*", r"(?!scgpt_tools)[\w]+(\..*)?"),
    # Part of a default value with commas in it, taken for a type.
    ("py:class", r"'.*"),
]
# Bounds of type variables, of no use to a reader.
nitpick_ignore = [("py:class", "scgpt_tools.config.Dataclass")]


def public_paths() -> dict[tuple[str, str], str]:
    """Where each public class is documented, by where it is defined; annotations name the latter."""
    paths = {}
    for package in ("datasets", "metrics", "models", "pl", "pp", "tl", "tokens", "train"):
        module = import_module(f"scgpt_tools.{package}")
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if isinstance(thing, type):
                path = f"scgpt_tools.{package}.{name}"
                paths["py:class", f"{thing.__module__}.{name}"] = ("py:class", path)
    paths["py:class", "scgpt_tools.vocabulary.Vocabulary"] = ("py:class", "scgpt_tools.Vocabulary")
    return paths


qualname_overrides = public_paths()


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where the source of an object is published, for the links beside it."""
    if domain != "py" or not info["module"]:
        return None
    thing = import_module(info["module"])
    for name in info["fullname"].split("."):
        thing = getattr(thing, name, None)
    thing = inspect.unwrap(thing) if callable(thing) else getattr(thing, "fget", thing)
    try:
        file = Path(inspect.getsourcefile(thing) or "").resolve()
        lines, first = inspect.getsourcelines(thing)
    except (TypeError, OSError):
        return None
    source = Path(__file__).resolve().parents[1]
    if not file.is_relative_to(source):
        return None
    return f"{repository}/blob/main/{file.relative_to(source)}#L{first}-L{first + len(lines) - 1}"


def keep_colons(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading the words before a colon as the type of an attribute; our types are annotations."""
    if what in ("attribute", "data", "property") and lines:
        lines[:0] = ["..", ""]  # an empty comment: napoleon looks at the first line only


ROOMS = {
    "pp": "Preprocessing",
    "tl": "Tools",
    "pl": "Plots",
    "get": "Results as tables",
    "train": "Training",
    "models": "Models",
    "datasets": "Data",
    "metrics": "Metrics",
    "tokens": "Tokens",
}
MARK = "% The public names of each room stand here, see conf.py."


def list_public(app: Sphinx, docname: str, source: list[str]) -> None:
    """Every public name with its first line, on the front page of the API."""
    if docname != "api/index":
        return
    blocks = []
    for room, title in ROOMS.items():
        package = import_module(f"scgpt_tools.{room}")
        names = [name for name in sorted(package.__all__) if not isinstance(getattr(package, name), dict)]
        listing = "\n".join(f"   {room}.{name}" for name in names)
        blocks.append(
            f"## {title}: {{doc}}`{room} <{room}>`\n\n```{{eval-rst}}\n.. currentmodule:: scgpt_tools\n\n"
            f".. autosummary::\n   :nosignatures:\n\n{listing}\n```\n"
        )
    assert MARK in source[0]
    source[0] = source[0].replace(MARK, "\n".join(blocks))


def setup(app: Sphinx) -> None:
    app.connect("source-read", list_public)
    # 500 is napoleon's place
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
