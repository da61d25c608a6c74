"""Switch: a setting of the whole process that passes of several threads need at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Switch:
    """A setting that is turned by the first thread that needs it, and turned back by the last one.

    Args:
        turn: function that turns it, and returns the function that turns it back.
    """

    def __init__(self, turn: Callable[[], Callable[[], object]]):
        self._turn, self._users, self._lock = turn, 0, threading.Lock()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Have it turned inside the block."""
        with self._lock:
            if self._users == 0:
                self._back = self._turn()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._back()
