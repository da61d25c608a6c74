"""From a data set to the prepared passes of every training step, in which process."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.examples import Example, Source, open_image
from ..errors import MMSpecError
from ..inputs import Request, prepare

if TYPE_CHECKING:
    from ..target import Target


@dataclass
class Pass:
    """What one forward pass reads.

    Args:
        prompt: prepared prompts and pictures.
        answers: token ids per row.
        tasks: a label per row.
        ids: of the examples.
        numbers: of the examples in their data set.
    """

    prompt: Request
    answers: list[list[int]]
    tasks: list[str]
    ids: list[str]
    numbers: list[int]


class Loader:
    """Prepares examples, and puts others in the place of those that cannot be used.

    What cannot be used is counted in `skipped` and named in the report. The next example takes its place, the same in
    every process and after every resumption, so every step has its full size.

    Args:
        target: whose processor reads the prompts.
        examples: the data set.
        max_length: prompt and answer together, visual tokens included; longer examples are dropped.
        max_failures: so many pictures may fail to open before training stops.
        report: a file for one line per dropped example, or None.
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
        self._failures = 0

    def passes(self, numbers: Sequence[int], rows: int, process: int = 0, processes: int = 1) -> Iterator[Pass]:
        """The passes of one process over a step's examples.

        Rows of similar answers share a pass, so little is padded; the passes are dealt out like cards.
        """
        ordered = sorted(numbers, key=lambda number: (self._answer_length(number), number))
        rows = max(1, min(rows, len(ordered) // processes))
        for start in range(process * rows, len(ordered), processes * rows):
            yield self.prepare(ordered[start : start + rows])

    def prepare(self, numbers: Sequence[int]) -> Pass:
        """One pass over these examples, or over what takes their place."""
        numbers = [self._usable(number) for number in numbers]
        while True:
            examples = [self.examples[number] for number in numbers]
            pictures, spoilt = [], {}
            for number, example in zip(numbers, examples, strict=True):
                try:
                    pictures.append([open_image(image, self.examples.folder) for image in example.images])
                except MMSpecError as error:
                    spoilt[number] = str(error)
                    self._count_failure(error)
            if not spoilt:
                request, spoilt = self._request(numbers, examples, pictures)
            if not spoilt:
                answers = [self.answer(example) for example in examples]
                return Pass(request, answers, [e.task for e in examples], [e.id for e in examples], numbers)
            for number, reason in spoilt.items():
                self._skip(number, reason)
            numbers = [self._usable(number) for number in numbers]

    def answer(self, example: Example) -> list[int]:
        """The token ids of an answer: as the target wrote them, or of its text with the end token."""
        if example.answer_ids is not None:
            return list(example.answer_ids)
        tokenizer = self.target.tokenizer
        ids = tokenizer.encode(example.answer or "", add_special_tokens=False)
        return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]

    def _request(self, numbers, examples, pictures) -> tuple[Request | None, dict[int, str]]:
        """The prepared prompts, or the reasons why some of them cannot be used."""
        try:
            request = prepare(self.target, [example.prompt for example in examples], pictures)
        except MMSpecError as error:
            if len(numbers) == 1:
                return None, {numbers[0]: str(error)}
            spoilt = {}
            for number, example, images in zip(numbers, examples, pictures, strict=True):
                spoilt |= self._request([number], [example], [images])[1]
            if not spoilt:
                raise
            return None, spoilt
        lengths = {
            number: length + len(self.answer(example))
            for number, length, example in zip(numbers, request.lengths, examples, strict=True)
        }
        return request, {
            number: f"prompt and answer have {length} tokens, more than max_length={self.max_length}"
            for number, length in lengths.items()
            if length > self.max_length
        }

    def _answer_length(self, number: int) -> int:
        example = self.examples[number]
        return len(example.answer_ids) if example.answer_ids is not None else len(example.answer or "")

    def _usable(self, number: int) -> int:
        """The example itself or the next one that is not known to be spoilt."""
        for _ in range(len(self.examples)):
            if number not in self.skipped:
                example = self.examples[number]
                if len(self.answer(example)) >= 2:
                    return number
                if not example.answer and not example.answer_ids:
                    self._skip(number, "it has no answer; let the target write one with `mmspec distill`")
                else:
                    self._skip(number, "the answer has fewer than two tokens, so nothing in it can be drafted")
            number = self._next[number]
        reason = next(iter(self.skipped.values()))
        raise MMSpecError(f"none of the {len(self.examples)} examples can be used; the first: {reason}")

    def _skip(self, number: int, reason: str) -> None:
        self.skipped[number] = reason
        if self.report is not None:
            with self.report.open("a") as file:
                file.write(json.dumps({"id": self.examples[number].id, "reason": reason}) + "\n")

    def _count_failure(self, error: MMSpecError) -> None:
        self._failures += 1
        if self._failures > self.max_failures:
            raise MMSpecError(
                f"more than max_failures={self.max_failures} pictures could not be opened, the last one: {error}"
            )


def split(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the examples to train on and of those held out for validation.

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
