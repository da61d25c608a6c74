"""VisualRelevance: a rule that is strict about what is seen, and lenient about all else (LVSpec)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ...models.states import LAST
from ...settings.arguments import number, positive, whole_number
from .base import ChoiceRule, Judged
from .words import tokens_of, words

if TYPE_CHECKING:
    from ...context import Context
    from ...target import Target


class VisualRelevance(ChoiceRule):
    """Accepts other tokens than the target's choice where they have little to do with the picture or video (LVSpec,
    arXiv 2604.05650).

    The relevance of a drafted token is the mean of its `nearest` largest cosines between the target's state at it and
    the target's states at the visual tokens of the prompt. Tokens of high relevance are accepted where the target
    chooses them too, or chooses them a few places away; all others where the target finds them likely enough.

    Faithful: relevance and the ten nearest, strict and lenient tokens, the tolerance for shifted places. The rest is
    not public, and ours: states are those behind the final norm; a token is relevant above the `loosened` quantile of
    all drafted so far in its row, this round's among them; the bound of likelihood; that a place counts on the same
    path of a tree; `strict` words. A row without pictures is judged exactly.

    NOT lossless, except at `loosened=0` with no shift. Needs no training.

    Args:
        loosened: share of the tokens, those of least relevance, that are judged leniently, from 0 to 1 (the paper's
            lambda).
        shift: places that a relevant token may be away from where the target has it; 0 for none.
        floor: share of the likeliest token's probability that a lenient token has at least, from 0 to 1; 0 accepts any.
        nearest: visual tokens whose cosines count.
        strict: texts of tokens that are always judged exactly, each a single token, such as `[" not"]`.

    Raises:
        MMSpecError: for a value out of range; by `check`, for texts that are no single tokens.
    """

    def __init__(
        self,
        loosened: float = 0.7,
        shift: int = 2,
        floor: float = 0.05,
        nearest: int = 10,
        strict: Sequence[str] = (),
    ):
        self.loosened = number(self, loosened=loosened, lowest=0, highest=1)
        self.floor = number(self, floor=floor, lowest=0, highest=1)
        self.shift = whole_number(self, shift=shift, lowest=0)
        positive(self, nearest=nearest)
        self.nearest, self.strict = nearest, words(self, strict)
        self._exact: list[int] = []

    @property
    def lossless(self) -> bool:
        """True where nothing is loosened and no token may stand elsewhere."""
        return self.loosened == 0 and self.shift == 0

    def feature_layers(self, target: Target) -> tuple[int, ...]:
        """Return the state behind the final norm."""
        return () if self.lossless else (LAST,)

    def check(self, target: Target) -> None:
        """Refuse a target in whose vocabulary the strict texts are no single tokens."""
        tokens_of(self, self.strict, target)

    def start(self, context: Context) -> None:
        """Look up the tokens of the strict texts, and keep the directions of the visual tokens' states."""
        self._exact = tokens_of(self, self.strict, context.target)
        visual = context.target.family.is_visual(context.request.inputs["input_ids"])
        visual &= torch.arange(visual.shape[1], device=visual.device) < context.lengths[:, None]
        self._visual, self._sees = visual, visual.any(-1)
        self._drafted = torch.zeros(len(visual), 0, device=visual.device)
        if not self.lossless:
            self._directions = functional.normalize(context.features[LAST].float(), dim=-1)

    def accept(self, at: Judged) -> Tensor:
        """Accept what the target chooses, here or nearby, and lenient tokens that are likely enough."""
        chosen = at.tokens == at.choice
        if self.lossless:
            return chosen
        likely = at.of_token(at.scores) >= at.scores.amax(-1) + (math.log(self.floor) if self.floor else -math.inf)
        passing = (likely & ~self._relevant(at)) | self._placed_nearby(at)
        exactly = torch.isin(at.tokens, torch.tensor(self._exact, dtype=torch.long, device=at.tokens.device))
        return chosen | (passing & ~exactly & self._sees[:, None])

    def relevance(self, states: Tensor) -> Tensor:
        """Return the relevance of tokens, `[batch, nodes]`, from the states at them, `[batch, nodes, hidden]`; NaN in
        rows without visual tokens."""
        cosines = functional.normalize(states.float(), dim=-1) @ self._directions.mT
        cosines = cosines.masked_fill(~self._visual[:, None], -math.inf)
        best = cosines.topk(min(self.nearest, cosines.shape[-1]), dim=-1).values
        found = best > -math.inf
        return best.masked_fill(~found, 0).sum(-1) / found.sum(-1)

    def _relevant(self, at: Judged) -> Tensor:
        """Return True for tokens that are among the most relevant so far, `[batch, nodes]`."""
        relevance = self.relevance(at.states[LAST])
        real = at.tree.depth > 0
        if at.tree.valid is not None:
            real = real & at.tree.valid
        self._drafted = torch.cat([self._drafted, relevance.masked_fill(~real, math.nan)], dim=1)
        if self.loosened == 0:
            return torch.ones_like(real)
        return relevance > self._drafted.nanquantile(self.loosened, dim=1, keepdim=True)

    def _placed_nearby(self, at: Judged) -> Tensor:
        """Return True for tokens that the target chooses at most `shift` places away on their path, `[batch, nodes]`.

        A choice stands one place behind its node.
        """
        tree = at.tree
        same_path = tree.ancestors | tree.ancestors.mT
        if tree.valid is not None:
            same_path = same_path & tree.valid[:, None]
        apart = (tree.depth[:, None] + 1 - tree.depth[..., None]).abs()
        return (same_path & (apart <= self.shift) & (at.choices[:, None] == at.tokens[..., None])).any(-1)
