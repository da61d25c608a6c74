"""What a notebook shows below a cell, as files: for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FORMS = {".svg": "_repr_svg_", ".png": "_repr_png_", ".html": "_repr_html_"}
"""How objects say that they can be shown: the protocol of notebooks."""


def show(thing: Any, name: str | Path) -> Path | None:
    """Show an object as a notebook would: save a tree as SVG, a figure or a picture as PNG, an answer as HTML, say
    where, and print everything else.

    Args:
        thing: to be shown.
        name: of the file, without its ending. Its folder is made.

    Returns:
        The file, or None for what was printed.
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
