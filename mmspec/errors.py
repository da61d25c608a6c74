"""The exception that users read, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

LONGEST = 2000
"""Number of characters of a message at most. Text from a file may be of any length."""

MOST_OPTIONS = 32
"""Number of names that `did_you_mean` lists at most."""


class MMSpecError(ValueError):
    """An error that the caller can correct. The message names the thing, the value, and the way out.

    The command line prints the message alone, without a traceback, and exits with code 2. The message is one line of at
    most `LONGEST` printable characters, whatever was put into it: line breaks become spaces, control characters are
    escaped, and a longer message loses its middle.
    """

    def __init__(self, message: object = ""):
        super().__init__(cut(printable(str(message)), LONGEST))


def cut(text: str, longest: int) -> str:
    """Return a text of at most `longest` characters: a longer one loses its middle."""
    if len(text) <= longest:
        return text
    mark = f" [{len(text) - longest} characters left out] "
    end = (longest - len(mark)) // 3
    return text[: longest - len(mark) - end] + mark + text[len(text) - end :]


def shown(value: Any, longest: int = 200) -> str:
    """Return the `repr` of a value from a file for an error, with bounded length."""
    try:
        return cut(repr(value), longest)
    except (ValueError, RecursionError):  # an integer of too many digits; nested too deeply
        return f"a {type(value).__name__} too large to print"


def listed(names: Collection[Any], most: int = 8) -> str:
    """Return names as a list of at most `most`, and the number of the others; `none` for none."""
    if not names:
        return "none"
    first = [cut(str(name), 200) for name in sorted(names, key=str)[:most]]
    return f"{first}" + (f" and {len(names) - most} others" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """Return the message of another library's error in one line, or its type's name if it has no message.

    A line that ends with a colon announces the next line, which is then added.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    # Of a KeyError the text is the key alone.
    return cut(f"{type(error).__name__}: {said}" if isinstance(error, KeyError) and error.args else said, 500)


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """Return a hint such as `" Did you mean 'chain'? Available: chain, dynamic."` for an unknown name."""
    options = sorted(options)
    close = difflib.get_close_matches(value[:200], options, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    more = f" and {len(options) - MOST_OPTIONS} others" if len(options) > MOST_OPTIONS else ""
    return f"{hint} Available: {', '.join(options[:MOST_OPTIONS])}{more}." if options else hint


def printable(text: str) -> str:
    """Return a text in one line, without characters that move a terminal's cursor or change its colours."""
    if text.isprintable():
        return text
    text = " ".join(text.splitlines())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
