"""The caches of keys and values that something holds, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .cache import TreeCache

PACKAGE = __name__.partition(".")[0]


def caches_in(holder: Any) -> list[TreeCache]:
    """Return every cache that an object holds, each once: in its attributes, and in those of the modules, sessions and
    other objects of mmspec that it holds.

    Models of transformers and what they consist of are not looked into: they hold no cache of a request.
    """
    return [*dict.fromkeys(_caches(holder, set()))]


def _caches(value: Any, seen: set[int]) -> Iterator[TreeCache]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, TreeCache):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _caches(one, seen)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for one in value:
            yield from _caches(one, seen)
    elif type(value).__module__.partition(".")[0] == PACKAGE and hasattr(value, "__dict__"):
        for one in vars(value).values():
            yield from _caches(one, seen)
