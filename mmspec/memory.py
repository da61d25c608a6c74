"""Memories of drafters and builders, which last from one request to the next, and how they are put back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .per_request import CONTAINERS, holds_some


class Memory(ABC):
    """Knowledge of earlier requests from which later ones draft. Copies for a request share it.

    Whoever asks a question several times to time the answer puts it back first (`unchanged`): a drafter that has once
    written an answer would otherwise only look it up.
    """

    @abstractmethod
    def state(self) -> Any:
        """Return a copy of all that is remembered."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Remember what `state` returned, and nothing else."""


class Memories:
    """All memories that some objects hold, as they are now.

    Args:
        objects: drafters, builders, verifiers; None for nothing. What they hold at any depth is looked at, as far as
            `PerRequest.fork` goes.
    """

    def __init__(self, *objects: Any):
        seen: dict[int, Any] = {}
        self._states = [(memory, memory.state()) for each in objects for memory in _found(each, seen)]

    def restore(self) -> None:
        """Put all of them back."""
        for memory, state in self._states:
            memory.restore(state)


@contextmanager
def unchanged(*objects: Any) -> Iterator[None]:
    """Put the memories of some objects back behind the block, see `Memories`."""
    memories = Memories(*objects)
    try:
        yield
    finally:
        memories.restore()


def _found(value: Any, seen: dict[int, Any]) -> Iterator[Memory]:
    """Yield the memories that an object holds, each once; `seen` keeps what was looked at alive, so that no number
    comes twice."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Memory):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _found(part, seen)
    elif type(value) in CONTAINERS:
        for part in value:
            yield from _found(part, seen)
    elif holds_some(value):
        yield from _found(vars(value), seen)
