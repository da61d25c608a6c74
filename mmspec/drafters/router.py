"""Router: what a compressor that routes shows a drafter, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..compressors import TargetView, VisualCompressor
from ..models.newest import NewestLook
from ..outcome import Scores, Verdict

if TYPE_CHECKING:
    from ..context import Context
    from ..target import Target


class Router:
    """The visual tokens of one request that its drafter sees now.

    Args:
        compressor: the compressor that chooses them.
        context: the request, whose prompt has been read.
    """

    def __init__(self, compressor: VisualCompressor, context: Context):
        self._compressor, self._look = compressor, NewestLook(context, compressor.asks)
        self._chosen = False

    def choose(self) -> Tensor | None:
        """Return which tokens of the prompt are hidden in the coming round, `[batch, length]`; None if that has not
        changed."""
        compressor, look = self._compressor, self._look
        if self._chosen and not compressor.anew:
            return None
        self._chosen = True
        return look.visual & ~compressor.route(compressor.relevance(look), look.visual)

    def observe(self, scores: Scores | None, verdict: Verdict) -> None:
        """Go on to the newest token that the target has read."""
        self._look.observe(scores, verdict)


def router_of(compressor: VisualCompressor | None, context: Context) -> Router | None:
    """Return the router of a request; None if nothing chooses, or there is nothing to choose from."""
    routes = compressor is not None and compressor.routes and context.vision is not None
    return Router(compressor, context) if routes and compressor is not None else None


class Shown(NamedTuple):
    """The visual tokens that are seen in rounds of texts that are known, for training.

    Args:
        hidden: `[batch, count, length]` True at the tokens that are not seen.
        gain: `[batch, count, length]` zeros, to be added to the scores of attention, whose gradient teaches the
            compressor; None if it learns nothing.
    """

    hidden: Tensor
    gain: Tensor | None


def shown_at(compressor: VisualCompressor | None, target: Target, view: TargetView, places: Tensor) -> Shown | None:
    """Return what is seen in rounds of texts that are known; None if nothing chooses, or there are no pictures.

    Args:
        compressor: the compressor.
        target: the model that wrote the texts.
        view: what it knows of them.
        places: `[batch, count]` the newest token that it has read, in each of these rounds.
    """
    if compressor is None or not compressor.routes or view.vision is None:
        return None
    visual = target.family.is_visual(view.request.inputs["input_ids"])[:, None]
    relevance = compressor.relevance_at(target, view, places)
    visual = visual.expand(relevance.shape)
    hidden = visual & ~compressor.route(relevance, visual)
    if not relevance.requires_grad:
        return Shown(hidden, None)
    # A row without pictures has nothing to sum up over: its zeros are those of the mask.
    least = torch.finfo(relevance.dtype).min
    gain = relevance.masked_fill(~visual, least).log_softmax(-1)
    return Shown(hidden, torch.where(visual, gain - gain.detach(), 0.0))
