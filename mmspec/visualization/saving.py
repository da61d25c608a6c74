"""Saves to files what a notebook would show below a cell, for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FORMS = {".svg": "_repr_svg_", ".png": "_repr_png_", ".html": "_repr_html_"}
"""File endings, and the methods by which an object offers that form to a notebook."""


def show(thing: Any, name: str | Path) -> Path | None:
    """Save an object in the form that a notebook would show, and print where: a tree as SVG, a figure or a picture as
    PNG, an answer as HTML. Print everything else.

    Args:
        thing: object to show.
        name: path of the file without its ending. Its folder is created.

    Returns:
        The file, or None for an object that was printed.
    """
    for ending, method in FORMS.items():
        shown = getattr(thing, method, None)
        if shown is None or (data := shown()) is None:
            continue
        path = Path(f"{name}{ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        print(f"saved {path}")
        return path
    if thing is not None:
        print(thing)
    return None
