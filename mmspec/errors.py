"""The one exception that users are meant to read, and what its messages are made of."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

LONGEST = 2000
"""Characters of a message. What comes from a file may be of any length."""

MOST_OPTIONS = 32
"""Names that `did_you_mean` lists at most."""


class MMSpecError(ValueError):
    """Something the caller can put right. The message names the thing, the value, and the way out.

    The command line prints the message alone, without a traceback, and exits with code 2. It is one line of at most
    `LONGEST` printable characters, whatever was put into it: line breaks become spaces, control characters are
    escaped, and of one that is longer the middle is left out.
    """

    def __init__(self, message: object = ""):
        super().__init__(cut(printable(str(message)), LONGEST))


def cut(text: str, longest: int) -> str:
    """Return a text of at most so many characters: the middle of a longer one is left out."""
    if len(text) <= longest:
        return text
    mark = f" [{len(text) - longest} characters left out] "
    end = (longest - len(mark)) // 3
    return text[: longest - len(mark) - end] + mark + text[len(text) - end :]


def shown(value: Any, longest: int = 200) -> str:
    """Return a value from a file as an error shows it: its `repr`, of bounded length."""
    try:
        return cut(repr(value), longest)
    except (ValueError, RecursionError):  # an integer of too many digits; nested too deeply
        return f"a {type(value).__name__} too large to print"


def listed(names: Collection[Any], most: int = 8) -> str:
    """Return names as a list of at most so many, and how many there are besides; `none` for none."""
    if not names:
        return "none"
    first = [cut(str(name), 200) for name in sorted(names, key=str)[:most]]
    return f"{first}" + (f" and {len(names) - most} others" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, in one line; its type's name if it says nothing.

    A line that ends with a colon announces what follows it: the next line then belongs to it.
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
    """A text in one line, in which nothing moves a terminal's cursor or changes its colours."""
    if text.isprintable():
        return text
    text = " ".join(text.splitlines())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
