"""The import graph of the package: no cycle, whether the imports are at the top, in functions or for types alone; and
all that a module offers is there."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import mmspec

PACKAGE = Path(mmspec.__file__).parent

Graph = Mapping[str, set[str]]


def modules(folder: Path) -> dict[str, Path]:
    """All modules of a package by name, such as `mmspec.trees.chain`; a package goes by its own name."""
    files = {file: file.relative_to(folder.parent).with_suffix("").parts for file in sorted(folder.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): file for file, parts in files.items()}


def imported(name: str, file: Path) -> Iterator[tuple[str, ...]]:
    """For every name that a module imports, where it may come from, the most precise first."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{source}.{alias.name}", source) for alias in node.names)


def graph_of(folder: Path) -> Graph:
    """Module to the modules of the same package that it imports."""
    found = modules(folder)
    graph = {}
    for name, file in found.items():
        sources = (next((one for one in ways if one in found), None) for ways in imported(name, file))
        graph[name] = {source for source in sources if source not in (None, name)}
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in numbers:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == numbers[name]:
            start = stack.index(name)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in numbers:
            visit(name)
    return found


def test_all_names_that_a_module_offers_are_there():
    offering = [name for name, file in modules(PACKAGE).items() if "__all__ = [" in file.read_text(encoding="utf-8")]
    assert "mmspec.drafters.reference" in offering
    for name in offering:
        module = importlib.import_module(name)
        assert [one for one in module.__all__ if not hasattr(module, one)] == [], name


def test_no_module_imports_itself_through_others():
    graph = graph_of(PACKAGE)
    assert "mmspec.trees.growth" in graph["mmspec.drafters.step"]
    assert cycles(graph) == []


def test_a_cycle_is_seen_wherever_its_imports_are(tmp_path):
    package = tmp_path / "some"
    (package / "room").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "room/__init__.py": "from .one import One",
        "room/one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..two import Two",
        "two.py": "def late():\n    from .three import x",
        "three.py": "import some.room",
        "four.py": "from . import two",
    }.items():
        (package / name).write_text(text)
    assert cycles(graph_of(package)) == [["some.room", "some.room.one", "some.three", "some.two"]]
