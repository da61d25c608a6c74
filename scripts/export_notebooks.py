"""Write every notebook in `examples/` as a script beside it: `python scripts/export_notebooks.py`.

Text becomes comments. What a notebook shows below a cell, the value of its last line, goes through
`mmspec.seeing.show`: trees, plots, pictures and answers are saved to `outputs/NAME/`, the rest is printed. Cells with
the tag `needs-weights` are commented out.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NEEDS_WEIGHTS = "needs-weights"
HEADER = """\
# Made from {name}.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.seeing import show
"""


def cells(notebook: Path) -> list[tuple[str, list[str], str]]:
    """Kind, tags and text of every cell."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in content["cells"]]


def last_expression(code: str) -> tuple[str, str | None]:
    """A cell's code before the value that it shows, and that value's code; None if it shows none."""
    statements = ast.parse(code).body
    if not statements or not isinstance(statements[-1], ast.Expr) or _is_print(statements[-1].value):
        return code, None
    lines = code.splitlines(keepends=True)
    start = statements[-1].lineno - 1
    return "".join(lines[:start]), ast.get_source_segment(code, statements[-1])


def _is_print(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"


def script_of(notebook: Path) -> str:
    """The script of a notebook."""
    parts = [HEADER.format(name=notebook.stem)]
    for number, (kind, tags, text) in enumerate(cells(notebook), start=1):
        if kind == "markdown" or NEEDS_WEIGHTS in tags:
            parts.append("".join(f"# {line}".rstrip() + "\n" for line in text.splitlines()))
            continue
        before, shown = last_expression(text)
        if shown is not None:
            before += f'show({shown}, "outputs/{notebook.stem}/{number:02d}")'
        parts.append(before.rstrip("\n") + "\n")
    return "\n".join(parts)


def main() -> int:
    for notebook in sorted(EXAMPLES.glob("*.ipynb")):
        notebook.with_suffix(".py").write_text(script_of(notebook), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
