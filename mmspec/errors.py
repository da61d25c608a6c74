"""The one exception that users are meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MMSpecError(ValueError):
    """Something the caller can put right. The message names the thing, the value, and the way out.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


def first_line(error: Exception) -> str:
    """Return what an error of another library says, in one line; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """Return a hint such as `" Did you mean 'chain'? Available: chain, dynamic."` for an unknown name."""
    options = sorted(options)
    close = difflib.get_close_matches(value, options, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Available: {', '.join(options)}." if options else hint
