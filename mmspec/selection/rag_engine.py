"""Engines that answer from documents: `mmspec bench engine=video_speculate_rag`, and what it is compared to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .engine import SelectionEngine
from .member import Member
from .outcome import Selector
from .reliability import NO, YES
from .speculate_rag import StandardRAG, VideoSpeculateRAG


@dataclass(eq=False)
class StandardRAGEngine(SelectionEngine):
    """The large model reads all documents and answers, see `StandardRAG`. The drafter of the method drafts for it."""

    def make(self) -> Selector:
        """Return the selector."""
        return StandardRAG(self.target, drafter=self.drafter)


@dataclass(eq=False)
class VideoSpeculateRAGEngine(SelectionEngine):
    """VideoSpeculateRAG as an engine, see `VideoSpeculateRAG`.

    The drafter of the method drafts for the target, wherever it writes.

    Args:
        small: name of the model that drafts, see `mmspec.load_drafter`; `"large"` is the target itself; or a function
            from conversations to texts.
        scorer: compares subjects with pictures; None is the target's own tower.
        delta, keyframe, yes_words, no_words: see `VideoSpeculateRAG`.
    """

    small: Any = "tiny/draft_model"
    scorer: Any = None
    delta: float = 0.3
    keyframe: float = 0.8
    yes_words: str | Sequence[str] = YES
    no_words: str | Sequence[str] = NO

    def make(self) -> Selector:
        """Return the selector."""
        small = self.small
        if small == "large":
            small = Member(self.target, "large", self.drafter)
        elif isinstance(small, str):
            small = self.member(small)
        return VideoSpeculateRAG(
            self.target,
            small,
            self.scorer,
            self.delta,
            self.keyframe,
            yes_words=self.yes_words,
            no_words=self.no_words,
            drafter=self.drafter,
        )
