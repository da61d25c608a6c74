"""A question on its way: it waits, loads models, and is then decoded plainly and speculatively in turns. Yields views.

Both sides decode on one machine, so they must not run at the same time. The side with less time on its own clock goes
next; the clock stands while the other side works. So at any moment both have had the same time, up to one round, and
the page shows what each would have written by then with the machine to itself.
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
from .limits import PageLimits
from .line import WaitingLine
from .models import LoadedMethod, Models
from .question import PageQuestion

if TYPE_CHECKING:
    from ..generation import Output, Piece
    from ..inputs import Request

FRAME = 0.1
"""Seconds between two views: to show every round would cost more than to decode it."""
PATIENCE = 0.5
"""Seconds between two views of a visitor who waits, and who may have left."""


@dataclass(frozen=True)
class SideState:
    """State of one side, plain or speculative, at one moment.

    Args:
        spans: the text as `(text, drafted, round)`, a new span for every round and every change of origin.
        tokens: number of new tokens.
        rounds: number of passes of the target after the pass over the prompt.
        seconds, prompt_seconds: time on the side's own clock; the second is the time for the prompt and the first
            token.
        out: the result, once the answer is complete.
    """

    spans: tuple[tuple[str, bool, int], ...] = ()
    tokens: int = 0
    rounds: int = 0
    seconds: float = 0.0
    prompt_seconds: float = 0.0
    out: Output | None = None

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed as in `Stats`, without the time and the token of the prompt's pass; 0 before the second
        token."""
        if self.out is not None:
            return self.out.stats.tokens_per_second
        spent = self.seconds - self.prompt_seconds
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0

    @property
    def tokens_per_second_end_to_end(self) -> float:
        """Speed as in `Stats`, with the time and the token of the prompt's pass; 0 before the first token."""
        if self.out is not None:
            return self.out.stats.tokens_per_second_end_to_end
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per pass of the target, without the prompt's pass and its token; 1 before the first round."""
        if self.out is not None:
            return self.out.stats.mean_acceptance_length
        return (self.tokens - 1) / self.rounds if self.rounds else 1.0


@dataclass(frozen=True)
class View:
    """The state of a question at one moment, as the page shows it.

    Args:
        state: `"waiting"`, `"loading"`, `"answering"`, and at the end `"done"`, `"stopped"`, `"refused"` (the user can
            correct the question) or `"failed"` (only the owner of the page can help).
        message: description of what is wrong; in state `"done"`, of where the texts differ although they should not.
        before: in state `"waiting"`, the number of questions that come first.
        plain, speculative: the two sides.
        same: in state `"done"`, True if both wrote the same tokens.
        exact: True if both have to write the same tokens.
        shared: True if other questions were answered at the same time.
    """

    state: str
    message: str = ""
    before: int = 0
    plain: SideState = field(default_factory=SideState)
    speculative: SideState = field(default_factory=SideState)
    same: bool | None = None
    exact: bool = False
    shared: bool = False

    @property
    def ended(self) -> bool:
        """True in a final state."""
        return self.state not in ("waiting", "loading", "answering")


class Lane:
    """A side that decodes: a stream, and the clock of its steps."""

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
        """End the stream."""
        self._pieces.close()

    @property
    def side(self) -> SideState:
        """State of the side at this moment."""
        return SideState(tuple(self.spans), self.tokens, self.rounds, self.seconds, self.prompt_seconds, self.out)


class Desk:
    """The models, the waiting line and the limits, which all questions share.

    Args:
        choices: options that may be chosen.
        limits: limits of questions and pictures.
        line: line in which questions wait.
    """

    def __init__(self, choices: Choices, limits: PageLimits | None = None, line: WaitingLine | None = None):
        self.choices = choices
        self.limits = PageLimits() if limits is None else limits
        self.line = WaitingLine() if line is None else line  # an empty line is false
        self.models = Models(choices)
        self.steps = 0
        """Number of rounds that were decoded for any question since the page was started; it does not grow when nobody
        asks."""

    def ask(self, question: PageQuestion) -> QuestionSession:
        """Return the session of a question."""
        return QuestionSession(self, question)


class QuestionSession:
    """One question with all of its state."""

    def __init__(self, desk: Desk, question: PageQuestion):
        self.desk, self.question = desk, question
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the answer after the current round and keep what is there; any thread may call this."""
        self._stopped.set()

    def views(self) -> Generator[View, None, None]:
        """Yield views until the answer ends. Closing the generator ends the work.

        An error that the user or the owner of the machine can cause is a view, and is not raised.
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
        """Load the models, decode both sides in turns, and yield views."""
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
        if self._stopped.is_set():
            yield View("stopped", plain=plain.side, speculative=speculative.side)
            return
        own, other = plain.out, speculative.out
        assert own is not None and other is not None  # no side runs any more
        exact = question.temperature == 0 and other.stats.lossless
        same = own.token_ids == other.token_ids
        message = "" if same or not exact else _difference(method, request, own, other)
        yield View("done", message, plain=plain.side, speculative=speculative.side, same=same, exact=exact)

    def _streams(self, method: LoadedMethod, request: Request) -> list[Generator[Piece, None, Output]]:
        """Return plain and speculative decoding of the question; a combination that does not fit is refused here."""
        question = self.question
        shared: dict[str, Any] = {
            "inputs": request,
            "max_new_tokens": question.max_new_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            # Ends a stream with its result, unlike closing it, so that one who stops may look at the trees so far.
            "stopping_criteria": [lambda ids, scores: self._stopped.is_set()],
        }
        return [
            stream(method.target, None, **shared),
            stream(method.target, method.drafter, tree=method.tree, verifier=method.verifier, trace=True, **shared),
        ]


def _difference(method: LoadedMethod, request: Request, plain: Output, speculative: Output) -> str:
    """Return where two texts that should be equal first differ, and whether rounding explains it."""
    from ..exactness import explained

    found = explained(method.target, request, plain.token_ids, speculative.token_ids)
    assert found is not None  # they differ
    return f"{'by rounding' if found['excused'] else 'not by rounding'}: {found['text']}"
