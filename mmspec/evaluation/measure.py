"""The measurement: every side answers the same requests, in turns, and every answer is held against plain decoding."""

from __future__ import annotations

import gc
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..data import Source
from ..decoding.clock import PHASES, PROMPT_PHASES, PhaseClock
from ..decoding.stats import Round
from ..decoding.text import whole_text
from ..errors import MMSpecError, cut
from ..exactness import TIE, Attribution, Divergence, complaint_of, divergences
from ..inputs import Request
from ..memory import Memories, unchanged
from ..similarity import similarity
from ..target import Target
from .bundle import COMPLETE, FAILED, INTERRUPTED, Bundle, BundleWriter
from .engines import Answer, Engine
from .failures import failure, out_of_memory, reason_of, wrapped
from .methods import PLAIN, Method
from .questions import QuestionGroup, Questions

REPORT, FAIL = "report", "fail"

Progress = Callable[[int, int, str], None]


@dataclass
class Protocol:
    """The settings of a measurement.

    Args:
        repeats: times that everything is measured.
        warmup: answers of each side before anything counts.
        batch_size: prompts that are answered together; several numbers are measured one after the other.
        mixed: whether the prompts of a batch are of different tasks, in turns, or all of one.
        limit: at most so many questions of each task; None for all.
        seed: seed of the sampling; every request has its own, which follows from this one.
        tie: see `divergences`.
        on_divergence: `fail` ends the measuring of a method at its first answer that must not differ from plain
            decoding and does, be it a near-tie in float32 or more than that in half precision; `report` goes on.
        attributed: differing answers of each method whose cause is looked for, see `mmspec.exactness.attribute`.

    Raises:
        MMSpecError: for a number that is too small, and for batch sizes that are no numbers, or the same ones.
    """

    repeats: int = 3
    warmup: int = 1
    batch_size: Any = 1
    mixed: bool = False
    limit: int | None = None
    seed: int = 0
    tie: float = TIE
    on_divergence: str = FAIL
    attributed: int = 3

    @property
    def batches(self) -> list[int]:
        """The batch sizes, from the smallest, in the order in which they are measured."""
        several = isinstance(self.batch_size, list | tuple)
        return sorted(self.batch_size) if several else [self.batch_size]

    def __post_init__(self) -> None:
        check_batches(self.batch_size)
        for name, least in (("repeats", 1), ("warmup", 0), ("limit", 1), ("tie", 0), ("attributed", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise MMSpecError(f"{name}={value} must be at least {least}")
        if self.on_divergence not in (REPORT, FAIL):
            raise MMSpecError(f"on_divergence={self.on_divergence} must be {FAIL} or {REPORT}")


def check_batches(given: Any) -> None:
    """Refuse batch sizes that are no whole numbers of 1 or more, or that are given twice."""
    sizes = list(given) if isinstance(given, list | tuple) else [given]
    said = ",".join(map(str, sizes))
    wrong = [size for size in sizes if not isinstance(size, int) or isinstance(size, bool) or size < 1]
    if wrong or not sizes:
        what = f"{wrong[0]!r} is no whole number of at least 1" if wrong else "there is no number"
        raise MMSpecError(f"batch_size={said}: {what}; give one, or several such as batch_size=1,4,8")
    if twice := [size for size in sizes if sizes.count(size) > 1]:
        raise MMSpecError(f"batch_size={said} has {twice[0]} more than once: leave one out, each is measured once")


class Measurement:
    """One run of a comparison.

    A method that fails, whatever the reason, is left out from there on and the others are measured; the bundle says
    why. The run ends early if plain decoding fails, with which all are compared, or when no other method is left.

    Args:
        target: who answers.
        methods: what is compared, plain decoding first.
        source: what is asked.
        protocol: how it is measured.
        writer: writes the bundle.
        notice: called with a line when a method fails.
    """

    def __init__(
        self,
        target: Target,
        methods: Sequence[Method],
        source: Source,
        protocol: Protocol,
        writer: BundleWriter,
        notice: Callable[[str], None] = lambda line: None,
    ):
        self.target, self.protocol, self.writer, self.notice = target, protocol, writer, notice
        self.methods = [replace(method) for method in methods]  # what fails here has not failed elsewhere
        self.questions = Questions(target, source, protocol.batches, protocol.limit, protocol.mixed)
        self.first: dict[tuple[int, int, str], tuple[list[list[int]], list[tuple]]] = {}
        self.timed = self.booked = 0.0
        self.booking = booking_seconds()
        self.warmed: set[int] = set()
        """Batch sizes at which every side has warmed up."""
        self.causes: dict[tuple[str, int, str, int], Attribution | None] = {}
        """Causes of answers that differ, by label, batch size, prompt and turn."""

    def run(self, manifest: dict[str, Any], progress: Progress = lambda done, total, what: None) -> None:
        """Measure what is not yet in the bundle.

        Args:
            manifest: manifest of the bundle; what the measurement itself knows is added.
            progress: called with the blocks done, the blocks in all if no picture fails, and what is being done.

        Raises:
            Divergence: if no method is left, and the last one wrote another text than plain decoding and must not.
            MMSpecError: if no question could be asked, no method is left, or the bundle cannot be written.
        """
        protocol = {field.name: getattr(self.protocol, field.name) for field in fields(Protocol)}
        del protocol["batch_size"]
        sizes = self.protocol.batches
        protocol["batch"] = sizes if len(sizes) > 1 else sizes[0]
        manifest |= {"requests": len(self.questions.groups), "skipped": [], **protocol}
        done = self.writer.begin(manifest | {"sides": [method.describe() for method in self.methods]})
        self.questions.skipped = {skip["id"]: skip["reason"] for skip in self.writer.manifest["skipped"]}
        for method, side in zip(self.methods, self.writer.manifest["sides"], strict=True):
            if side["failed"]:
                method.failed = side["failed"]
                self.notice(f"{method.label} is left out: {side['failed']['reason']}")
        started = time.perf_counter()
        try:
            if done:
                self._recall()
            self._go_on()
            turns = [(group, turn) for group in self.questions.groups for turn in range(group.turns)]
            blocks = [(*one, repeat) for repeat in range(self.protocol.repeats) for one in turns]
            memories, begun = Memories(*(part for method in self.methods for part in method.remembering)), 0
            for count, (group, turn, repeat) in enumerate(blocks):
                if repeat != begun:  # a repeat asks the same questions, and must not find the answers
                    memories.restore()
                    begun = repeat
                size = f", batch size {group.batch}" if len(sizes) > 1 else ""
                what = f"{group.task or 'question'} {group.number + 1}{size}, repeat {repeat + 1}"
                progress(count, len(blocks), what)
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
        methods = [method for method in self.methods if method.takes(group.batch)]
        if group.batch not in self.warmed:
            with unchanged(*(part for method in methods for part in method.remembering)):
                for _ in range(self.protocol.warmup):
                    self._each(methods, question, lambda engine: engine.answer(request, 0).complete())
            self.warmed.add(group.batch)
        seed = self.protocol.seed + 1009 * (group.number * 64 + turn + 1)
        order = _order(methods, group.number + turn, repeat)
        answers: dict[str, Answer] = self._each(order, question, lambda engine: engine.answer(request, seed).complete())
        self.timed += sum(answer.wall for answer in answers.values())
        self.booked += self.booking * sum(len(answer.rounds) for answer in answers.values())
        ids, plain = [example.id for example in examples], answers[PLAIN]
        records: list[dict[str, Any]] = []
        rounds: list[dict[str, Any]] = []
        wrong: list[tuple[Method, Divergence]] = []
        for method in (method for method in methods if method.label in answers):
            answer = answers[method.label]
            place = {"request": group.number, "turn": turn, "repeat": repeat, "side": method.label}
            record = place | {"ids": ids, "task": group.task, "batch": group.batch, "order": order.index(method)}
            record |= _timed(request, answer)
            if repeat == 0:
                record |= self._judged(method.running, group, turn, ids, plain, answer)
            record |= self._repeated(place, answer) | self._compared(method.running, request, plain, answer, seed)
            self._attribute(method, group, turn, record, seed)
            if (complaint := self._complaint(method, record)) is not None:
                wrong.append((method, complaint))
            records.append(record)
            rounds += [place | {"round": number} | vars(entry) for number, entry in enumerate(answer.rounds)]
        if repeat == 0:
            group.said[turn] = dict(zip(ids, records[0]["text"], strict=True))
        self.writer.add(records, rounds)
        for method, complaint in wrong:
            self._fail(method, complaint)
            self._go_on(complaint)

    def _each(self, methods: Sequence[Method], question: str, act: Callable[[Engine], Any]) -> dict[str, Any]:
        """Return what each method does that has not failed, by its label; one that fails now is left out from here on.

        Raises:
            Exception: that of plain decoding, or of the last method.
        """
        results = {}
        for method in methods:
            if method.failed:
                continue
            try:
                results[method.label] = act(method.running)
            except Exception as error:  # of whatever kind: it must not cost the others their figures
                outcome = wrapped(error, f"method {method.label!r}, question {question!r}")
                if method.label == PLAIN:
                    raise outcome from (None if outcome is error else error)
                self._fail(method, error, f"question {question!r}: ")
                self._go_on(outcome)
        return results

    def _fail(self, method: Method, error: Exception, where: str = "") -> None:
        """Leave a method out from here on."""
        method.failed = failure(error, where)
        self.writer.update(sides=[one.describe() for one in self.methods])
        if out_of_memory(error):  # what it held must not keep the others from theirs
            error.__traceback__ = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        others = ", the others go on" if any(one.competes and not one.failed for one in self.methods) else ""
        self.notice(f"{method.label} failed{others}: {where}{reason_of(error)}")

    def _go_on(self, error: Exception | None = None) -> None:
        """End the run if no method is left to compare with plain decoding."""
        competing = [method for method in self.methods if method.competes]
        reasons = [method.failed["reason"] for method in competing if method.failed]
        if reasons and len(reasons) == len(competing):
            raise error or MMSpecError(f"no method is left to measure: {reasons[0]}; begin another bundle")

    def _judged(
        self, engine: Engine, group: QuestionGroup, turn: int, ids: list[str], plain: Answer, answer: Answer
    ) -> dict[str, Any]:
        """Return what a record has of an answer's text: it is the same in every repeat, and so in the first alone."""
        tokenizer = self.target.tokenizer
        said = [whole_text(tokenizer, row) for row in answer.token_ids]
        similar = None
        if not engine.lossless and engine.sampling.temperature == 0:  # where it may differ, and is not drawn
            similar = [similarity(*pair) for pair in zip(plain.token_ids, answer.token_ids, strict=True)]
        return {
            "token_ids": answer.token_ids,
            "text": said,
            "retokenized": [None if text is None else len(tokenizer(text)["input_ids"]) for text in said],
            **self.questions.judged(group, turn, dict(zip(ids, said, strict=True))),
            "similarity": similar,
        }

    def _repeated(self, place: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Return whether the same seed gave the same tokens, and the same counts, as the first time.

        A tree that follows the times may have other counts.
        """
        given = answer.token_ids, [(entry.drafted, entry.accepted, entry.emitted) for entry in answer.rounds]
        first = self.first.setdefault((place["request"], place["turn"], place["side"]), given)
        return {"repeatable": first[0] == given[0], "same_rounds": first == given}

    def _compared(self, engine: Engine, request: Request, plain: Answer, answer: Answer, seed: int) -> dict[str, Any]:
        """Return whether an answer that has to be plain decoding's is, and where it differs."""
        if not engine.exact or plain.token_ids == answer.token_ids:
            return {"same": True if engine.exact else None, "divergence": None}
        both = plain.token_ids, answer.token_ids
        found = divergences(self.target, request, *both, engine.sampling, seed, self.protocol.tie)
        return {"same": False, "divergence": found}

    def _attribute(self, method: Method, group: QuestionGroup, turn: int, record: dict[str, Any], seed: int) -> None:
        """Note with the differences of a record what causes them, of the first `attributed` of a method.

        Of a batch, each prompt is asked alone: that scores nodes one at a time.
        """
        for difference in record["divergence"] or []:
            name = record["ids"][difference["row"]]
            place = method.label, group.batch, name, turn
            if place not in self.causes:
                if sum(label == method.label for label, *_ in self.causes) >= self.protocol.attributed:
                    continue
                example = next(one for one in group.examples if one.id == name)
                request, _ = self.questions.request(replace(group, examples=[example]), turn)
                assert request is not None  # it was asked before
                self.causes[place] = method.running.attribute(request, seed)
            if (found := self.causes[place]) is not None:
                alone = " (asked alone)" if len(record["ids"]) > 1 else ""
                difference |= {"cause": found.cause, "attribution": f"{found}{alone}"}
                difference["excused"] = found.excuses(self.target, difference)

    def _complaint(self, method: Method, record: dict[str, Any]) -> Divergence | None:
        """Return what makes a method fail that has answered. What transformers decodes, and the control, never fail."""
        ours = method.choices.get("engine", "mmspec") == "mmspec" and not method.control
        if self.protocol.on_divergence == REPORT or not ours:
            return None
        complaint = complaint_of(self.target, record)
        way_out = f"the bundle {self.writer.folder} has the answers; on_divergence={REPORT} measures on"
        return None if complaint is None else Divergence(f"method {method.label!r} {complaint}; {way_out}")

    def _recall(self) -> None:
        """Take up what an earlier run has measured."""
        bundle, groups = Bundle.open(self.writer.folder), self.questions.groups
        counts: dict[tuple, list] = defaultdict(list)
        for entry in bundle.rounds:
            if entry["repeat"] == 0:
                counted = entry["drafted"], entry["accepted"], entry["emitted"]
                counts[entry["request"], entry["turn"], entry["side"]].append(counted)
        for record in (record for record in bundle.requests if record["repeat"] == 0):
            place = record["request"], record["turn"], record["side"]
            self.first[place] = record["token_ids"], counts[place]
            if record["request"] >= len(groups):
                raise MMSpecError(f"{self.writer.folder} has answers to questions that the task does not have")
            if record["side"] == PLAIN:
                said = dict(zip(record["ids"], record["text"], strict=True))
                groups[record["request"]].said[record["turn"]] = said


def _order(methods: list[Method], number: int, repeat: int) -> list[Method]:
    """Return methods in turns: the first one changes from request to request, the direction by repeat."""
    shift = number % len(methods)
    order = methods[shift:] + methods[:shift]
    return order[::-1] if repeat % 2 else order


def _timed(request: Request, answer: Answer) -> dict[str, Any]:
    """Return what a record has of an answer's times and counts."""
    return {
        "wall": answer.wall,
        "seconds": answer.seconds,
        **({"cache_bytes": answer.cache_bytes} if answer.cache_bytes else {}),
        **({} if answer.overlap_seconds is None else {"overlap_seconds": answer.overlap_seconds}),
        "prompt_tokens": request.lengths,
        "new_tokens": [len(row) for row in answer.token_ids],
        "first_tokens": answer.first_tokens,
        "passes": answer.passes,
        "finish": answer.finish,
    }


def booking_seconds(rounds: int = 2000) -> float:
    """Return the seconds that keeping the records of a round takes: all that measuring adds to the measured time."""
    clock, phases, entries = PhaseClock(), [phase for phase in PHASES if phase not in PROMPT_PHASES], []
    started = time.perf_counter()
    for _ in range(rounds):
        seconds = clock.begin_round()
        for phase in phases:
            clock.lap(phase)
        entry = Round([0], [0], [0], 0)
        entry.seconds = seconds
        entries.append(entry)
    return (time.perf_counter() - started) / rounds
