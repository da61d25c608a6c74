"""UVPrune: a compressor that keeps what the target's early layers bring closer to the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import MMSpecError
from ..models.states import left
from ..settings.arguments import positive
from .guided import MostAttended
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target
    from .layout import Layout

SHARE = 0.15
"""The part of the target's layers that is asked by default."""


class UVPrune(MostAttended):
    """Keeps the visual tokens whose states come closest to those of the text in the target's first layers, whatever
    they were before (UV-Prune of ParallelVLM, arXiv 2603.19610).

    With `S_ij^l = cos(V_i^l, X_j^l)` of visual token i and text token j behind layer l, the score is
    `sum_j sum_l (S_ij^l - S_ij^(l-1))` over the layers l = 1 .. L. The sum over the layers telescopes to
    `sum_j (S_ij^L - S_ij^0)`, and that over the text is one product with the sum of the text's vectors: so the states
    that enter the first layer and those that leave layer L are all that is kept, and neither attention nor a matrix
    of visual by text tokens is computed.

    Faithful: the score and that the largest are kept. Not known of the paper, and so ours: the number of layers (15 %
    of them, two or more), and the text, which is all that stands behind the video; a share in place of a number of
    tokens, and budgets of frames if they are wanted.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.
        depth: L, the number of layers; None for 15 % of the target's, at least 2.
        words: the last so many text tokens behind the video are meant; None for all of them.
        budget, bounds, frames: how the places are divided among the frames of a video, see `MostAttended`.

    Raises:
        MMSpecError: for values out of range; in use, for more layers than the target has, and with a drafter that does
            not hand on what the target knows.
    """

    settings = ("keep", "depth", "words", "budget", "bounds", "frames")

    def __init__(
        self,
        keep: float = 0.1,
        depth: int | None = None,
        words: int | None = None,
        budget: str = "all",
        bounds: Sequence[float] = (0.5, 2.0),
        frames: float = 1.0,
    ):
        super().__init__(keep, budget, bounds, frames)
        positive(self, **{name: n for name, n in (("depth", depth), ("words", words)) if n is not None})
        self.depth, self.words = depth, words

    def meet(self, target: Target) -> None:
        """Refuse more layers than there are."""
        total = len(target.family.layers)
        if self.depth is not None and self.depth > total:
            raise MMSpecError(
                f"UVPrune: depth={self.depth} is more than the {total} layers of {type(target.model).__name__}"
            )

    def deepest(self, target: Target) -> int:
        """Return L, the number of layers that are looked through."""
        total = len(target.family.layers)
        return min(max(2, round(SHARE * total)), total) if self.depth is None else self.depth

    def layers_seen(self, target: Target) -> list[int]:
        """Return the states that enter the first layer, and those that leave layer L."""
        return [0, left(self.deepest(target) - 1)]

    @torch.no_grad()
    def token_scores(self, target: Target, view: TargetView, layout: Layout) -> Tensor:
        """Return the change of all visual tokens, `[batch, length]`; 0 for all else."""
        before, after = (view.features[layer] for layer in self.layers_seen(target))
        found = torch.zeros(layout.visual.shape, device=layout.visual.device)
        for row, picture in layout.pictures():
            tokens = layout.tokens(row, picture)
            words = layout.asked(row, picture).nonzero()[:, 0]
            words = words if self.words is None else words[-self.words :]
            found[row, tokens] = likeness(after[row], tokens, words) - likeness(before[row], tokens, words)
        return found


def likeness(states: Tensor, tokens: Tensor, words: Tensor) -> Tensor:
    """Return the sum over words of the cosines of each token with them, `[tokens]`.

    Args:
        states: `[length, hidden]`.
        tokens, words: their places.
    """
    seen, said = (functional.normalize(states[places].float(), dim=-1) for places in (tokens, words))
    return seen @ said.sum(0)
