"""Run a generator to its end for the value that it returns, as the output of a stream is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def drain(generator: Generator[Item, None, Result], each: Callable[[Item], object] | None = None) -> Result:
    """Run a generator to its end and return the value that it returns.

    Args:
        generator: generator that may have been advanced before, such as `mmspec.stream(...)`.
        each: function that is called with every item, as soon as it is there.
    """
    while True:
        try:
            item = next(generator)
        except StopIteration as end:
            return end.value
        if each is not None:
            each(item)
