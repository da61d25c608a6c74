"""Pace: how long a window is that a drafter writes in the time of one pass of the target."""

from __future__ import annotations

import math

DECAY = 0.8
"""Weight of what was measured before, at every measurement."""


class Pace:
    """The running means of both sides' times, and the window that follows from them: floor(T_target / T_draft).

    Args:
        shortest, longest: bounds of the window.
        first: the window as long as nothing is measured.
    """

    def __init__(self, shortest: int, longest: int, first: int):
        self.shortest, self.longest, self.first = shortest, longest, first
        self.target: float | None = None
        self.draft: float | None = None

    def learn(self, target: float = 0.0, draft: float = 0.0) -> None:
        """Take in the seconds of a pass of the target, and of a drafted token; 0 for what was not measured."""
        if target:
            self.target = target if self.target is None else DECAY * self.target + (1 - DECAY) * target
        if draft:
            self.draft = draft if self.draft is None else DECAY * self.draft + (1 - DECAY) * draft

    @property
    def window(self) -> int:
        """Tokens to write while the target makes one pass."""
        if self.target is None or self.draft is None:
            return self.first
        return min(max(math.floor(self.target / self.draft), self.shortest), self.longest)
