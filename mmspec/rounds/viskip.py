"""VisualAttention: a gate that lets the drafter rest while the target looks at the picture (ViSkip)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..models.newest import NewestLook, deepest
from ..outcome import Scores, Verdict
from ..settings.arguments import number
from .gates import RoundGate

if TYPE_CHECKING:
    from ..context import Context
    from ..models.model import Model


class VisualAttention(RoundGate):
    """Skips the draft where the target attends to the picture (ViSkip of the MMSpec benchmark, arXiv 2603.14989).

    What is read off a picture is hard to guess for a small drafter. The newest token that the target has read tells
    whether that is going on: the share of its attention in the last layer that falls on visual tokens, averaged over
    the heads. From `threshold` on, one plain step of the target is taken, and the next round is decided anew.

    Faithful: the layer, the query, the mean over the heads, the threshold of 0.35, the plain step. Ours: the attention
    is computed again for one query from the cached keys, so models need no eager attention; a batch is drafted or not
    as a whole, by the mean share of the rows that have not ended; videos and sounds count as pictures.

    Lossless: the share follows from committed tokens alone. Needs no training.

    Args:
        threshold: the share from which on a round is a plain step, above 0; above 1 every round is drafted.

    Attributes:
        share: the share before the newest round; 0 for a request without pictures.

    Raises:
        MMSpecError: for a threshold of 0 or less.
    """

    def __init__(self, threshold: float = 0.35):
        self.threshold = number(self, threshold=threshold, above=0)
        self.renew()

    def renew(self) -> None:
        """Begin anew for another request."""
        self._look: NewestLook | None = None
        self.share = 0.0

    def feature_layers(self, target: Model) -> tuple[int, ...]:
        """Return the state that enters the last layer."""
        return (deepest(target),)

    def start(self, context: Context) -> None:
        """Look at the prompt's last token, if there are pictures."""
        self._context = context
        self._look = None if context.vision is None else NewestLook(context)

    @torch.inference_mode()
    def drafts(self) -> bool:
        """Return True where less than `threshold` of the attention falls on visual tokens."""
        if self._look is None:
            return True
        shares = self._look.on_media().sum(-1).tolist()
        rows = [share for share, active in zip(shares, self._context.active, strict=True) if active]
        self.share = sum(rows) / max(len(rows), 1)
        return self.share < self.threshold

    def observe(self, scores: Scores | None, verdict: Verdict) -> None:
        """Go on to the newest token that the target has read."""
        if self._look is not None:
            self._look.observe(scores, verdict)
