"""LogitRatio: a rule that accepts tokens whose logit is close to the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...settings.arguments import number
from .base import ChoiceRule, Judged
from .words import tokens_of, words

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target


class LogitRatio(ChoiceRule):
    """Accepts a drafted token if its logit is at least `ratio` times the best one, where that is positive: the
    tau-matching of HSD (arXiv 2602.12957), as its code has it: logit(x) / logit(argmax) >= ratio.

    With a `margin`, any token of a positive logit passes too where the target is unsure, which is where its two best
    logits are less than that apart (the mode "adaptive" of the code, whose margin is 2). Between two `strict` tokens,
    such as those that begin and end formulas, only the target's own choice passes, and so do these tokens themselves.

    Logits are those behind the logits pipeline. The original is greedy; above temperature 0 the target's own draw is
    accepted too [OUR]. (A survey describes the tolerance as an edit distance, which code and paper contradict.) The
    release emits the target's favourite where it has accepted another token, and goes on behind that other one; here
    the accepted token is what is emitted, so the text is what the target has read.

    The bound: an accepted token is less likely than the favourite by a factor of exp((1 - ratio) L) at most, at
    temperature 1, where L is the favourite's logit; by exp(L) at most where the margin has let it pass. It depends on
    L, so on where a model has the zero of its logits.

    NOT lossless, except at `ratio=1` with no margin. Needs no training.

    Args:
        ratio: smallest ratio (tau), above 0 and at most 1.
        margin: logits that the two best ones are apart at least where the target is sure, 0 or more; 0 turns it off.
        strict: texts of tokens that begin and end what is judged exactly, each a single token, such as `["$", "$$"]`.

    Raises:
        MMSpecError: for a value out of range; by `check`, for texts that are no single tokens.
    """

    def __init__(self, ratio: float = 0.9, margin: float = 0.0, strict: Sequence[str] = ()):
        self.ratio = number(self, ratio=ratio, above=0, highest=1)
        self.margin = number(self, margin=margin, lowest=0)
        self.strict = words(self, strict)
        self._ends: list[int] = []

    @property
    def lossless(self) -> bool:
        """True at `ratio=1` with no margin."""
        return self.ratio == 1 and self.margin == 0

    def check(self, target: Target) -> None:
        """Refuse a target in whose vocabulary the strict texts are no single tokens."""
        tokens_of(self, self.strict, target)

    def start(self, context: Context) -> None:
        """Look up the tokens of the strict texts."""
        self._ends = tokens_of(self, self.strict, context.target)

    def accept(self, at: Judged) -> Tensor:
        """Accept tokens whose logit is close to the best, outside of what is strict."""
        matches = at.tokens == at.choice
        if self.lossless:
            return matches
        best, own = at.scores.amax(-1), at.of_token(at.scores)
        close = own >= self.ratio * best
        if self.margin:
            two = at.scores.topk(2, dim=-1).values
            close |= (two[..., 0] - two[..., 1] < self.margin) & (own > 0)
        return matches | ((best > 0) & close & ~self._exactly(at))

    def _exactly(self, at: Judged) -> Tensor:
        """Return True where only the target's choice may stand, `[batch, nodes]`."""
        if not self._ends:
            return torch.zeros_like(at.tokens, dtype=torch.bool)
        assert at.answers is not None, "the walk knows the answers"
        ends = torch.isin(at.tokens, torch.tensor(self._ends, device=at.tokens.device))
        before = [sum(token in self._ends for token in answer[:-1]) for answer in at.answers()]
        above = (at.tree.ancestors & ends[:, None]).sum(-1) - ends.long()  # the node itself does not stand above
        count = above + torch.tensor(before, device=above.device)[:, None]
        return ends | (count % 2 == 1)
