"""The drafter's side of a round: `Drafter.anticipate` runs beside the pass that scores the draft before."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import torch


class OtherSide:
    """The work of a drafter while the target is busy: in a thread of its own, the same one for a whole request, or,
    where the two sides take turns, in the caller's as soon as the target is done.

    One piece of work at a time is begun (`begin`), goes on (`take_turn`, where it has waited for the target), and is
    waited for (`join`).

    Args:
        in_turn: True for two sides that take turns, as on one device that is busy with either.
    """

    def __init__(self, in_turn: bool = False):
        self.in_turn = in_turn
        self._executor: ThreadPoolExecutor | None = None
        self._work: Callable[[], float] | None = None
        self._running: Future[float] | None = None
        self._seconds = 0.0

    def begin(self, work: Callable[[], None]) -> None:
        """Begin some work, unless the sides take turns.

        Args:
            work: what the drafter does. It reads nothing that the target's side writes meanwhile.
        """

        @torch.inference_mode()  # a mode is a thread's own
        def timed() -> float:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started

        self._seconds = 0.0
        if self.in_turn:
            self._work = timed
            return
        if self._executor is None:  # a new thread for every round would have new threads for its matrices too
            self._executor = ThreadPoolExecutor(1, "anticipate")
        self._running = self._executor.submit(copy_context().run, timed)

    def take_turn(self) -> bool:
        """Do the work now, if it has waited for the target; return True in this case."""
        work, self._work = self._work, None
        if work is not None:
            self._seconds = work()
        return work is not None

    def join(self) -> float:
        """Wait until the work is done, and return the seconds that it took: 0 if there was none. What it raised is
        raised here."""
        running, self._running, self._work = self._running, None, None
        return self._seconds if running is None else running.result()

    def close(self) -> None:
        """Let the thread end, once it has finished what it is at."""
        if self._executor is not None:
            self._executor.shutdown(wait=self._running is not None)
            self._executor = self._running = None
