"""Imports go down only; see the developer page of the documentation for the drawing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "scgpt_tools"

LAYERS = (
    (
        "vocabulary",
        "config",
        "settings",
        "_keys",
        "_docs",
        "_cpus",
        "_threads",
        "_files",
        "_labels",
        "_lookup",
        "_outputs",
        "_validate",
        "_optional",
        "_plugins",
        "_types",
        "_console",
        "_arguments",
        "_warnings",
    ),
    ("tokens", "metrics"),
    ("nn", "data"),
    ("models", "objectives", "screens"),
    ("train", "inference"),
    ("pp", "tl", "pl", "get", "datasets", "wrappers"),
    ("cli", "deepsc", "demo", "testing", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# AnnData ends where `data` ends: these rooms see arrays and tensors only.
BLIND_TO_ANNDATA = ("tokens", "metrics", "nn", "models", "objectives")
TABLES = {"anndata", "mudata", "scanpy"}


class Import(NamedTuple):
    """One import statement of our own code."""

    path: str
    room: str
    line: int
    target: str
    local: bool
    text: str

    def __str__(self) -> str:
        return f"src/scgpt_tools/{self.path}:{self.line}: {self.text}"


def imports_of(path: Path, source: Path = SOURCE) -> list[Import]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines()
    in_functions = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(node)
    }
    relative = path.relative_to(source)
    room = relative.parts[0].removesuffix(".py")
    return [
        Import(relative.as_posix(), room, node.lineno, target, node in in_functions, _with_comment(lines, node.lineno))
        for node in ast.walk(tree)
        for target in _targets(node)
    ]


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [f"{module}.{alias.name}" for alias in node.names] if module == "scgpt_tools" else [module]
    return []


def _with_comment(lines: list[str], number: int) -> str:
    """The line, after the comment above it if there is one."""
    above, line = lines[number - 2].strip() if number > 1 else "", lines[number - 1].strip()
    return f"{above}  {line}" if above.startswith("#") else line


def climbs(found: Import) -> bool:
    """Whether an import leaves its room in any direction but down; the ground may use itself."""
    package, _, rest = found.target.partition(".")
    if package != "scgpt_tools":
        return package == ""
    room = rest.partition(".")[0]
    if room not in LEVEL:
        return True
    same_ground = LEVEL[found.room] == LEVEL[room] == 0
    return not (room == found.room or same_ground or LEVEL[room] < LEVEL[found.room])


ALL = [found for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or path.name != "__init__.py"
       for found in imports_of(path)]  # fmt: skip


def test_every_module_has_a_layer():
    rooms = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__", "py.typed"} <= set(LEVEL)


def test_imports_go_down_only():
    assert [str(found) for found in ALL if climbs(found)] == []


def names_of(source: Path) -> dict[str, Path]:
    """Our files by the name that imports have for them."""
    paths = {path.relative_to(source.parent).with_suffix("").parts: path for path in source.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in paths.items()}


def neighbours(source: Path) -> dict[str, set[str]]:
    """Which files each file names, those that it imports in functions or for annotations only included."""
    files = names_of(source)
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        statements = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        named = {f"{node.module}.{alias.name}" for node in statements if isinstance(node, ast.ImportFrom)
                 for alias in node.names} | {alias.name for node in statements if isinstance(node, ast.Import)
                 for alias in node.names}  # fmt: skip
        found[name] = {target if target in files else target.rpartition(".")[0] for target in named} & files.keys()
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Files that reach themselves, together with those on their way."""
    reached = {}
    for start in graph:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            name = ahead.pop()
            if name not in seen:
                seen.add(name)
                ahead += graph[name]
        reached[start] = seen
    found = {tuple(sorted(name for name in graph if name in reached[start] and start in reached[name]))
             for start in graph if start in reached[start]}  # fmt: skip
    return sorted(map(list, found))


def test_no_file_reaches_itself():
    """Not even for an annotation: who reads one file of a circle has to read all."""
    assert circles(neighbours(SOURCE)) == []


def test_circles_are_noticed(tmp_path):
    source = tmp_path / "ours"
    (source / "room").mkdir(parents=True)
    (source / "__init__.py").write_text("")
    (source / "room" / "__init__.py").write_text("from ours.room.first import f")
    (source / "room" / "first.py").write_text("from typing import Any\ndef f():\n    from ours.room import second")
    (source / "room" / "second.py").write_text("if True:\n    from ours.other import G")
    (source / "other.py").write_text("from ours.room.first import f")
    assert circles(neighbours(source)) == [["ours.other", "ours.room.first", "ours.room.second"]]


def test_anndata_ends_where_data_ends():
    blind = [found for found in ALL if found.room in BLIND_TO_ANNDATA]
    assert [str(found) for found in blind if found.target.partition(".")[0] in TABLES] == []


def test_local_imports_say_why():
    """An extra comes through ``_optional``; what else is imported inside a function has a comment on it or above it."""
    assert [str(found) for found in ALL if found.local and "# " not in found.text] == []


@pytest.mark.parametrize(
    ("path", "code", "wrong"),
    [
        ("nn/heads.py", "from scgpt_tools.tokens.batch import TokenBatch", False),
        ("nn/heads.py", "from scgpt_tools.nn.output import CellOutput", False),
        ("nn/heads.py", "from scgpt_tools import settings", False),
        ("settings.py", "from scgpt_tools._lookup import absent", False),
        ("nn/heads.py", "from scgpt_tools.data.rows import RowSource", True),
        ("train/fit.py", "from scgpt_tools.inference.runner import RowPlan", True),
        ("nn/heads.py", "def f():\n    import scgpt_tools.models.config", True),
        ("tl/embed.py", "from scgpt_tools import pp", True),
        ("tl/embed.py", "import scgpt_tools", True),
        ("tl/embed.py", "from .embed_genes import embed_genes", True),
        ("vocabulary.py", "from scgpt_tools.tokens import features", True),
    ],
)
def test_the_rule_itself(tmp_path, path, code, wrong):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(code)
    (found,) = imports_of(file, tmp_path)
    assert climbs(found) == wrong
