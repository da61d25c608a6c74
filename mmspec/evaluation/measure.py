"""The measurement: every side answers the same requests, in turns, and every answer is held against plain decoding."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import Source
from ..decoding.clock import PHASES, PhaseClock
from ..decoding.stats import Round
from ..errors import MMSpecError, cut
from ..exactness import TIE, Divergence, complaint_of, divergences
from ..inputs import Request
from ..similarity import similarity
from ..target import Target
from .bundle import COMPLETE, FAILED, INTERRUPTED, Block, Bundle, BundleWriter
from .engines import Answer, texts
from .methods import PLAIN, Side, failure, out_of_memory, reason_of, wrapped
from .questions import QuestionGroup, Questions

REPORT, FAIL = "report", "fail"


@dataclass
class Protocol:
    """The settings of a measurement.

    Args:
        repeats: times that everything is measured.
        warmup: answers of each side before anything counts.
        batch: prompts that are answered together, all of one task.
        limit: at most so many questions of each task; None for all.
        seed: seed of the sampling; every request has its own, which follows from this one.
        tie: see `divergences`.
        on_divergence: `fail` ends the measuring of a method at its first answer that must not differ from plain
            decoding and does, be it a near-tie in float32 or more than that in half precision; `report` goes on.
    """

    repeats: int = 3
    warmup: int = 1
    batch: int = 1
    limit: int | None = None
    seed: int = 0
    tie: float = TIE
    on_divergence: str = FAIL

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("warmup", 0), ("batch", 1), ("limit", 1), ("tie", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise MMSpecError(f"{name}={value} must be at least {least}")
        if self.on_divergence not in (REPORT, FAIL):
            raise MMSpecError(f"on_divergence={self.on_divergence} must be {FAIL} or {REPORT}")


class Measurement:
    """One run of a comparison.

    A side that fails, whatever the reason, is left out from there on and the others are measured; the bundle says why.
    The run ends early if plain decoding fails, with which all are compared, or when no other side is left.

    Args:
        target: who answers.
        sides: what is compared, plain decoding first.
        source: what is asked.
        protocol: how it is measured.
        writer: writes the bundle.
        notice: called with a line when a side fails.
    """

    def __init__(
        self,
        target: Target,
        sides: Sequence[Side],
        source: Source,
        protocol: Protocol,
        writer: BundleWriter,
        notice: Callable[[str], None] = lambda line: None,
    ):
        self.target, self.sides, self.protocol, self.writer = target, list(sides), protocol, writer
        self.notice = notice
        self.failed: set[str] = set()
        self.questions = Questions(target, source, protocol.batch, protocol.limit)
        self.first: dict[tuple[int, int, str], tuple[list[list[int]], list[tuple]]] = {}
        self.timed = self.booked = 0.0
        self.booking, self.warmed = booking_seconds(), False

    @property
    def blocks(self) -> int:
        """Number of blocks that `run` reports to `progress`, if no picture fails."""
        return self.protocol.repeats * sum(group.turns for group in self.questions.groups)

    def run(self, manifest: dict[str, Any], progress: Callable[[int, str], None] = lambda done, what: None) -> None:
        """Measure what is not yet in the bundle.

        Args:
            manifest: manifest of the bundle; what the measurement itself knows is added.
            progress: called with the blocks done and what is being done.

        Raises:
            Divergence: if no method is left, and the last one wrote another text than plain decoding and must not.
            MMSpecError: if no question could be asked, no method is left, or the bundle cannot be written.
        """
        manifest |= {"requests": len(self.questions.groups), "skipped": [], **vars(self.protocol)}
        done = self.writer.begin(manifest | {"sides": [side.describe() for side in self.sides]})
        self.questions.skipped = {skip["id"]: skip["reason"] for skip in self.writer.manifest["skipped"]}
        for side in self.writer.manifest["sides"]:
            if side["failed"]:
                self.failed.add(side["label"])
                self.notice(f"{side['label']} is left out: {side['failed']['reason']}")
        started = time.perf_counter()
        try:
            self._recall(done)
            self._go_on()
            count = 0
            for repeat in range(self.protocol.repeats):
                for group in self.questions.groups:
                    for turn in range(group.turns):
                        progress(count, f"{group.task or 'question'} {group.number + 1}, repeat {repeat + 1}")
                        count += 1
                        if (group.number, turn, repeat) not in done:
                            self._measure(group, turn, repeat)
            if not self.first:
                reasons = "; ".join(dict.fromkeys(self.questions.skipped.values()))
                raise MMSpecError(f"none of the {len(self.questions.skipped)} questions could be asked: {reasons}")
        except KeyboardInterrupt:
            self.writer.update(status=INTERRUPTED, skipped=self.questions.skips())
            raise
        except Exception as error:
            self.writer.update(status=FAILED, error=cut(reason_of(error), 500), skipped=self.questions.skips())
            raise
        run = time.perf_counter() - started
        self.writer.update(
            status=COMPLETE,
            finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            skipped=self.questions.skips(),
            seconds={"run": run, "timed": self.timed, "measuring": self.booked},
        )

    def _measure(self, group: QuestionGroup, turn: int, repeat: int) -> None:
        """Measure one block: all sides, one request."""
        request, examples = self.questions.request(group, turn)
        if request is None:
            return
        question = examples[0].id
        for _ in range(0 if self.warmed else self.protocol.warmup):
            for side in self.sides:
                self._try(side, question, lambda side: side.running.answer(request, 0))
        self.warmed = True
        for side in self.sides:
            self._try(side, question, lambda side: side.running.ready(request))
        seed = self.protocol.seed + 1009 * (group.number * 64 + turn + 1)
        answers: dict[str, Answer] = {}
        order = self._order(group.number + turn, repeat)
        for side in order:
            answer = self._try(side, question, lambda side: side.running.answer(request, seed))
            if answer is not None:
                answers[side.label] = answer
        self.timed += sum(answer.wall for answer in answers.values())
        self.booked += self.booking * sum(len(answer.rounds) for answer in answers.values())
        plain = answers[PLAIN]
        records: list[dict[str, Any]] = []
        rounds: list[dict[str, Any]] = []
        wrong: dict[str, Divergence] = {}
        for side in self.sides:
            if side.label in self.failed:
                continue
            answer = answers[side.label]
            key = {"request": group.number, "turn": turn, "repeat": repeat, "side": side.label}
            record: dict[str, Any] = key | {
                "ids": [example.id for example in examples],
                "task": group.task,
                "order": order.index(side),
                "wall": answer.wall,
                "seconds": answer.seconds,
                "prompt_tokens": request.lengths,
                "new_tokens": answer.new_tokens,
                "first_tokens": answer.first_tokens,
                "passes": answer.passes,
                "finish": answer.finish,
            }
            if repeat == 0:
                said = texts(self.target, answer.token_ids)
                record |= {"token_ids": answer.token_ids, "text": said, "retokenized": self._counts(said)}
                record |= self.questions.judged(group, turn, dict(zip(record["ids"], said, strict=True)))
                record["similarity"] = self._similarity(side, plain, answer)
            record["repeatable"] = self._repeatable(key, answer)
            record |= self._compared(side, request, plain, answer, seed)
            if (complaint := self._complaint(side, record)) is not None:
                wrong[side.label] = complaint
            records.append(record)
            rounds += [key | {"round": number} | vars(entry) for number, entry in enumerate(answer.rounds)]
        if repeat == 0:
            group.said[turn] = dict(zip(records[0]["ids"], records[0]["text"], strict=True))
        self.writer.add(records, rounds)
        for label, complaint in wrong.items():
            self._fail(label, complaint, complaint)
        if wrong:
            self._go_on(next(reversed(wrong.values())))

    def _try(self, side: Side, question: str, act: Callable[[Side], Any]) -> Any:
        """Return what a side does, or None if it failed before or does so now."""
        if side.label in self.failed:
            return None
        try:
            return act(side)
        except Exception as error:  # of whatever kind: it must not cost the others their figures
            outcome = wrapped(error, f"method {side.label!r}, question {question!r}")
            if side.label == PLAIN:
                raise outcome from (None if outcome is error else error)
            self._fail(side.label, error, outcome, f"question {question!r}: ")
            self._go_on(outcome)
        return None

    def _fail(self, label: str, error: Exception, outcome: Exception, where: str = "") -> None:
        """Leave a side out from here on."""
        self.failed.add(label)
        self.writer.fail(label, failure(error, where))
        if out_of_memory(error):  # what it held must not keep the others from theirs
            error.__traceback__ = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        others = ", the others go on" if self._left() else ""
        self.notice(f"{label} failed{others}: {where}{reason_of(error)}")

    def _go_on(self, error: Exception | None = None) -> None:
        """End the run if no side is left to compare with plain decoding."""
        if not self._left() and any(side.competes for side in self.sides):
            reasons = [side["failed"]["reason"] for side in self.writer.manifest["sides"] if side["failed"]]
            raise error or MMSpecError(f"no method is left to measure: {reasons[0]}; begin another bundle")

    def _left(self) -> list[Side]:
        """Return the methods that have not failed."""
        return [side for side in self.sides if side.competes and side.label not in self.failed]

    def _order(self, number: int, repeat: int) -> list[Side]:
        """Return the sides in turns: the first one changes from request to request, the direction by repeat."""
        shift = number % len(self.sides)
        order = self.sides[shift:] + self.sides[:shift]
        return order[::-1] if repeat % 2 else order

    def _counts(self, said: Sequence[str | None]) -> list[int | None]:
        tokenizer = self.target.tokenizer
        return [None if text is None else len(tokenizer(text)["input_ids"]) for text in said]

    def _repeatable(self, key: dict[str, Any], answer: Answer) -> bool:
        """Return True if the same seed gave the same tokens and counts as the first time."""
        place = key["request"], key["turn"], key["side"]
        counts = [(entry.drafted, entry.accepted, entry.emitted) for entry in answer.rounds]
        return self.first.setdefault(place, (answer.token_ids, counts)) == (answer.token_ids, counts)

    def _compared(self, side: Side, request: Request, plain: Answer, answer: Answer, seed: int) -> dict[str, Any]:
        if not side.running.exact:
            return {"same": None, "divergence": None}
        if plain.token_ids == answer.token_ids:
            return {"same": True, "divergence": None}
        found = divergences(
            self.target, request, plain.token_ids, answer.token_ids, side.running.sampling, seed, self.protocol.tie
        )
        return {"same": False, "divergence": found}

    def _similarity(self, side: Side, plain: Answer, answer: Answer) -> list[float] | None:
        """Return how like plain decoding's the tokens of every row are where they may differ; None if sampled."""
        if side.running.lossless or side.running.sampling.temperature > 0:
            return None
        return [similarity(*pair) for pair in zip(plain.token_ids, answer.token_ids, strict=True)]

    def _complaint(self, side: Side, record: dict[str, Any]) -> Divergence | None:
        """Return what makes a side fail that has answered. What transformers decodes, and the control, never fail."""
        ours = side.method.choices.get("engine", "mmspec") == "mmspec" and not side.method.control
        if self.protocol.on_divergence == REPORT or not ours:
            return None
        complaint = complaint_of(self.target, record)
        if complaint is None:
            return None
        way_out = f"the bundle {self.writer.folder} has the answers; on_divergence={REPORT} measures on"
        return Divergence(f"method {side.label!r} {complaint}; {way_out}")

    def _recall(self, done: set[Block]) -> None:
        """Take up what an earlier run has measured."""
        if not done:
            return
        bundle = Bundle.open(self.writer.folder)
        counts: dict[tuple, list] = {}
        for entry in bundle.rounds:
            if entry["repeat"] == 0:
                place = entry["request"], entry["turn"], entry["side"]
                counts.setdefault(place, []).append((entry["drafted"], entry["accepted"], entry["emitted"]))
        for record in bundle.requests:
            if record["repeat"] == 0:
                place = record["request"], record["turn"], record["side"]
                self.first[place] = record["token_ids"], counts.get(place, [])
                if record["side"] == PLAIN:
                    if record["request"] >= len(self.questions.groups):
                        raise MMSpecError(f"{self.writer.folder} has answers to questions that the task does not have")
                    said = dict(zip(record["ids"], record["text"], strict=True))
                    self.questions.groups[record["request"]].said[record["turn"]] = said


def booking_seconds(rounds: int = 2000) -> float:
    """Return the seconds that keeping the records of a round takes: all that measuring adds to the measured time."""
    clock, phases, entries = PhaseClock(), PHASES[2:], []
    started = time.perf_counter()
    for _ in range(rounds):
        seconds = clock.begin_round()
        for phase in phases:
            clock.lap(phase)
        entry = Round([0], [0], [0], 0)
        entry.seconds = seconds
        entries.append(entry)
    return (time.perf_counter() - started) / rounds
