"""Reading files that may come from anywhere: only regular files, one line for what is wrong, only printable texts."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MMSpecError, first_line, printable
from ..files.storage import whole_lines


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        MMSpecError: if it is no regular file (a pipe or a device would never end), or cannot be read.
    """
    with _reading(path):
        return path.read_text(encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        MMSpecError: if it holds none, is no regular file, or cannot be read.
    """
    text = read_text(path)
    if not text:
        raise MMSpecError(f"{path} is empty: the run that wrote it was killed, or its disk was full")
    value = _parsed(text, f"{path}")
    if not isinstance(value, dict):
        raise MMSpecError(f"{path} cannot be read: it holds no JSON object")
    return value


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines, without a last line that was torn; none if there is no file.

    Raises:
        MMSpecError: for a line that is no JSON, or a file that is no regular one or cannot be read.
    """
    if not path.exists():
        return
    with _reading(path):
        lines = whole_lines(path)
    for number, line in enumerate(lines, start=1):
        yield _parsed(line, f"{path}, line {number}")


def clean(value: Any, but: Collection[str] = ()) -> Any:
    """Return a JSON value of which a terminal can show every text: control characters are written out.

    Args:
        value: any JSON value.
        but: keys of a mapping whose values stay as they are.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [clean(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): one if key in but else clean(one) for key, one in value.items()}
    return value


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise MMSpecError(
            f"{where} is not JSON: the file was changed, cut, or the disk failed ({reason[:200]})"
        ) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse what is no regular file, and say in one line what else fails within."""
    if path.exists() and not path.is_file():
        raise MMSpecError(f"{path} is no regular file, and is not read")
    try:
        yield
    except OSError as error:
        raise MMSpecError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise MMSpecError(f"{path} cannot be read: it is not in UTF-8") from None
