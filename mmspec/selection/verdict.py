"""Verdict: several models answer, those in consensus are heard, and the large model decides (SV)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..drafters import Drafter
from ..errors import MMSpecError
from ..inputs import Request, prepare
from ..settings.arguments import one_of, whole_number
from .consensus import closest, disagreement
from .member import Member, Over, with_words
from .outcome import Selected, Selector, one_row
from .panel import large_answer, members_of

if TYPE_CHECKING:
    from ..target import Target

REASON = "\nThink step by step, and say at the end what the answer is."
JUDGE = (
    "\nOther models have proposed answers to this question. They may be wrong.\n{blocks}\n"
    "Decide by the picture. Write the final answer into \\boxed{{}}."
)
_BOX = re.compile(r"\\boxed\{(.*?)\}", re.DOTALL)


class Verdict(Selector):
    """Speculative Verdict (SV, arXiv 2510.20812): every member answers, every member scores every answer in one pass,
    the answers closest to consensus are kept, and one call of the large model decides.

    Faithful: the consensus (`disagreement`), three answers kept, reasoning of the kept members alone, one call with the
    picture, the question and blocks of reasoning and answer, the box. Ours: likelihoods are about the answer's
    tokens, as the paper says; its code also counts the question (`over="turn"`). `decide="choose"`: the large
    model writes nothing, it reads the kept answers in one pass and takes the one that it finds likeliest, which any
    model can do, also one that was never taught to judge. Words of the instructions are our own.

    NOT lossless. Needs no training.

    Args:
        target: the large model.
        members: two or more, see `Member`.
        keep: number of answers that the verdict is about.
        decide: `"write"`, the paper's call, or `"choose"`.
        reason: the instruction with which kept members are asked to reason before the verdict; None not to ask them.
            Without effect with `decide="choose"`.
        over: what likelihoods are about, see `Member.nll`.
        drafter: what drafts for the large model's call; its text stays what it is.

    Raises:
        MMSpecError: for fewer than two members, or a value out of range.
    """

    def __init__(
        self,
        target: Target,
        members: Sequence[Any],
        keep: int = 3,
        decide: Literal["write", "choose"] = "write",
        reason: str | None = REASON,
        over: Over = "answer",
        drafter: Drafter | None = None,
    ):
        super().__init__(target)
        self.members = members_of(members)
        if len(self.members) < 2:
            raise MMSpecError(f"Verdict: members has {len(self.members)} models, and consensus takes two at least")
        self.keep = whole_number(self, lowest=1, keep=keep)
        self.decide = one_of(self, ("write", "choose"), decide=decide)
        self.over = one_of(self, ("answer", "turn"), over=over)
        self.reason, self.drafter = reason, drafter

    def likelihoods(self, request: Request, answers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return `[members, answers]` mean negative log-likelihoods, by one pass of each member.

        Args:
            request: the question.
            answers: in the large model's tokens.
        """
        rows = [member.nll(request, answers, self.target, self.over) for member in self.members]
        return torch.tensor(rows, dtype=torch.float64)

    def answer(self, request: Request, max_new_tokens: int = 256, seed: int = 0) -> Selected:
        """Answer a request of one row."""
        one_row(request, self)
        large, found = self.target, Selected("", [], "verdict")
        with found.stage("answers"):
            written = [member.write(request, large, max_new_tokens) for member in self.members]
        found.tokens["members"] = sum(map(len, written))
        texts = [large.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
        found.answers = dict(zip([member.name for member in self.members], texts, strict=True))
        heard = [place for place, ids in enumerate(written) if ids]
        if not heard:
            large_answer(large, self.drafter, request, max_new_tokens, found)
            return found
        with found.stage("consensus"):
            nll = self.likelihoods(request, [written[place] for place in heard])[heard]
            scores = disagreement(nll).tolist()
        found.scores = {self.members[place].name: score for place, score in zip(heard, scores, strict=True)}
        kept = [heard[place] for place in closest(scores, self.keep, seed)]
        found.kept = [self.members[place].name for place in kept]
        if self.decide == "choose":
            self._choose(request, [written[place] for place in kept], found)
            return found
        if request.conversations is None:
            raise MMSpecError("Verdict writes to the large model: ask with prompt= and images=, not inputs=")
        blocks = [texts[place] for place in kept]
        if self.reason is not None:
            blocks = self._reasons(request, kept, max_new_tokens, found)
        said = "\n".join(f"Model {number}: {block}" for number, block in enumerate(blocks, start=1))
        judged = prepare(large, messages=[with_words(request.conversations[0], JUDGE.format(blocks=said))])
        large_answer(large, self.drafter, judged, max_new_tokens, found, by="verdict")
        boxed = _BOX.findall(found.text)
        if boxed:
            found.text = boxed[-1].strip()
        return found

    def _reasons(self, request: Request, kept: Sequence[int], longest: int, found: Selected) -> list[str]:
        """Return what the kept members say when they reason, each with its answer."""
        large = self.target
        asked = prepare(large, messages=[with_words((request.conversations or [])[0], self.reason or "")])
        blocks = []
        with found.stage("reasons"):
            for place in kept:
                member = self.members[place]
                ids = member.write(asked, large, longest)
                found.tokens["members"] += len(ids)
                found.reasons[member.name] = said = large.tokenizer.decode(ids, skip_special_tokens=True)
                blocks.append(f"{said}\nProposed answer: {found.answers[member.name]}")
        return blocks

    def _choose(self, request: Request, answers: Sequence[list[int]], found: Selected) -> None:
        """Take the answer that the large model finds likeliest, in one pass."""
        judge = Member(self.target, "verdict")
        with found.stage("verdict"):
            nll = judge.nll(request, answers, self.target, self.over)
        best = min(range(len(answers)), key=nll.__getitem__)
        found.passes += 1
        found.by, found.token_ids = found.kept[best], list(answers[best])
        found.text = found.answers[found.by]
