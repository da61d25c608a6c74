"""Docstrings can be read without the name that they stand under: the mechanical part of the rule in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmspec

PACKAGE = Path(mmspec.__file__).parent
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py")))
"""All modules and packages: each follows the rule."""

CONTINUES_THE_NAME = re.compile(r"(Of|What|Whether|Who|How|So|The same|See)\b")
NO_VERB = re.compile(
    r"(An?|The|All|Every|Each|One|Nothing|No|None|True|False|It|They|Where|When|Why|If|From|With)\b|[`$\d]"
)
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^    ([*\w, ]+): (.+)", re.MULTILINE)
PROPERTIES = {"property", "cached_property", "setter"}

Found = Iterator[tuple[str, ast.AST | None, str | None]]


def documented(body: list[ast.stmt], name: str, public: bool = True) -> Found:
    """Yield name, node and docstring of what has one or needs one; the node of an attribute is None."""
    for before, node in zip([None, *body], body, strict=False):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner, text = f"{name}.{node.name}", ast.get_docstring(node)
            needed = public and (not node.name.startswith("_") or node.name == "__call__")
            if needed or text is not None:
                yield inner, node, text
            yield from documented(node.body, inner, needed and isinstance(node, ast.ClassDef))
        elif isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                yield f"{name}: {ast.unparse(before)[:40]}", None, node.value.value
        elif isinstance(node, ast.If | ast.With | ast.Try | ast.For):
            yield from documented(node.body, name, public)


def is_function(node: ast.AST | None) -> bool:
    """Return True for a function or method that is no property: its docstring begins with a verb."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return not names & PROPERTIES


def faults(source: str, name: str) -> Iterator[str]:
    """Yield a line for everything in a module that breaks the rule."""
    tree = ast.parse(source)
    for where, node, text in [(name, tree, ast.get_docstring(tree)), *documented(tree.body, name)]:
        if text is None:
            yield f"{where} has no docstring"
            continue
        summary = text.split("\n", 1)[0]
        if CONTINUES_THE_NAME.match(text) or (is_function(node) and NO_VERB.match(text)):
            yield f"{where}: {summary}"
        for section in SECTION.findall(text):
            yield from (f"{where}: {arg}: {rest}" for arg, rest in ENTRY.findall(section) if rest.startswith("of "))


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_can_be_read_without_the_name(room):
    files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    assert files
    found = [fault for file in files for fault in faults(file.read_text(), str(file.relative_to(PACKAGE)))]
    assert not found, "\n".join(found)


def test_what_breaks_the_rule_is_found():
    source = '''
"""Of a tree."""
LIMIT = 3
"""Of a tree at most."""
class Tree:
    """A tree.

    Args:
        nodes: of the tree.
        depth: longest path.
    """
    def grow(self):
        """The next level."""
    @property
    def size(self):
        """The number of nodes."""
    def cut(self): ...
    def _prune(self): ...
'''
    assert list(faults(source.strip(), "tree.py")) == [
        "tree.py: Of a tree.",
        "tree.py: LIMIT = 3: Of a tree at most.",
        "tree.py.Tree: nodes: of the tree.",
        "tree.py.Tree.grow: The next level.",
        "tree.py.Tree.cut has no docstring",
    ]
