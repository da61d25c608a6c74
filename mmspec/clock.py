"""The clock of a request: how long each phase takes, on devices that work while the host goes on."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch  # here alone: what prints figures needs no torch

PHASES = ("vision", "prefill", "draft", "score", "verify", "commit", "observe", "other")
PROMPT_PHASES = ("vision", "prefill")


class Time(Protocol):
    """How a device tells the time. A mark is put behind all that was asked of the device so far."""

    def mark(self) -> Any: ...

    def passed(self, mark: Any) -> bool:
        """Whether the device has got there. The answer is given at once."""

    def wait(self, mark: Any) -> None:
        """Return when the device has got there."""

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks that have passed."""


class HostTime:
    """Time of the host, for devices on which an operation is over when its call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        return True

    def wait(self, mark: float) -> None:
        pass

    def between(self, start: float, end: float) -> float:
        return end - start


class CudaTime:
    """Time of a CUDA device. Marks are events in its queue; where the queue is empty, they pass when they are made.

    Args:
        device: whose current stream is timed.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> torch.cuda.Event:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000


def time_of(device: torch.device) -> Time:
    """The time of a device."""
    return CudaTime(device) if device.type == "cuda" else HostTime()


class PhaseClock:
    """Cuts time into phases without gaps: each lap ends where the next begins, so the phases add up to the total.

    It never waits for the device but in `settle`: what a phase took is booked when the device has got so far, which is
    looked into at every lap.

    Attributes:
        seconds: by phase, as far as they are booked.

    Args:
        time: of the device; by default the host's.
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

    def settle(self) -> None:
        """Wait for the device, and book everything."""
        if self._open:
            self.time.wait(self._last)
            self._book()

    def _book(self) -> None:
        while self._open and self.time.passed(self._open[0][2]):
            phase, start, end, of_round = self._open.popleft()
            spent = self.time.between(start, end)
            self.seconds[phase] += spent
            of_round[phase] += spent

    @property
    def total(self) -> float:
        return sum(self.seconds.values())
