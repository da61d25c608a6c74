"""Compressors that keep the tokens that the target makes most of, of a picture or frame by frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import MMSpecError, shown
from ..settings.arguments import is_number, number, one_of
from .base import Compressed, VisualCompressor, VisualSpan, whole_frames
from .budgets import apportioned, even, evenly_spaced
from .token_assignment import Sources

BUDGETS = ("all", "even", "score")


class MostAttended(VisualCompressor):
    """Keeps a share of a picture's tokens at their positions, those that receive the most attention; which attention is
    meant, or what else counts, says a subclass, see `VisualCompressor.token_scores`.

    A picture is one frame. Of a video with N tokens `K = keep N` stay, rounded, and at least one; the budget says how
    they are divided among its frames. A subclass that lets a user choose that names it in its `settings`.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.
        budget: `all`: the tokens of all frames compete for the K places; `even`: every frame has as many places as
            any other; `score`: a frame has places in proportion to the mean score of its tokens.
        bounds: with `score`, the smallest and the largest budget of a frame, as multiples of the average.
        frames: the share of a video's frames, evenly spaced, from which tokens are taken at all.

    Raises:
        MMSpecError: for a share out of range, an unknown budget, bounds that do not enclose 1, fewer frames than tokens
            to keep; in use, with a drafter that does not hand on what the target knows, and for a video whose tokens
            are not arranged in frames, unless all compete.
    """

    settings: tuple[str, ...] = ("keep",)
    needs_attention = True

    def __init__(
        self, keep: float, budget: str = "all", bounds: Sequence[float] = (0.5, 2.0), frames: float = 1.0
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.keep = number(self, above=0, highest=1, keep=keep)
        self.budget = one_of(self, BUDGETS, budget=budget)
        pair = list(bounds) if isinstance(bounds, Sequence) and not isinstance(bounds, str) else []
        if len(pair) != 2 or not all(map(is_number, pair)) or not 0 <= pair[0] <= 1 <= pair[1]:
            raise MMSpecError(f"{name}: bounds={shown(bounds)} must be two numbers, from 0 to 1 and 1 or more")
        self.bounds = (float(pair[0]), float(pair[1]))
        self.frames = number(self, above=0, highest=1, frames=frames)
        if self.keep > self.frames:
            raise MMSpecError(
                f"{name}: keep={keep} of the tokens do not fit in frames={frames} of the frames; give more frames"
            )

    def forward(self, span: VisualSpan) -> Compressed:
        """Keep the tokens that count most."""
        if span.attention is None:
            raise MMSpecError(
                f"{type(self).__name__} needs the target's attention, which this drafter does not read; use Prune, or "
                "a drafter on the target's states such as DreamDrafter"
            )
        index = self.kept(span, span.attention, max(1, round(self.keep * len(span))))
        return Compressed(span.embeds[index], Sources.some(index, len(span)))

    def kept(self, span: VisualSpan, scores: Tensor, count: int) -> Tensor:
        """Return the numbers of the tokens that stay, at most `[count]` in reading order."""
        if span.kind != "video" or (self.budget == "all" and self.frames == 1):
            return self.choose(scores, count)
        grid = whole_frames(span.grid, len(span), span.kind, type(self).__name__)
        numbers = torch.arange(math.prod(grid), device=scores.device).view(grid[0], -1)
        if self.frames < 1:
            numbers = numbers[evenly_spaced(max(1, round(self.frames * len(numbers))), len(numbers), scores.device)]
        count = min(count, numbers.numel())
        if self.budget == "all":
            return numbers.flatten()[self.choose(scores[numbers].flatten(), count)]
        if self.budget == "even":
            budgets = even(len(numbers), count)
        else:
            floor = scores.min().clamp(max=0)  # scores below 0 are counted from the lowest one
            budgets = apportioned((scores[numbers] - floor).mean(1), count, numbers.shape[1], self.bounds)
        left = [one[self.choose(scores[one], some)] for one, some in zip(numbers, budgets, strict=True) if some]
        return torch.cat(left)

    def choose(self, attention: Tensor, count: int) -> Tensor:
        """Return the numbers of the tokens with the most attention, `[count]` in reading order; among equals the
        first."""
        return torch.sort(attention, descending=True, stable=True).indices[:count].sort().values


class FeatureGuided(MostAttended):
    """Keeps the visual tokens that receive the most attention in the target's last layer, at their positions (DREAM,
    arXiv 2505.19201).

    Faithful: the layer, the mean, the share. Ours: the paper does not say which tokens pay the attention; here it is
    the text of the prompt behind the picture, averaged over heads and tokens, so that training and decoding choose
    alike.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.

    Raises:
        MMSpecError: for a share out of range; in use, with a drafter that does not hand on what the target knows.
    """

    def __init__(self, keep: float = 0.75):
        super().__init__(keep)
