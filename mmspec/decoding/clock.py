"""The clock of a request: how long each phase takes, on devices that work while the host goes on."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch  # here alone: what prints figures needs no torch

PROMPT_PHASES = ("vision", "prefill", "prune", "draft_prefill")
"""Phases before the first round: the target's encoders, its pass over the prompt, the choice of what a drafter sees of
the media, and all else that the drafter does with the prompt."""
PHASES = (*PROMPT_PHASES, "draft", "score", "verify", "commit", "observe", "other")


class Time(Protocol):
    """A device's way of telling the time. A mark is put behind all that was asked of the device so far."""

    def mark(self) -> Any:
        """Put a mark behind all that was asked of the device so far, and return it."""

    def passed(self, mark: Any) -> bool:
        """Return at once: True if the device has come to the mark."""

    def wait(self, mark: Any) -> None:
        """Return when the device has come to the mark."""

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks that have passed."""


class HostTime:
    """The time of the host, for devices on which an operation is over when its call returns."""

    def mark(self) -> float:
        """Return the seconds of the host's clock."""
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        """Return True: what was asked for is done when the call returns."""
        return True

    def wait(self, mark: float) -> None:
        """Return at once, for the same reason."""

    def between(self, start: float, end: float) -> float:
        """Return the seconds between two marks."""
        return end - start


class CudaTime:
    """The time of a CUDA device. Marks are events in its queue; where the queue is empty, they pass when they are made.

    Args:
        device: the device whose current stream is timed.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """Record an event in the device's current stream, and return it."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        """Return at once: True if the device has come to the event."""
        return mark.query()

    def wait(self, mark: torch.cuda.Event) -> None:
        """Wait until the device has come to the event."""
        mark.synchronize()

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two events that have passed."""
        return start.elapsed_time(end) / 1000


def time_of(device: torch.device) -> Time:
    """Return the way in which a device tells the time."""
    return CudaTime(device) if device.type == "cuda" else HostTime()


class PhaseClock:
    """A stopwatch that cuts time into phases without gaps: each lap ends where the next begins, so the phases add up to
    the total.

    It never waits for the device but in `settle`: what a phase took is booked when the device has got so far, which is
    looked into at every lap.

    Attributes:
        seconds: seconds by phase, as far as they are booked.

    Args:
        time: the way in which the device tells the time; by default the host's.
    """

    def __init__(self, time: Time | None = None):
        self.time = time or HostTime()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._round = dict(self.seconds)
        self._open: deque[tuple[str, Any, Any, dict[str, float]]] = deque()
        self._last = self.time.mark()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap to `phase`."""
        now = self.time.mark()
        self._open.append((phase, self._last, now, self._round))
        self._last = now
        self._book()

    def resume(self) -> None:
        """Leave out the time since the last lap: the consumer of a stream had it."""
        self._last = self.time.mark()

    def begin_round(self) -> dict[str, float]:
        """Book all that follows to a round too; return its seconds by phase, which are filled as they become known."""
        self._round = dict.fromkeys(PHASES, 0.0)
        return self._round

    @property
    def round(self) -> dict[str, float]:
        """The seconds by phase of the present round, as `begin_round` returned them."""
        return self._round

    def booked(self, seconds: dict[str, float]) -> bool:
        """Return True if all laps so far of a round are in its seconds; see `begin_round`."""
        return all(of_round is not seconds for *_, of_round in self._open)

    def settle(self) -> None:
        """Wait for the device, and book everything."""
        if self._open:
            self.time.wait(self._last)
            self._book()

    def _book(self) -> None:
        """Book all laps whose end the device has reached."""
        while self._open and self.time.passed(self._open[0][2]):
            phase, start, end, of_round = self._open.popleft()
            spent = self.time.between(start, end)
            self.seconds[phase] += spent
            of_round[phase] += spent

    @property
    def total(self) -> float:
        """Seconds of all phases together, as far as they are booked."""
        return sum(self.seconds.values())
