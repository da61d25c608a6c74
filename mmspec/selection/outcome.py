"""Selected: the result of a selection among answers, and the base class of what selects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..decoding.stats import Round
from ..errors import MMSpecError
from ..inputs import Request, prepare

if TYPE_CHECKING:
    from ..target import Target


@dataclass
class Selected:
    """The answer to one question.

    Args:
        text: the answer.
        token_ids: its tokens in the large model's vocabulary.
        by: who gave it: a member's name, or `"verdict"`, or `"large"`.
        answers: every member's answer, by its name.
        scores: numbers by name: of consensus, or of answerability.
        kept: names of the members that the verdict was about.
        reasons: what these members wrote when they were asked to reason.
        passes: passes of the large model, those that read a prompt among them.
        tokens: tokens that were written by the members and by the large model.
        rounds: records of the rounds in which the large model wrote, see `mmspec.decoding.stats.Round`.
        seconds: seconds by stage.
    """

    text: str
    token_ids: list[int]
    by: str
    answers: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    passes: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"members": 0, "large": 0})
    rounds: list[Round] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the seconds inside the block to a stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Selector:
    """A way to come to an answer with several models. A subclass implements `answer`.

    Args:
        target: the large model.
    """

    def __init__(self, target: Target):
        self.target = target

    def ask(self, prompt: str, images: Any = None, **options: Any) -> Selected:
        """Answer a question about pictures.

        Args:
            prompt: the question.
            images: its pictures, see `mmspec.generate`.
            options: arguments of `answer`.
        """
        pictures = images if images is None or isinstance(images, list | tuple) else [images]
        return self.answer(prepare(self.target, prompt, pictures), **options)

    def answer(self, request: Request, max_new_tokens: int = 256, seed: int = 0) -> Selected:
        """Answer a request of one row.

        Args:
            request: prepared for the large model, see `mmspec.inputs.prepare`.
            max_new_tokens: at most so many in every answer.
            seed: seed of choices among equals.

        Raises:
            MMSpecError: for several rows, or a request that the members cannot read.
        """
        raise NotImplementedError


def one_row(request: Request, owner: object) -> None:
    """Refuse a batch.

    Args:
        request: what is asked.
        owner: who is asked, for the error.
    """
    if request.batch_size != 1:
        raise MMSpecError(
            f"{type(owner).__name__} answers one question at a time, and there are {request.batch_size}: ask one by one"
        )
