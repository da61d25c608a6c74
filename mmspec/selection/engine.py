"""SelectionEngine: a selection among answers as one side of a comparison, `mmspec bench engine=verdict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from ..errors import MMSpecError
from ..evaluation.engines import Answer, Engine, timed
from ..inputs import Request
from ..loading import load_drafter
from .answerability import Answerability
from .cascade import Cascade
from .member import Member
from .outcome import Selector
from .verdict import Verdict


@dataclass(eq=False)
class SelectionEngine(Engine):
    """An engine that answers with several models, the target among them. A subclass makes its `selector`.

    Never lossless: `mmspec bench` shows the accuracy beside the speed, where the task knows what is right. Passes are
    those in which the target wrote; an answer that it did not write came without any. The drafter of the method drafts
    for the target, when it writes.

    Raises:
        MMSpecError: for sampling, a tree or a verifier: members write greedy text by themselves.
    """

    selector: Selector = field(init=False)

    def __post_init__(self) -> None:
        self.lossless, self.exact, self.one_row = False, False, True
        self.budget = None if self.drafter is None else self.drafter.max_nodes
        name = type(self).__name__
        if self.sampling.temperature > 0:
            raise MMSpecError(f"{name} compares greedy answers: set temperature=0")
        if self.tree is not None or self.verifier is not None:
            raise MMSpecError(f"{name} has a drafter for the target at most: leave tree=default and verifier=auto")
        self.selector = self.make()

    def make(self) -> Selector:
        """Return what selects."""
        raise NotImplementedError

    def answer(self, request: Request, seed: int) -> Answer:
        """Answer a request of one row."""
        wall, found = timed(self.target.device, partial(self._select, request, seed))
        ids, length, wrote = found.token_ids, len(found.token_ids), bool(found.rounds)
        ended = length < self.max_new_tokens
        if ended and not wrote:  # members' answers are kept without the end token that they wrote
            ids, length = [*ids, *self.target.eos_token_ids[:1]], length + 1
        return Answer(
            token_ids=[ids],
            finish=["eos" if ended else "length"],
            wall=wall,
            seconds={"selection": wall},
            first_tokens=[min(1, length) if wrote else length],
            passes=len(found.rounds),
            rounds=found.rounds,
        )

    def _select(self, request: Request, seed: int) -> Any:
        return self.selector.answer(request, self.max_new_tokens, seed)

    def member(self, name: str) -> Member:
        """Return a member by the name of its weights, see `mmspec.load_drafter`."""
        model: Any = load_drafter(name, self.target)
        return Member(model, name)


@dataclass(eq=False)
class VerdictEngine(SelectionEngine):
    """SV as an engine, see `Verdict`.

    Args:
        members: names of small models, see `mmspec.load_drafter`; `"large"` is the target itself.
        keep, decide, reason, over: see `Verdict`; reason false leaves the reasoning out.
    """

    members: Sequence[str] = ()
    keep: int = 3
    decide: Literal["write", "choose"] = "choose"
    reason: bool = True
    over: Literal["answer", "turn"] = "answer"

    def make(self) -> Selector:
        """Return the verdict."""
        made = [Member(self.target, name) if name == "large" else self.member(name) for name in self.members]
        whether: dict[str, Any] = {} if self.reason else {"reason": None}
        return Verdict(self.target, made, self.keep, self.decide, over=self.over, drafter=self.drafter, **whether)


@dataclass(eq=False)
class CascadeEngine(SelectionEngine):
    """The cascade of SpecEyes as an engine, see `Cascade`.

    Args:
        small: name of the model that answers first, see `mmspec.load_drafter`.
        threshold, of: see `Answerability`.
    """

    small: str = "tiny/draft_model"
    threshold: float = 0.98
    of: Literal["min", "mean", "lowest"] = "min"

    def make(self) -> Selector:
        """Return the cascade."""
        return Cascade(self.target, self.member(self.small), Answerability(self.threshold, self.of), self.drafter)
