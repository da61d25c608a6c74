"""Cascade: the small model answers, and the large one where that answer is not sure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..drafters import Drafter, DraftModelDrafter
from ..inputs import Request
from ..settings.arguments import instance
from .answerability import Answerability
from .member import Member
from .outcome import Selected, Selector, one_row
from .panel import large_answer, members_of

if TYPE_CHECKING:
    from ..target import Target


class Cascade(Selector):
    """A small model answers first; its answer is kept if a gate finds it answerable, and the large model answers
    otherwise (SpecEyes, arXiv 2603.23483, whose large model may use tools; here it writes).

    Faithful: the token score, its three summaries, the sigmoid, the threshold. Ours: the logits of the answer come from
    one more pass of the small model over it.

    NOT lossless. Needs no training.

    Args:
        target: the large model.
        small: who answers first, see `Member`.
        gate: decides whether the answer is kept.
        drafter: what drafts for the large model; its text stays what it is.

    Raises:
        MMSpecError: for objects of other classes.
    """

    def __init__(
        self,
        target: Target,
        small: Member | Target | DraftModelDrafter,
        gate: Answerability | None = None,
        drafter: Drafter | None = None,
    ):
        super().__init__(target)
        (self.small,) = members_of([small])
        self.gate = instance(self, Answerability, "Answerability()", gate=gate or Answerability())
        self.drafter = drafter

    def answer(self, request: Request, max_new_tokens: int = 256, seed: int = 0) -> Selected:
        """Answer a request of one row."""
        one_row(request, self)
        small, found = self.small, Selected("", [], self.small.name)
        with found.stage("answers"):
            ids = small.write(request, self.target, max_new_tokens)
        found.tokens["members"] = len(ids)
        with found.stage("gate"):
            sure = 0.0
            if ids:
                own = small.tokens_of(ids, self.target)
                sure = self.gate.probability(small.logits(request, [own], self.target)[0])
        found.scores[small.name] = sure
        found.token_ids, found.text = ids, self.target.tokenizer.decode(ids, skip_special_tokens=True)
        found.answers[small.name] = found.text
        if not (ids and self.gate.keeps(sure)):
            large_answer(self.target, self.drafter, request, max_new_tokens, found)
        return found
