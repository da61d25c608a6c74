"""Asking the examples of a data set: batch by batch, or one by one where a server answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..data.examples import Example, Source, to_record
from ..data.opening import batched, open_media
from ..decoding.text import whole_text
from ..drafters import Drafter
from ..errors import MMSpecError
from ..generation import generate
from ..inputs import Request, prepare
from ..seeds import seed_from
from ..target import Target
from .shards import ShardWriter

if TYPE_CHECKING:
    from ..evaluation.engines import Arrival, Engine
    from .own_text import OwnText

Result = TypeVar("Result")


@dataclass(frozen=True)
class Question:
    """An example that is ready to be asked: number `index` of its source, with its media opened."""

    index: int
    example: Example
    media: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """The answers to a batch, an entry per row, and why rows have none."""

    text: list[str | None]
    token_ids: list[list[int]]
    finish: list[str | None]
    unanswered: Mapping[int, str] = field(default_factory=dict)


class Asking:
    """Asks one batch of a source after the other; the arguments are those of `distill`."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        source: Source | Sequence[Example],
        folder: Path | None,
        writer: ShardWriter,
        options: dict[str, Any],
        max_failures: int | None,
        engine: Engine | None = None,
        own_text: OwnText | None = None,
    ):
        self.engine, self.own_text = engine, own_text
        self.target, self.drafter, self.source, self.folder = target, drafter, source, folder
        self.writer, self.options, self.max_failures = writer, options, max_failures

    def ask(self, batch: Sequence[int], arrived: Callable[[], None]) -> None:
        """Ask the examples of a batch that have no record yet, and write their records.

        Args:
            batch: numbers of examples in the source.
            arrived: function that is called after each record, where they come one by one.
        """
        if self.engine is not None and self.engine.one_by_one:
            self._ask_one_by_one(self.engine, batch, arrived)
        else:
            self.writer.add(self.records(batch))

    def _ask_one_by_one(self, engine: Engine, batch: Sequence[int], arrived: Callable[[], None]) -> None:
        """Write every answer as soon as it is there, in whatever order they come.

        An answer depends on nothing but its own prompt and its own seed, so only those that are missing are asked.
        """
        opened = list(self._opened([index for index in batch if index not in self.writer.answered]))
        questions, request = self._of_readable(opened, self._prepared)
        if request is None:
            return

        def write(one: Arrival) -> None:
            question = questions[one.row]
            if one.reason is not None:
                self._skip(question.index, question.example.id, MMSpecError(one.reason))
            else:
                text = whole_text(self.target.tokenizer, one.token_ids)
                self._check(question, one.token_ids)
                self.writer.add([self._record(question, text, one.token_ids, one.finish)])
            arrived()

        seeds = [self._seed(question.index) for question in questions]
        engine.answer_each(request, seeds, write)

    def _seed(self, index: int) -> int:
        """Return the seed of a batch that begins with an example, or of that example alone."""
        return seed_from(f"{self.options.get('seed', 0)} {index}")

    def records(self, batch: Sequence[int]) -> list[dict[str, Any]]:
        """Return the records of those examples of a batch that have none yet.

        All of them are asked, because the noise of a sampled answer belongs to its row in the batch, and because the
        last bits of the logits depend on the batch's shape.
        """
        seed, opened = self._seed(batch[0]), list(self._opened(batch))
        if self.engine is None:
            questions, out = self._of_readable(opened, lambda readable: self._by_our_loop(readable, seed))
        else:
            questions, request = self._of_readable(opened, self._prepared)
            out = None if request is None else self._by_engine(self.engine, request, seed)
        if out is None:
            return []
        for row, reason in out.unanswered.items():
            self._skip(questions[row].index, questions[row].example.id, MMSpecError(reason))
        new = [
            (row, question)
            for row, question in enumerate(questions)
            if question.index not in self.writer.answered and row not in out.unanswered
        ]
        for row, question in new:
            self._check(question, out.token_ids[row])
        return [self._record(question, out.text[row], out.token_ids[row], out.finish[row]) for row, question in new]

    def _check(self, question: Question, ids: Sequence[int]) -> None:
        """Hold the answer of another engine against the target, if it is one of the first."""
        if self.engine is not None and self.own_text is not None and self.own_text.wanted:
            self.own_text.check(question.example.id, self._prepared([question]), ids, type(self.engine).__name__)

    def check_failures(self) -> None:
        """Stop if too many examples failed, counting earlier runs too."""
        skipped, allowed = len(self.writer.skipped), self.max_failures
        if allowed is not None and skipped > allowed:
            raise MMSpecError(
                f"{skipped} examples could not be asked and max_failures is {allowed}: {self.writer.skipped_file} "
                "lists the reasons; correct the examples and delete that file, or raise max_failures"
            )

    def _opened(self, batch: Sequence[int]) -> Iterator[Question]:
        for index in batch:
            if index in self.writer.skipped:
                continue
            name = None
            try:
                example = self.source[index]
                name = example.id
                yield Question(index, example, open_media(example, self.folder))
            except MMSpecError as error:
                self._skip(index, name, error)

    def _of_readable(
        self, questions: list[Question], act: Callable[[Sequence[Question]], Result]
    ) -> tuple[list[Question], Result | None]:
        """Return the questions that the target can read, and what is made of them; None if there are none."""
        while questions:
            try:
                return questions, act(questions)
            except (ValueError, IndexError):  # processors raise the latter for a picture's marker in the text
                readable = [question for question in questions if self._readable(question)]
                if len(readable) == len(questions):
                    raise  # it is not the questions
                questions = readable
            except torch.OutOfMemoryError as error:
                raise MMSpecError(
                    f"{self.target.device} has too little memory for {len(questions)} prompts at once: lower "
                    "batch_size and run again; what was answered is kept"
                ) from error
        return [], None

    def _prepared(self, questions: Sequence[Question]) -> Request:
        """Return a request of a row per question."""
        media = batched([question.media for question in questions])
        return prepare(self.target, [question.example.prompt for question in questions], **media)

    def _by_our_loop(self, questions: Sequence[Question], seed: int) -> Said:
        prompts = [question.example.prompt for question in questions]
        media = batched([question.media for question in questions])
        out = generate(self.target, self.drafter, prompts, **media, **self.options | {"seed": seed})
        return Said(out.text, out.token_ids, out.finish_reason)

    def _by_engine(self, engine: Engine, request: Request, seed: int) -> Said:
        answer = engine.answer(request, seed % 2**63)
        texts = [whole_text(self.target.tokenizer, row) for row in answer.token_ids]
        return Said(texts, answer.token_ids, answer.finish, answer.unanswered)

    def _readable(self, question: Question) -> bool:
        """Return True if the target can read a question; otherwise skip it."""
        try:
            self.target.encode(prepare(self.target, question.example.prompt, **question.media))
        except (ValueError, IndexError) as error:
            self._skip(question.index, question.example.id, error)
            return False
        return True

    def _skip(self, index: int, name: str | None, error: Exception) -> None:
        if index not in self.writer.answered:  # one that is may be asked again, for the sake of its batch only
            self.writer.skip(index, name, " ".join(str(error).split()))
            self.check_failures()

    def _record(self, question: Question, answer: str | None, ids: Sequence[int], finish: str | None) -> dict[str, Any]:
        references = [
            image if isinstance(image, str) else self.writer.save_picture(picture)
            for image, picture in zip(question.example.images, question.media.get("images", ()), strict=True)
        ]
        others: dict[str, Any] = {
            name: tuple(self.writer.save_file(one) if isinstance(one, bytes) else one for one in media)
            for name, media in (("videos", question.example.videos), ("audio", question.example.audio))
        }
        example = replace(question.example, images=tuple(references), answer=answer, answer_ids=tuple(ids), **others)
        return {"index": question.index, **to_record(example), "finish_reason": finish}
