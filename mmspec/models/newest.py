"""NewestLook: what the newest token that the target has read looks at, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..outcome import Scores, Verdict
from .attention import newest_attention
from .slots import pick

if TYPE_CHECKING:
    from ..context import Context
    from .model import Model


def deepest(target: Model) -> int:
    """Return the number of the target's last layer, and so of the feature that enters it."""
    return len(target.family.layers) - 1


class NewestLook:
    """The newest committed token of every row of a request, and its attention in one layer of the target.

    Only what is committed is looked at, so whatever follows from it is known before the round is drafted.

    Attributes:
        context: the request.
        visual: `[batch, length]` True at the tokens of media in the prompt.
        state: `[batch, 1, hidden]` the state of these tokens that enters the layer.

    Args:
        context: the request, whose prompt has been read; the state that enters the layer is among its features.
        layer: number of the layer, None for the last one; `LAST` for the states behind the final norm, which pay no
            attention.
    """

    def __init__(self, context: Context, layer: int | None = None):
        self.context, self._layer = context, deepest(context.target) if layer is None else layer
        self.visual = context.target.family.is_visual(context.request.inputs["input_ids"])
        states = context.features[self._layer]
        last = torch.tensor(context.request.lengths, device=states.device) - 1
        self.state = pick(states, last[:, None])

    def observe(self, scores: Scores | None, verdict: Verdict) -> None:
        """Go on to the last token of the accepted path; a round that was settled without the target changes nothing."""
        if scores is not None:
            self.state = pick(scores.features[self._layer], verdict.last)

    def attention(self) -> Tensor:
        """Return the attention of these tokens, averaged over the heads, `[batch, longest]`: a row sums to one."""
        context = self.context
        return newest_attention(context.target, self._layer, self.state, context).mean(1)

    def on_media(self) -> Tensor:
        """Return the attention that falls on each token of the prompt that belongs to a picture, a video or a sound,
        `[batch, length]`; 0 at all others."""
        weights = self.attention()
        width = min(self.visual.shape[1], weights.shape[1])
        found = torch.zeros(self.visual.shape, dtype=weights.dtype, device=weights.device)
        found[:, :width] = weights[:, :width]
        return found * self.visual
