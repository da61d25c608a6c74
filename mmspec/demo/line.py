"""Waiting line: a fixed number of questions are answered at once, some more wait, and each knows its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MMSpecError


class WaitingPlace:
    """The place of one question in the line."""

    def __init__(self, line: WaitingLine):
        self._line = line
        self.shared = False
        """True if another question was answered at the same time, so that the measured times are those of a shared
        machine."""

    @property
    def before(self) -> int:
        """Number of questions that have to end before this one begins; 0 once it is its turn."""
        with self._line.changed:
            return self._line.before(self)

    def wait(self, seconds: float) -> None:
        """Wait until a question leaves the line, or at most so many seconds."""
        with self._line.changed:
            if self._line.before(self):
                self._line.changed.wait(seconds)


class WaitingLine:
    """A waiting line in which the first to come is the first to be served.

    Args:
        at_once: number of questions that are answered at the same time.
        waiting: number of further questions that may wait.
    """

    def __init__(self, at_once: int = 1, waiting: int = 8):
        if at_once < 1 or waiting < 0:
            raise MMSpecError(f"at_once={at_once} must be 1 or more, and waiting={waiting} 0 or more")
        self.at_once, self.waiting = at_once, waiting
        self.changed = threading.Condition()
        self._places: list[WaitingPlace] = []

    @contextmanager
    def place(self) -> Iterator[WaitingPlace]:
        """Yield a place at the end of the line; leaving the block leaves the line.

        Raises:
            MMSpecError: if the line is full.
        """
        place = WaitingPlace(self)
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

    def before(self, place: WaitingPlace) -> int:
        """Return the number of questions that have to end before a place is served; the caller holds `changed`."""
        return max(0, self._places.index(place) + 1 - self.at_once)

    def _meet(self) -> None:
        """Mark the places that are served at the same time as others."""
        served = self._places[: self.at_once]
        if len(served) > 1:
            for place in served:
                place.shared = True

    def __len__(self) -> int:
        """Return the number of questions in the line, with those that are being answered."""
        with self.changed:
            return len(self._places)
