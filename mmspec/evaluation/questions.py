"""The questions of a task in batches, turn by turn, without those that cannot be asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..data import Example, Source, open_media
from ..data.opening import batched
from ..errors import MMSpecError
from ..inputs import Prompt, Request, prepare
from ..target import Target


@dataclass
class QuestionGroup:
    """Questions that are answered together, and what was said so far."""

    number: int
    task: str
    examples: list[Example]
    said: dict[int, dict[str, str | None]] = field(default_factory=dict)
    """Turn to what plain decoding answered, by the question's id."""

    @property
    def turns(self) -> int:
        """Turns of the longest conversation."""
        return 1 + max(len(example.follow_ups) for example in self.examples)

    def prompt(self, example: Example, turn: int) -> Prompt:
        """Return the question of one turn, after the ones before it and their answers."""
        if not turn:
            return example.prompt
        texts = [example.prompt]
        for earlier, follow_up in enumerate(example.follow_ups[:turn]):
            texts += [self.said[earlier][example.id] or "", follow_up]
        return tuple(texts)


def grouped(source: Source, batch: int = 1, limit: int | None = None) -> Iterator[QuestionGroup]:
    """Yield the questions of a source in batches of one task each, in their order.

    Args:
        source: source of the questions.
        batch: questions that are answered together.
        limit: at most so many of each task.
    """
    waiting: dict[str, list[Example]] = {}
    seen: dict[str, int] = {}
    number = 0
    for index in range(len(source)):
        example = source[index]
        seen[example.task] = seen.get(example.task, 0) + 1
        if limit is not None and seen[example.task] > limit:
            continue
        group = waiting.setdefault(example.task, [])
        group.append(example)
        if len(group) == batch:
            yield QuestionGroup(number, example.task, waiting.pop(example.task))
            number += 1
    for task, examples in waiting.items():
        yield QuestionGroup(number, task, examples)
        number += 1


class Questions:
    """All groups of a task, and what could not be asked.

    Args:
        target: who is asked.
        source, batch, limit: see `grouped`.

    Raises:
        MMSpecError: if there is no question.
    """

    def __init__(self, target: Target, source: Source, batch: int = 1, limit: int | None = None):
        self.target, self.source, self.folder = target, source, source.folder
        self.groups = list(grouped(source, batch, limit))
        if not self.groups:
            raise MMSpecError("the task has no question: give one that has")
        self.skipped: dict[str, str] = {}
        """Reasons, by the question's id."""

    def request(self, group: QuestionGroup, turn: int) -> tuple[Request | None, list[Example]]:
        """Return a group's questions of one turn, prepared, and the examples that they belong to.

        A question whose media or text cannot be read is noted in `skipped` and left out, in all of its turns.
        """
        asked: list[Example] = []
        prepared: list[Request] = []
        for example in group.examples:
            if turn > len(example.follow_ups) or example.id in self.skipped:
                continue
            prompt = group.prompt(example, turn)
            try:
                media = batched([open_media(example, self.folder)])
                prepared.append(prepare(self.target, [prompt], **media))
            except MMSpecError as error:
                self.skipped[example.id] = str(error)
                continue
            asked.append(example)
        if len(asked) < 2:
            return (prepared[0] if prepared else None), asked
        # The media are in the conversations, so that no file is read twice.
        return prepare(self.target, messages=[talk for one in prepared for talk in one.conversations or []]), asked

    def judged(self, group: QuestionGroup, turn: int, said: dict[str, str | None]) -> dict[str, Any]:
        """Return how right answers are, as a record has it: the metric, and for each prompt points and their limit.

        Args:
            group, turn: what was asked.
            said: the answers by the question's id.
        """
        metric = self.source.metric_of(group.task)
        if metric is None or turn:  # the references are those of the first question
            return {"metric": None, "accuracy": None}
        accuracy: list[dict[str, float] | None] = []
        for example in group.examples:
            if example.id not in said:
                continue  # it could not be asked
            text = said[example.id]
            if text is None or not example.references:
                accuracy.append(None)
                continue
            points, of = metric.best(example.references, text)
            accuracy.append({"points": points, "of": of})
        return {"metric": metric.name, "accuracy": accuracy}

    def skips(self) -> list[dict[str, str]]:
        """Return what could not be asked, as the manifest has it."""
        return [{"id": name, "reason": reason} for name, reason in self.skipped.items()]
