"""SinkAware: a compressor that does not take for relevant what is attended to wherever it stands, whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..families.vision import Grid
from ..settings.arguments import number
from .base import whole_frames
from .top_p import TopPUniform
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target
    from .layout import Layout

DEVIATION = 1.4826
"""Median absolute deviations of a normal distribution in its standard deviation."""

FEWEST = 8
"""Frames, or places, among which one can be told to be an outlier."""


class SinkAware(TopPUniform):
    """`TopPUniform` without attention sinks: visual tokens that are attended to for where they stand.

    ParallelVLM (arXiv 2603.19610) reports that of the tenth of a video's tokens with the most attention 21 % stand in 4
    % of its frames, the first and the last ones; that is the reason for this compressor. The rest is ours, and of no
    paper. `z_i(v)` is the logarithm of the attention of word i on token v, the mean over layers and heads, as a
    number of standard deviations from the median of the video's tokens, where 1.4826 median absolute deviations are
    one. A sink is

    - a token with `z_i(v)` above `threshold` for a share `always` of the words or more: whatever is asked;
    - every token of a frame whose level is, among all frames, above `threshold` as well. The level is the median over
      its tokens of the mean of z over the words, so what happens in a part of a frame does not make it one;
    - every token at a place of the raster (row and column) whose level over all frames is: what happens there for a
      time does not make it one, but what never moves may be taken for one.

    The last two are looked for among eight frames or places and more. A sink's attention counts as 0: the first stage
    takes none, and its share `mass` is of the attention that is left. The second stage may take it as any other.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.
        mass: share of the attention, without the sinks', that the first stage carries, from 0 to 1.
        threshold: robust standard deviations above the median from which on a token, a frame or a place is an outlier,
            above 0.
        always: share of the words for which a token has to be an outlier, above 0 and at most 1.
        layers: numbers of the target's layers whose attention counts; None for all. Their entering states are kept
            while the prompt is read.
        budget, bounds, frames: how the places are divided among the frames of a video, see `MostAttended`.

    Raises:
        MMSpecError: for values out of range; in use, for layers that the target does not have, and with a drafter that
            does not hand on what the target knows.
    """

    settings = ("keep", "mass", "threshold", "always", "layers", "budget", "bounds", "frames")

    def __init__(
        self,
        keep: float = 0.1,
        mass: float = 0.4,
        threshold: float = 3.0,
        always: float = 0.9,
        layers: Sequence[int] | None = None,
        budget: str = "all",
        bounds: Sequence[float] = (0.5, 2.0),
        frames: float = 1.0,
    ):
        super().__init__(keep, mass, layers, budget, bounds, frames)
        self.threshold = number(self, above=0, threshold=threshold)
        self.always = number(self, above=0, highest=1, always=always)

    @torch.no_grad()
    def token_scores(self, target: Target, view: TargetView, layout: Layout) -> Tensor:
        """Return the attention that every visual token receives, `[batch, length]`, and 0 at sinks and all else."""
        by_word = sum(
            torch.cat([weights for weights, _ in look.by_word(layout.words)], dim=1)
            for look in self.looks(target, view)
        )
        assert isinstance(by_word, Tensor)  # of one layer or more
        found = torch.zeros(layout.visual.shape, device=layout.visual.device)
        for row, picture in layout.pictures():
            tokens, kind = layout.tokens(row, picture), layout.kinds[row][picture]
            words = layout.asked(row, picture)[layout.words[row]].nonzero()[:, 0]  # among the words of the row
            attention = by_word[row, words][:, tokens] / len(self.asked_layers(target))
            grid = layout.grids[row][picture]
            known = None if grid is None else whole_frames(grid, len(tokens), kind, "SinkAware")
            found[row, tokens] = attention.mean(0).masked_fill(self.sinks(attention, known), 0)
        return found

    def sinks(self, attention: Tensor, grid: Grid | None = None) -> Tensor:
        """Return True at the sinks of a picture or a video, `[tokens]`.

        Args:
            attention: `[words, tokens]` of every word to every token.
            grid: frames, rows and columns; None if they are not known, and then frames and places are not looked at.
        """
        away = deviations(attention.float().clamp(min=torch.finfo(torch.float32).tiny).log())
        found = (away > self.threshold).float().mean(0) >= self.always - 1e-6
        if grid is None:
            return found
        frames, rows, columns = grid
        inside = found[: frames * rows * columns].view(frames, -1)  # a view: what is set here is set in `found`
        levels = away.mean(0)[: frames * rows * columns].view(frames, -1)
        for along in (1, 0):  # frames, whose level is over their places, and places
            level = middle(levels, along)
            if len(level) >= FEWEST and levels.shape[along] > 1:
                inside |= (deviations(level) > self.threshold).unsqueeze(along)
        return found


def middle(values: Tensor, dim: int = -1) -> Tensor:
    """Return the median, which of an even number is the mean of the two in the middle."""
    ordered, count = values.sort(dim).values, values.shape[dim]
    return (ordered.select(dim, (count - 1) // 2) + ordered.select(dim, count // 2)) / 2


def deviations(values: Tensor) -> Tensor:
    """Return robust standard deviations from the median, along the last dimension; 0 where half of all are equal."""
    away = values - middle(values)[..., None]
    scale = DEVIATION * middle(away.abs())[..., None]
    return away / scale.masked_fill(scale == 0, torch.inf)
