"""Let the target answer prompts with pictures, which gives the data set that drafters are trained on.

A drafter has to predict what the target says, not what is true, so its training data is the target's own output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.examples import Example, Source, to_record
from ..data.opening import batched, open_media
from ..decoding.sampling import LogitsPipeline
from ..decoding.stopping import Stopping
from ..decoding.text import whole_text
from ..drafters import Drafter
from ..errors import MMSpecError
from ..generation import generate
from ..inputs import prepare
from ..seeds import seed_from
from ..target import Target
from ..version import __version__
from .author import describe_target, rounded_weights
from .shards import ShardWriter

if TYPE_CHECKING:
    from ..evaluation.engines import Engine


@dataclass(frozen=True)
class Progress:
    """State of a shard: how many examples are done, and how fast.

    Args:
        total: number of examples in the shard.
        answers, skipped: number of examples that are answered and skipped, by earlier runs too.
        tokens: number of tokens in all answers.
        new_tokens: number of tokens in the answers of this run.
        seconds: time since this run began.
    """

    total: int
    answers: int
    skipped: int
    tokens: int
    new_tokens: int
    seconds: float

    @property
    def mean_tokens(self) -> float:
        """Mean length of an answer in tokens; 0 if there is none."""
        return self.tokens / self.answers if self.answers else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second that this run has written."""
        return self.new_tokens / self.seconds if self.seconds else 0.0


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


def distill(
    target: Target,
    source: Source | Sequence[Example],
    folder: str | Path,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    shard: int = 0,
    shards: int = 1,
    drafter: Drafter | None = None,
    engine: Engine | None = None,
    max_failures: int | None = 100,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Ask the target every example of a shard and write the answers; `mmspec.training.answers` says where and how.

    What a folder holds already is not asked again, so a run that was interrupted, at any moment and in any way, goes on
    where it stopped, and ends with the file that it would have written without the interruption: batches are fixed
    slices of the shard, and a batch that was half written is asked again as a whole. The target, the source and the
    sampling have to be the same; a source may have grown at its end. Another batch size or drafter is allowed, for
    want of memory say: sampled answers are then the target's own still, but not those of an uninterrupted run.

    Args:
        target: the model that answers; needs a processor.
        source: the questions.
        folder: where the data set is written.
        batch_size: number of examples that are answered at once.
        max_new_tokens, temperature, top_k, top_p: longest answer and sampling settings, as in `generate`.
        seed: seed for sampled answers.
        shard, shards: ask the examples number shard, shard + shards, shard + 2 shards, ...
        drafter: drafter for speculative decoding, which pays with small batches; the answers stay the target's own.
        engine: who decodes in place of our own loop, with the sampling and the length that are given here: vLLM or a
            running server, see `mmspec.serving`. The target says what is asked and who answers; greedy answers are its
            own up to near-ties. What an engine could not answer is skipped, like what the target cannot read.
        max_failures: number of examples that may fail (no such picture, a prompt that is too long) before the run
            stops; None never stops.
        progress: function that is called at the beginning and after each batch.

    Raises:
        MMSpecError: for anything that the caller can put right. Whatever was answered before is kept.
    """
    # Refused here, because later the folder would have been begun already.
    LogitsPipeline(temperature, top_k, top_p)
    Stopping(max_new_tokens)
    _check_numbers(batch_size, shard, shards, max_failures)
    if engine is not None and not engine.lossless:
        raise MMSpecError(f"{type(engine).__name__} does not write the target's own text, which drafters learn from")
    if target.tokenizer is None:
        raise MMSpecError("the target has no processor, so it reads no text; give Target(model, processor)")
    sampling = {"temperature": float(temperature), "top_k": top_k, "top_p": top_p, "seed": seed}
    if temperature == 0:  # then the others have no effect
        sampling = {"temperature": 0.0}
    folder, pictures = Path(folder), Path(getattr(source, "folder", None) or "")
    settings = {
        "target": describe_target(target),
        "source": _describe_source(source),
        **sampling,
        "max_new_tokens": max_new_tokens,
        "shards": shards,
    }
    facts = {
        "mmspec": __version__,
        "model": str(target.model.config.name_or_path),
        "drafter": None if drafter is None else type(drafter).__name__,
        "engine": None if engine is None else type(engine).__name__,
        "batch_size": batch_size,
        "rounded": rounded_weights(target),
        "images": os.path.relpath(pictures.resolve(), folder.resolve()),
    }
    options = {**sampling, "max_new_tokens": max_new_tokens}
    with ShardWriter(folder, shard, shards, settings, facts) as writer:
        asking = Asking(target, drafter, source, pictures, writer, options, max_failures, engine)
        indices = range(shard, len(source), shards)
        before, started = writer.tokens, time.perf_counter()

        def state() -> Progress:
            seconds = time.perf_counter() - started
            answers, skipped, tokens = len(writer.answered), len(writer.skipped), writer.tokens
            return Progress(len(indices), answers, skipped, tokens, tokens - before, seconds)

        asking.check_failures()
        for begin in range(0, len(indices), batch_size):
            if progress is not None:
                progress(state())
            batch = indices[begin : begin + batch_size]
            if not all(index in writer.answered or index in writer.skipped for index in batch):
                writer.add(asking.records(batch))
        writer.complete = True
        if progress is not None:
            progress(state())
        return state()


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
    ):
        self.engine = engine
        self.target, self.drafter, self.source, self.folder = target, drafter, source, folder
        self.writer, self.options, self.max_failures = writer, options, max_failures

    def records(self, batch: Sequence[int]) -> list[dict[str, Any]]:
        """Return the records of those examples of a batch that have none yet.

        All of them are asked, because the noise of a sampled answer belongs to its row in the batch, and because the
        last bits of the logits depend on the batch's shape.
        """
        seed = seed_from(f"{self.options.get('seed', 0)} {batch[0]}")
        questions, out = self._answered(list(self._opened(batch)), seed)
        if out is None:
            return []
        for row, reason in out.unanswered.items():
            self._skip(questions[row].index, questions[row].example.id, MMSpecError(reason))
        return [
            self._record(question, out, row)
            for row, question in enumerate(questions)
            if question.index not in self.writer.answered and row not in out.unanswered
        ]

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

    def _answered(self, questions: list[Question], seed: int) -> tuple[list[Question], Said | None]:
        """Return the questions that the target could read, and its answers to them."""
        while questions:
            try:
                return questions, self._said(questions, seed)
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

    def _said(self, questions: Sequence[Question], seed: int) -> Said:
        """Return the answers to questions, of our own loop or of another engine."""
        prompts = [question.example.prompt for question in questions]
        media = batched([question.media for question in questions])
        if self.engine is None:
            out = generate(self.target, self.drafter, prompts, **media, **self.options | {"seed": seed})
            return Said(out.text, out.token_ids, out.finish_reason)
        answer = self.engine.answer(prepare(self.target, prompts, **media), seed % 2**63)
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

    def _record(self, question: Question, out: Said, row: int) -> dict[str, Any]:
        references = [
            image if isinstance(image, str) else self.writer.save_picture(picture)
            for image, picture in zip(question.example.images, question.media.get("images", ()), strict=True)
        ]
        others: dict[str, Any] = {
            name: tuple(self.writer.save_file(one) if isinstance(one, bytes) else one for one in media)
            for name, media in (("videos", question.example.videos), ("audio", question.example.audio))
        }
        answer, answer_ids = out.text[row], tuple(out.token_ids[row])
        example = replace(question.example, images=tuple(references), answer=answer, answer_ids=answer_ids, **others)
        return {"index": question.index, **to_record(example), "finish_reason": out.finish[row]}


def _describe_source(source: Source | Sequence[Example]) -> dict[str, Any]:
    describe = getattr(source, "describe", None)
    return describe() if describe is not None else {"source": type(source).__name__, "examples": len(source)}


def _check_numbers(batch_size: int, shard: int, shards: int, max_failures: int | None) -> None:
    if batch_size < 1:
        raise MMSpecError(f"batch_size={batch_size} must be at least 1")
    if shards < 1 or not 0 <= shard < shards:
        raise MMSpecError(f"shard={shard} of shards={shards}: shards are numbered from 0 to shards - 1")
    if max_failures is not None and max_failures < 0:
        raise MMSpecError(f"max_failures={max_failures} must not be negative; null never stops")
