"""The waiting line: so many questions are answered at once, some more wait, and each knows how many are before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MMSpecError


class Place:
    """One question's place in the line."""

    def __init__(self, line: Line):
        self._line = line
        self.shared = False
        """Whether another question was answered at the same time, so that its times are those of a shared machine."""

    @property
    def before(self) -> int:
        """Questions that have to end before this one begins; 0 once it is its turn."""
        with self._line.changed:
            return self._line.before(self)

    def wait(self, seconds: float) -> None:
        """Wait until somebody left the line, or for so long."""
        with self._line.changed:
            if self._line.before(self):
                self._line.changed.wait(seconds)


class Line:
    """First come, first served.

    Args:
        at_once: questions that are answered at the same time.
        waiting: questions that may wait beside them.
    """

    def __init__(self, at_once: int = 1, waiting: int = 8):
        if at_once < 1 or waiting < 0:
            raise MMSpecError(f"at_once={at_once} must be 1 or more, and waiting={waiting} 0 or more")
        self.at_once, self.waiting = at_once, waiting
        self.changed = threading.Condition()
        self._places: list[Place] = []

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place at the end of the line, which is left with the block.

        Raises:
            MMSpecError: if the line is full.
        """
        place = Place(self)
        with self.changed:
            if len(self._places) >= self.at_once + self.waiting:
                raise MMSpecError(
                    f"{self.waiting} questions are waiting already, and no more may: ask again in a moment, or start "
                    f"the page with a larger waiting= than {self.waiting}"
                )
            self._places.append(place)
            self._meet()
        try:
            yield place
        finally:
            with self.changed:
                self._places.remove(place)
                self._meet()
                self.changed.notify_all()

    def before(self, place: Place) -> int:
        """How many have to end before a place is served; the caller holds `changed`."""
        return max(0, self._places.index(place) + 1 - self.at_once)

    def _meet(self) -> None:
        """Note who is served beside others."""
        served = self._places[: self.at_once]
        if len(served) > 1:
            for place in served:
                place.shared = True

    def __len__(self) -> int:
        """Questions in the line, those that are being answered among them."""
        with self.changed:
            return len(self._places)
