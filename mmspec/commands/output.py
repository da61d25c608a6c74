"""Result file of a command, `--output FILE`: checked before anything is loaded, written when the result is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..files.storage import atomic_write_text

HELP = "also write {what} there: as JSON with all figures if it ends in .json, else as text"
"""Text of `--help` about the flag."""


def output_file(given: str | None) -> Path | None:
    """Return the path of a result; None where none is wanted.

    Raises:
        MMSpecError: if nothing can be written there.
    """
    if given is None:
        return None
    path = Path(given).expanduser()
    if path.is_dir():
        raise MMSpecError(f"--output {given} is a folder; name a file, such as {path / 'result.json'}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "may not be written to" if above.is_dir() else "is no folder"
        raise MMSpecError(f"--output {given}: {str(above)!r} {reason}; choose another place")
    return path


def write_result(path: Path | None, text: str, values: Any) -> None:
    """Write a result as a whole file, and create its folder.

    Args:
        path: result of `output_file`; None writes nothing.
        text: the result as text.
        values: the result with all figures, for a file that ends in `.json`.

    Raises:
        MMSpecError: if it cannot be written.
    """
    if path is None:
        return
    content = json.dumps(values, indent=1) + "\n" if path.suffix.lower() == ".json" else text.rstrip("\n") + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, content)
    except OSError as error:
        raise MMSpecError(f"--output {path} cannot be written: {error.strerror or error}") from error
