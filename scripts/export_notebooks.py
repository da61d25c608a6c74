"""Write every notebook in `examples/` as a script beside it: `python scripts/export_notebooks.py`.

Text becomes comments. What a notebook shows below a cell, the value of its last line, goes through
`mmspec.visualization.show`: trees, plots, pictures and answers are saved to `outputs/NAME/`, the rest is printed.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PARAMETERS = "parameters"
"""The tag of the cell that holds the sizes of a notebook, as papermill knows it."""
HEADER = """\
# Made from {name}.ipynb by scripts/export_notebooks.py: change the notebook instead.
# ruff: noqa
# fmt: off
from mmspec.visualization import show
"""


def cells(notebook: Path) -> list[tuple[str, list[str], str]]:
    """Kind, tags and text of every cell."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [(cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in content["cells"]]


def last_expression(code: str) -> tuple[str, str | None]:
    """A cell's code before the value that it shows, and that value's code as one argument; None if it shows none."""
    statements = ast.parse(code).body
    if not statements or not isinstance(statements[-1], ast.Expr) or _is_print(statements[-1].value):
        return code, None
    *_, last = statements
    lines = code.encode().splitlines(keepends=True)  # the offsets of `ast` count bytes
    before = b"".join(lines[: last.lineno - 1]) + lines[last.lineno - 1][: last.col_offset]
    shown = ast.get_source_segment(code, last)
    # `a, b` is one value at the end of a cell, and two arguments of a call.
    if isinstance(last.value, ast.Tuple) and len(ast.parse(f"f({shown})").body[0].value.args) != 1:
        shown = f"({shown})"
    return before.decode(), shown


def _is_print(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"


def script_of(notebook: Path, parameters: Mapping[str, object] | None = None) -> str:
    """The script of a notebook.

    Args:
        notebook: its file.
        parameters: values in place of those that the notebook has in its cell of parameters.
    """
    parts = [HEADER.format(name=notebook.stem)]
    for number, (kind, tags, text) in enumerate(cells(notebook), start=1):
        if kind == "markdown":
            parts.append("".join(f"# {line}".rstrip() + "\n" for line in text.splitlines()))
            continue
        before, shown = last_expression(text)
        if shown is not None:
            before += f'show({shown}, "outputs/{notebook.stem}/{number:02d}")'
        parts.append(before.rstrip("\n") + "\n")
        if parameters and PARAMETERS in tags:
            parts.append("".join(f"{name} = {value!r}\n" for name, value in parameters.items()))
    return "\n".join(parts)


def main() -> int:
    for notebook in sorted(EXAMPLES.glob("*.ipynb")):
        notebook.with_suffix(".py").write_text(script_of(notebook), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
