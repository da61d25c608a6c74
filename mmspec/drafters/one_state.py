"""OneStateDrafter: drafters that begin every round with the target's newest state, and keep no cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..models.slots import pick
from ..models.states import LAST
from ..outcome import Scores, Verdict
from ..tree import DraftTree
from .step import StepDrafter

if TYPE_CHECKING:
    from ..context import Context


class OneStateDrafter(StepDrafter):
    """A drafter that reads h, the target's last state after the final norm, at the newest token that has one: the token
    before the root, which came from that state and has none yet.

    A subclass finds it in `_state`, `[batch, 1, hidden]`, and the target's embedding of tokens in `_embed`; it
    implements `expand_root`, `expand` and `unroll`. The arguments are those of `StepDrafter`.
    """

    feature_layers = (LAST,)

    def start(self, context: Context) -> None:
        """Take the state of the last token of every prompt."""
        super().start(context)
        states = context.features[LAST]
        last = torch.tensor(context.request.lengths, device=states.device) - 1
        self._state = pick(states, last[:, None])
        self._embed = self.target.family.embedder()

    def observe(self, tree: DraftTree, scores: Scores | None, verdict: Verdict) -> None:
        """Take the state of the last accepted token."""
        super().observe(tree, scores, verdict)
        assert scores is not None, f"{type(self).__name__} reads states of the target, so that it is always asked"
        self._state = pick(scores.features[LAST], verdict.last)
