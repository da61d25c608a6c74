"""One question on its way: waiting, loading, and then plain and speculative decoding in turns, as a generator of views.

Both sides decode on one machine, so they must not run at the same time. The one that had less time so far goes next, by
its own clock, which stands while the other works. So at any moment both have had the same time, up to one round, and
what is on the page is what each would have written by then with the machine to itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import MMSpecError
from ..generation import stream
from ..inputs import prepare
from . import picture
from .choices import Choices
from .limits import Limits
from .line import Line
from .models import Method, Models
from .question import Question

if TYPE_CHECKING:
    from ..generation import Output, Piece
    from ..inputs import Request

FRAME = 0.1
"""Seconds between two views: to show every round would cost more than to decode it."""
PATIENCE = 0.5
"""Seconds between two views of one who waits, who may have left."""


@dataclass(frozen=True)
class Side:
    """One way of decoding at one moment.

    Args:
        spans: the text, `(text, drafted, round)`, a new one for every round and every change of origin.
        tokens: new ones.
        rounds: passes of the target after the prompt's.
        seconds, prompt_seconds: by its own clock; the second of them for the prompt and the first token.
        out: the result, once there is one.
    """

    spans: tuple[tuple[str, bool, int], ...] = ()
    tokens: int = 0
    rounds: int = 0
    seconds: float = 0.0
    prompt_seconds: float = 0.0
    out: Output | None = None

    @property
    def tokens_per_second(self) -> float:
        """As `Stats` has it, the prompt's time and token not counted; 0 before the second token."""
        if self.out is not None:
            return self.out.stats.tokens_per_second
        spent = self.seconds - self.prompt_seconds
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0

    @property
    def tokens_per_second_end_to_end(self) -> float:
        """As `Stats` has it, the prompt's time and token counted; 0 before the first token."""
        if self.out is not None:
            return self.out.stats.tokens_per_second_end_to_end
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per pass of the target, the prompt's pass and its token not counted; 1 before the first round."""
        if self.out is not None:
            return self.out.stats.mean_acceptance_length
        return (self.tokens - 1) / self.rounds if self.rounds else 1.0


@dataclass(frozen=True)
class View:
    """What there is to see at one moment.

    Args:
        state: `"waiting"`, `"loading"`, `"answering"`, and at the end `"done"`, `"stopped"`, `"refused"` (for what the
            user can put right) or `"failed"` (for what only the owner of the page can).
        message: what is wrong, in words; once done, where the texts differ though they should not.
        before: while waiting, the questions that come first.
        plain, speculative: both sides.
        same: once done, whether both wrote the same tokens.
        exact: whether they have to.
        shared: whether others were answered at the same time.
    """

    state: str
    message: str = ""
    before: int = 0
    plain: Side = field(default_factory=Side)
    speculative: Side = field(default_factory=Side)
    same: bool | None = None
    exact: bool = False
    shared: bool = False

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "loading", "answering")


class Lane:
    """A side that decodes: a stream and the clock of its steps."""

    def __init__(self, pieces: Generator[Piece, None, Output]):
        self._pieces = pieces
        self.spans: list[tuple[str, bool, int]] = []
        self.tokens = self.rounds = 0
        self.seconds = self.prompt_seconds = 0.0
        self.out: Output | None = None

    def step(self) -> None:
        """Decode one round."""
        start = time.perf_counter()
        try:
            piece = next(self._pieces)
        except StopIteration as end:
            self.out = end.value
            return
        self.seconds += time.perf_counter() - start
        if piece.round == 0:
            self.prompt_seconds = self.seconds
        self.spans += [(text, drafted, piece.round) for text, drafted in piece.spans]
        self.tokens += len(piece.token_ids)
        self.rounds = piece.round

    def close(self) -> None:
        self._pieces.close()

    @property
    def side(self) -> Side:
        return Side(tuple(self.spans), self.tokens, self.rounds, self.seconds, self.prompt_seconds, self.out)


class Desk:
    """What all questions share: the models, the line, the limits.

    Args:
        choices: what may be chosen.
        limits: of what is asked and of what it is asked about.
        line: where questions wait.
    """

    def __init__(self, choices: Choices, limits: Limits | None = None, line: Line | None = None):
        self.choices = choices
        self.limits = Limits() if limits is None else limits
        self.line = Line() if line is None else line  # an empty line is false
        self.models = Models(choices)
        self.steps = 0
        """Rounds that were decoded for anybody since the page was started; it stands still when nobody asks."""

    def ask(self, question: Question) -> Session:
        return Session(self, question)


class Session:
    """One question, all of whose state is its own."""

    def __init__(self, desk: Desk, question: Question):
        self.desk, self.question = desk, question
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the round that is being decoded, and keep what is there; from any thread."""
        self._stopped.set()

    def views(self) -> Iterator[View]:
        """What there is to see, until the answer ends. Closing the generator ends the work.

        It raises nothing that the user or the owner of the machine could have brought about: that is a view as well.
        """
        try:
            # First of all: what is refused neither waits nor keeps others waiting.
            self.question.check(self.desk.limits)
            self.desk.choices.check(self.question.chosen)
            with self.desk.line.place() as place:
                while before := place.before:
                    if self._stopped.is_set():
                        yield View("stopped")
                        return
                    yield View("waiting", before=before)
                    place.wait(PATIENCE)
                for view in self._answer():
                    yield replace(view, shared=place.shared)
        except MMSpecError as error:
            yield View("refused", self.desk.choices.in_words(error))
        except Exception as error:
            # The page has to say something, whatever it was; the owner finds the whole of it in the terminal.
            import traceback

            traceback.print_exc()
            yield View("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _answer(self) -> Iterator[View]:
        question, desk = self.question, self.desk
        if not desk.models.loaded(question.chosen):
            yield View("loading")
        image = None if not question.image else picture.read(question.image, desk.limits, question.image_name)
        method = desk.models.method(question.chosen)
        request = prepare(method.target, question.prompt, None if image is None else [image])
        lanes = plain, speculative = [Lane(pieces) for pieces in self._streams(method, request)]
        shown = 0.0
        try:
            yield View("answering")
            while running := [lane for lane in lanes if lane.out is None]:
                min(running, key=lambda lane: lane.seconds).step()
                desk.steps += 1
                if time.perf_counter() - shown > FRAME:
                    yield View("answering", plain=plain.side, speculative=speculative.side)
                    shown = time.perf_counter()
        finally:
            for lane in lanes:
                lane.close()
        sides = {"plain": plain.side, "speculative": speculative.side}
        if self._stopped.is_set():
            yield View("stopped", **sides)
            return
        exact = question.temperature == 0 and speculative.out.stats.lossless
        same = plain.out.token_ids == speculative.out.token_ids
        message = "" if same or not exact else _difference(method, request, plain.out, speculative.out)
        yield View("done", message, **sides, same=same, exact=exact)

    def _streams(self, method: Method, request: Request) -> list[Generator[Piece, None, Output]]:
        """Plain and speculative decoding of the question; what does not go together is refused here."""
        question = self.question
        shared: dict[str, Any] = {
            "inputs": request,
            "max_new_tokens": question.max_new_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            # Ends a stream with its result, unlike closing it, so that one who stops may look at the trees so far.
            "stopping_criteria": [lambda ids, scores: self._stopped.is_set()],
        }
        shape = {"tree": method.tree, "verifier": method.verifier}
        return [
            stream(method.target, None, **shared),
            stream(method.target, method.drafter, **shared, **shape, trace=True),
        ]


def _difference(method: Method, request: Request, plain: Output, speculative: Output) -> str:
    """Where two texts that should be one differ first, and whether rounding explains it."""
    from ..exactness import explained

    found = explained(method.target, request, plain.token_ids, speculative.token_ids)
    return f"{'by rounding' if found['excused'] else 'not by rounding'}: {found['text']}"
