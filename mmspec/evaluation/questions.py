"""The questions of a task in batches, turn by turn, without those that cannot be asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from ..data import Example, Source, open_media
from ..data.examples import DOCUMENTS
from ..data.opening import batched
from ..drafters.reference import REFERENCES
from ..errors import MMSpecError
from ..inputs import Prompt, Request, prepare
from ..target import Target

MIXED = "mixed"
"""Task of a batch whose prompts are of different ones."""


@dataclass
class QuestionGroup:
    """Questions that are answered together, and what was said so far."""

    number: int
    task: str
    examples: list[Example]
    batch: int = 1
    """Questions that it was to hold; the last ones of a task may be fewer."""
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


def asked(source: Source, limit: int | None = None, mixed: bool = False) -> Iterator[tuple[str, Example]]:
    """Yield the questions of a source with the task that they count for.

    Args:
        source: source of the questions.
        limit: at most so many of each task.
        mixed: one of each task in turns, and all count for the task `mixed`; else they keep their order and task.
    """
    found: dict[str, list[Example]] = {}
    for index in range(len(source)):
        example = source[index]
        of_task = found.setdefault(example.task, [])
        if limit is None or len(of_task) < limit:
            of_task.append(example)
            if not mixed:
                yield example.task, example
    if mixed:
        yield from ((MIXED, one) for turn in zip_longest(*found.values()) for one in turn if one is not None)


def grouped(
    source: Source, batch: int = 1, limit: int | None = None, mixed: bool = False, first: int = 0
) -> Iterator[QuestionGroup]:
    """Yield the questions of a source in batches.

    Args:
        source, limit, mixed: see `asked`.
        batch: questions that are answered together.
        first: number of the first batch.
    """
    waiting: dict[str, list[Example]] = {}
    number = first
    for task, example in asked(source, limit, mixed):
        group = waiting.setdefault(task, [])
        group.append(example)
        if len(group) == batch:
            yield QuestionGroup(number, task, waiting.pop(task), batch)
            number += 1
    for task, examples in waiting.items():
        yield QuestionGroup(number, task, examples, batch)
        number += 1


class Questions:
    """All groups of a task, and what could not be asked.

    Args:
        target: who is asked.
        source, limit, mixed: see `asked`.
        batches: numbers of questions that are answered together; every question is in a group of each size.

    Raises:
        MMSpecError: if there is no question.
    """

    def __init__(
        self,
        target: Target,
        source: Source,
        batches: Sequence[int] = (1,),
        limit: int | None = None,
        mixed: bool = False,
    ):
        self.target, self.source, self.folder = target, source, source.folder
        self.groups: list[QuestionGroup] = []
        for batch in batches:
            self.groups += grouped(source, batch, limit, mixed, first=len(self.groups))
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
                prepared.append(prepare(self.target, [prompt], **media, extras=told([example])))
            except MMSpecError as error:
                self.skipped[example.id] = str(error)
                continue
            asked.append(example)
        if len(asked) < 2:
            return (prepared[0] if prepared else None), asked
        # The media are in the conversations, so that no file is read twice.
        talks = [talk for one in prepared for talk in one.conversations or []]
        return prepare(self.target, messages=talks, extras=told(asked)), asked

    def judged(self, group: QuestionGroup, turn: int, said: dict[str, str | None]) -> dict[str, Any]:
        """Return how right answers are, as a record has it: the metric, and for each prompt points and their limit.

        Args:
            group, turn: what was asked.
            said: the answers by the question's id.
        """
        answered = [example for example in group.examples if example.id in said]  # the others could not be asked
        metrics = [self.source.metric_of(example.task) for example in answered]
        names = sorted({metric.name for metric in metrics if metric is not None})
        if not names or turn:  # the references are those of the first question
            return {"metric": None, "accuracy": None}
        accuracy: list[dict[str, float] | None] = []
        for example, metric in zip(answered, metrics, strict=True):
            text = said[example.id]
            if text is None or metric is None or not example.references:
                accuracy.append(None)
                continue
            points, of = metric.best(example.references, text)
            accuracy.append({"points": points, "of": of})
        return {"metric": " ".join(names), "accuracy": accuracy}

    def skips(self) -> list[dict[str, str]]:
        """Return what could not be asked, as the manifest has it."""
        return [{"id": name, "reason": reason} for name, reason in self.skipped.items()]


def told(examples: Sequence[Example]) -> dict[str, list[Any]] | None:
    """Return what drafters and selectors are told of questions: the texts of their regions, and their documents, where
    they have any."""
    found = {
        REFERENCES: [list(example.regions) or None for example in examples],
        DOCUMENTS: [list(example.documents) or None for example in examples],
    }
    return {name: rows for name, rows in found.items() if any(rows)} or None
