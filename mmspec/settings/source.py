"""Settings of a class as its source states them, without importing it: `--help` answers at once.

A class that takes a dataclass of settings names it, `Settings = EagleSettings`. Its fields are then settings of the
class, and the first sentence that the dataclass says of one under `Args:` describes it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"^    ([\w, ]+): (.+(?:\n        .+)*)", re.MULTILINE)
WORDS = {"True": "true", "False": "false", "None": "null", "field(default_factory=dict)": "{}"}


class StatedSetting(NamedTuple):
    """One setting of a class.

    Args:
        default: its default value as a configuration writes it; empty where the source does not tell.
        description: what is said of it.
    """

    default: str
    description: str


class Place(NamedTuple):
    """A class in a module."""

    module: str
    node: ast.ClassDef


@cache
def stated_settings(path: str) -> dict[str, StatedSetting]:
    """Return the fields of the dataclass of settings of a class, those of its bases first; none if it has none.

    Args:
        path: path of the class, such as `mmspec.drafters.EagleDrafter`.
    """
    module, _, name = path.rpartition(".")
    for place in _with_bases(_find(module, name)):
        for node in place.node.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "Settings":
                return _fields(_find(place.module, ast.unparse(node.value)))
    return {}


def _fields(place: Place | None) -> dict[str, StatedSetting]:
    found: dict[str, StatedSetting] = {}
    for each in reversed(list(_with_bases(place))):
        said = _arguments(each.node)
        for node in each.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                written = "" if node.value is None else ast.unparse(node.value)
                name, default = node.target.id, WORDS.get(written, written.strip("'"))
                before = found.get(name, StatedSetting("", ""))
                found[name] = StatedSetting(default, said.get(name, before.description))
    return found


def _arguments(node: ast.ClassDef) -> dict[str, str]:
    """Return the first sentence of every entry under `Args:` in the docstring of a class."""
    _, _, section = (ast.get_docstring(node) or "").partition("\nArgs:\n")
    section = re.split(r"\n\n|\n(?=\w)", section)[0]
    entries = ((names, " ".join(text.split()).partition(". ")[0].rstrip(".")) for names, text in ENTRY.findall(section))
    return {name.strip(): text for names, text in entries for name in names.split(",")}


def _with_bases(place: Place | None) -> Iterator[Place]:
    """Yield a class and its bases, as far as their source is found, in the order in which names are looked up."""
    if place is not None:
        yield place
        for base in place.node.bases:
            yield from _with_bases(_find(place.module, ast.unparse(base)))


def _find(module: str, name: str) -> Place | None:
    """Return the class of a name in a module, from wherever the module imports it."""
    found = _source(module)
    if found is None:
        return None
    tree, package = found
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Place(module, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    parents = package.split(".")
                    start = parents[: len(parents) + 1 - node.level] if node.level else []
                    return _find(".".join([*start, *([node.module] if node.module else [])]), alias.name)
    return None


@cache
def _source(module: str) -> tuple[ast.Module, str] | None:
    """Return the source of a module, and the package that its relative imports begin from."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a package inside it would import what is around
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inner) if spec.submodule_search_locations else Path(spec.origin)
    inside = place.is_dir()
    file = place / "__init__.py" if inside else place.with_suffix(".py")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    return tree, module if inside else module.rpartition(".")[0]
