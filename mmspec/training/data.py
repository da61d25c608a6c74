"""Turn a data set into the prepared passes of every training step, divided among processes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.examples import Example, Source
from ..data.opening import batched, open_media
from ..errors import MMSpecError
from ..files.storage import append, drop_torn_line, whole_lines
from ..inputs import Request, end_of_answer, prepare

if TYPE_CHECKING:
    from ..target import Target


@dataclass
class TrainingPass:
    """A prepared forward pass: prompts, answers, and where they are from.

    Args:
        prompt: prepared prompts and pictures.
        answers: token ids per row.
        tasks: a label per row.
        ids: name of each example.
        numbers: position of each example in its data set.
    """

    prompt: Request
    answers: list[list[int]]
    tasks: list[str]
    ids: list[str]
    numbers: list[int]


class Loader:
    """Prepares examples, and replaces those that cannot be used.

    An example that cannot be used (a malformed row, a picture that cannot be read, a prompt that the processor refuses,
    an answer that is empty, too long, or made of other tokens than the target's) is counted in `skipped` and named in
    the report. The next example takes its place, the same one in every process and after every resumption, so every
    step has its full size.

    Args:
        target: model whose processor reads the prompts.
        examples: the data set.
        max_length: largest number of tokens in prompt and answer together, visual tokens included; longer examples are
            dropped.
        max_failures: number of pictures that may fail to open before training stops.
        report: file that gets one line per dropped example, or None.
        pools: numbers of the examples that may take each other's place; all of them by default.

    Raises:
        MMSpecError: where nothing can be used, or too many pictures fail.
    """

    def __init__(
        self,
        target: Target,
        examples: Source,
        max_length: int = 2048,
        max_failures: int = 20,
        report: Path | None = None,
        pools: Sequence[Sequence[int]] | None = None,
    ):
        self.target, self.examples = target, examples
        self.max_length, self.max_failures, self.report = max_length, max_failures, report
        pools = pools or [range(len(examples))]
        self._next = {a: b for pool in pools for a, b in zip(pool, [*pool[1:], pool[0]], strict=True)}
        self.skipped: dict[int, str] = {}
        self._sound: set[int] = set()
        self._failures = 0
        self._reported = set() if report is None else _reported(report)

    def passes(self, numbers: Sequence[int], rows: int, process: int = 0, processes: int = 1) -> Iterator[TrainingPass]:
        """Yield the passes of one process over a step's examples.

        Rows with answers of similar length share a pass, so little is padded; the passes are dealt to the processes in
        turn.
        """
        ordered = sorted(numbers, key=lambda number: (self._answer_length(number), number))
        rows = max(1, min(rows, len(ordered) // processes))
        for start in range(process * rows, len(ordered), processes * rows):
            yield self.prepare(ordered[start : start + rows])

    def prepare(self, numbers: Sequence[int]) -> TrainingPass:
        """Prepare one pass over these examples, or over those that take their place."""
        numbers = [self._usable(number) for number in numbers]
        while True:
            examples = [self.examples[number] for number in numbers]
            media: list[dict[str, list[Any]]] = []
            spoilt: dict[int, str] = {}
            for number, example in zip(numbers, examples, strict=True):
                try:
                    media.append(open_media(example, self.examples.folder))
                except MMSpecError as error:
                    spoilt[number] = str(error)
                    self._count_failure(error)
            request = None
            if not spoilt:
                request, spoilt = self._request(numbers, examples, media)
            if request is not None and not spoilt:
                answers = [self.answer(example) for example in examples]
                return TrainingPass(request, answers, [e.task for e in examples], [e.id for e in examples], numbers)
            for number, reason in spoilt.items():
                self._skip(number, reason)
            numbers = [self._usable(number) for number in numbers]

    def answer(self, example: Example) -> list[int]:
        """Return the token ids of an answer: those that the target wrote, or those of its text and the token that ends
        answers."""
        if example.answer_ids is not None:
            return list(example.answer_ids)
        ids = self.target.tokenizer.encode(example.answer or "", add_special_tokens=False)
        return ids if self._end is None else [*ids, self._end]

    @cached_property
    def _end(self) -> int | None:
        return end_of_answer(self.target)

    def fault(self, number: int) -> str | None:
        """Return why an example cannot be used, as far as its row and its answer tell; None if it can."""
        if number in self.skipped or number in self._sound:
            return self.skipped.get(number)
        try:
            example = self.examples[number]
        except MMSpecError as error:
            return str(error)
        answer, vocabulary = self.answer(example), self.target.vocab_size
        if not example.answer and not example.answer_ids:
            return "it has no answer; let the target write one with `mmspec distill`"
        if len(answer) < 2:
            return "the answer has fewer than two tokens, so nothing in it can be drafted"
        if strange := [token for token in answer if not 0 <= token < vocabulary]:
            return (
                f"its answer has the token id {strange[0]}, but those of the target go from 0 to {vocabulary - 1}; let "
                "the target answer with `mmspec distill`"
            )
        if places := [token for token in answer if token in self.target.family.placeholders]:
            kind = self.target.family.placeholders[places[0]]
            return f"its answer has the token id {places[0]}, which is the place of {kind} tokens and no text"
        self._sound.add(number)
        return None

    def _request(
        self, numbers: Sequence[int], examples: Sequence[Example], media: Sequence[dict[str, Any]]
    ) -> tuple[Request | None, dict[int, str]]:
        """Return the prepared prompts, or the reasons why some of them cannot be used."""
        try:
            request = prepare(self.target, [example.prompt for example in examples], **batched(media))
        except MMSpecError as error:
            if len(numbers) == 1:
                return None, {numbers[0]: str(error)}
            spoilt: dict[int, str] = {}
            for number, example, own in zip(numbers, examples, media, strict=True):
                spoilt |= self._request([number], [example], [own])[1]
            if not spoilt:
                raise
            return None, spoilt
        lengths = {
            number: length + len(self.answer(example))
            for number, length, example in zip(numbers, request.lengths, examples, strict=True)
        }
        most = self.target.family.longest or self.max_length
        limit = f"max_length={self.max_length}" if self.max_length <= most else f"the {most} that the target reads"
        return request, {
            number: f"prompt and answer have {length} tokens, more than {limit}"
            for number, length in lengths.items()
            if length > min(self.max_length, most)
        }

    def _answer_length(self, number: int) -> int:
        try:
            example = self.examples[number]
        except MMSpecError:  # another takes its place
            return 0
        return len(example.answer_ids) if example.answer_ids is not None else len(example.answer or "")

    def _usable(self, number: int) -> int:
        """Return the number itself, or the next one of its pool whose example is not known to be unusable."""
        first, tried = number, 0
        while (reason := self.fault(number)) is not None:
            self._skip(number, reason)
            number, tried = self._next[number], tried + 1
            if number == first:
                raise MMSpecError(f"none of the {tried} examples can be used; one of them: {reason}")
        return number

    def _skip(self, number: int, reason: str) -> None:
        if number in self.skipped:
            return
        self.skipped[number] = reason
        if self.report is not None and number not in self._reported:
            self._reported.add(number)
            record = {"number": number, "id": self.name(number), "reason": reason}
            with self.report.open("ab", buffering=0) as file:
                append(file, (json.dumps(record) + "\n").encode())

    def name(self, number: int) -> str | None:
        """Return the id of an example; None for a row that cannot be read."""
        try:
            return self.examples[number].id
        except MMSpecError:
            return None

    def _count_failure(self, error: MMSpecError) -> None:
        self._failures += 1
        if self._failures > self.max_failures:
            raise MMSpecError(
                f"more than max_failures={self.max_failures} pictures could not be opened, the last one: {error}"
            )


def _reported(report: Path) -> set[int]:
    """Return the numbers of the examples that an earlier run of the same training has reported."""
    drop_torn_line(report)
    numbers: set[int] = set()
    for line in whole_lines(report):
        try:
            numbers.add(json.loads(line)["number"])
        except (ValueError, TypeError, KeyError):  # two lines of which the first was torn, say: it is named once more
            continue
    return numbers


def split(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Divide the numbers of the examples into those to train on and those held out for validation.

    Raises:
        MMSpecError: if nothing is left to train on.
    """
    if held_out >= count:
        raise MMSpecError(
            f"the data set has {count} examples, of which held_out={held_out} are for validation: none is left to "
            "train on; distill more answers, or hold out fewer"
        )
    shuffled = random.Random(f"{seed}/validation").sample(range(count), count)
    return sorted(shuffled[held_out:]), sorted(shuffled[:held_out])
