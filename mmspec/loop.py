"""The loop: draft, skim, score, verify, commit, observe. The only one; it knows no method, no model and no tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .decoding.anticipation import OtherSide
from .decoding.clock import PhaseClock, time_of


class Run:
    """One request on its way through the loop, whatever its states are: tokens (`mmspec.decoding.token_run`) or vectors
    (`mmspec.chains`).

    A subclass implements `begin`, which says who takes part. They meet in these verbs alone:

    - `context`: `active`, `check(draft, root, by)`, `score(draft)`, `commit(draft, verdict)`;
    - `drafter`: `draft(root)`, `observe(draft, scores, verdict)`; if it `anticipates`, also `anticipate(draft)` beside
      the target, `hear(draft, verdict)` as soon as that is known, and `in_turn`;
    - `verifier`: `skim(draft)`, `verify(draft, scores)`; a verdict has `only(active)`, `bonus` and `settled`;
    - `transcript`: `add(emitted, draft, settled)` and `stats`;
    - `trace`: `record(draft, scores, verdict, active)`, or None.

    Attributes:
        root: the newest state of every row, `[batch, ...]`.

    Args:
        device: where the target is.
    """

    context: Any
    drafter: Any
    verifier: Any
    transcript: Any
    root: Any
    trace: Any = None

    def __init__(self, device: torch.device):
        self.clock = PhaseClock(time_of(device))
        self.other_side = OtherSide()

    def begin(self) -> list:
        """Read what was given, set the attributes, and return what is there before the first round.

        It books its own time, and begins with `self.clock.resume()`.
        """
        raise NotImplementedError

    def rounds(self) -> Iterator[list]:
        """Yield what the beginning and then every round add, until all rows have ended."""
        try:
            yield self.begin()
            while any(self.context.active):
                self.clock.resume()
                yield self.round()
            self.clock.settle()
        finally:
            self.other_side.close()

    @torch.inference_mode()
    def round(self) -> list:
        """Do one round of every row that is still active."""
        context, drafter, verifier, clock = self.context, self.drafter, self.verifier, self.clock
        seconds, anticipated = clock.begin_round(), 0.0
        draft, scores = drafter.draft(self.root), None
        context.check(draft, self.root, by=drafter)
        clock.lap("draft")
        verdict = verifier.skim(draft)
        clock.lap("verify")
        if verdict is None and drafter.anticipates:
            scores, verdict, anticipated = self.score_beside(draft)
        elif verdict is None:
            scores = context.score(draft)
            clock.lap("score")
            verdict = verifier.verify(draft, scores)
        verdict = verdict.only(context.active)
        clock.lap("verify")
        if self.trace is not None:
            self.trace.record(draft, scores, verdict, context.active)
            clock.lap("other")
        emitted = context.commit(draft, verdict)
        clock.lap("commit")
        drafter.observe(draft, scores, verdict)
        clock.lap("observe")
        self.root = verdict.bonus
        pieces = self.closed(self.transcript.add(emitted, draft, verdict.settled))
        record = self.transcript.stats.rounds[-1]
        record.seconds, record.anticipated, record.in_turn = seconds, anticipated, self.other_side.in_turn
        return pieces

    def score_beside(self, draft: Any) -> tuple[Any, Any, float]:
        """Let the target score a draft while the drafter works on what it expects to come after it.

        Returns:
            The scores, the verdict, and the seconds for which the drafter worked. Where the sides take turns, they are
            part of the phase `draft`; else only that part is for which the target has waited.
        """
        context, drafter, clock, other = self.context, self.drafter, self.clock, self.other_side
        other.in_turn = drafter.in_turn
        other.begin(lambda: drafter.anticipate(draft))
        try:
            scores = context.score(draft)
            clock.lap("score")
            if other.take_turn():
                clock.lap("draft")
            verdict = self.verifier.verify(draft, scores)
            drafter.hear(draft, verdict)
        finally:  # nobody works on a request that has failed
            clock.lap("verify")
            anticipated = other.join()
        clock.lap("draft")
        return scores, verdict, anticipated

    def closed(self, pieces: list) -> list:
        """Book the time until now, and return the same pieces."""
        self.clock.lap("other")
        self.transcript.stats.seconds = self.clock.seconds
        return pieces
