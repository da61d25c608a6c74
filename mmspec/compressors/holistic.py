"""Holistic: a compressor that weighs what the text attends to, what is new in time and what stands out in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..errors import MMSpecError, shown
from ..families.vision import Grid
from ..settings.arguments import is_number, number, positive
from .asked_layers import InLayers
from .base import whole_frames
from .view import TargetView

if TYPE_CHECKING:
    from ..target import Target
    from .layout import Layout


class Holistic(InLayers):
    """Keeps the visual tokens with the largest weighted sum of three scores, with a budget for every frame (HIPPO,
    arXiv 2601.08273).

    - global: the attention of the text among the visual tokens alone, `softmax(Q_text K_video^T / sqrt d)`, the mean
      over layers, heads and words. Queries and keys are the target's own, without a mask;
    - temporal: `1 - cos(v_j^f, v_j^(f-1))` with the same place of the frame before;
    - spatial: the variance of `cos(v_j, v_k)` over the tokens k of the crop in which j is.

    Faithful: the three scores, that they are normalised within a frame and added up with weights, and that frames have
    budgets of their own. Not known of the paper, and so ours: the weights, the crops (tiles of `crop` x `crop` tokens
    of a grid that is filled up with zeros, whose cosine is 0), min-max as the norm, the first frame, whose temporal
    score is `first` behind the norm, that v is what the target reads of its tower, the text behind the video, and
    the budgets: in proportion to the mean score of a frame within `bounds`, the sum being exact. Scores that are equal
    all over a frame become 0. A picture is a video of one frame; several in a prompt are scored one by one.

    Args:
        keep: the share to keep, above 0 and at most 1; at least one token stays.
        weights: factors of the global, the temporal and the spatial score, 0 or more. Without the global one the
            target is not asked for any states.
        crop: edge of a crop, in tokens.
        first: temporal score of all tokens of the first frame, from 0 to 1.
        layers: numbers of the target's layers whose attention counts; None for all. Their entering states are kept
            while the prompt is read.
        budget, bounds, frames: how the places are divided among the frames of a video, see `MostAttended`.

    Raises:
        MMSpecError: for values out of range; in use, for layers that the target does not have, a picture whose tokens
            have no rows and columns, and with a drafter that does not hand on what the target knows.
    """

    settings = ("keep", "weights", "crop", "first", "layers", "budget", "bounds", "frames")

    def __init__(
        self,
        keep: float = 0.1,
        weights: Sequence[float] = (0.5, 0.25, 0.25),
        crop: int = 4,
        first: float = 1.0,
        layers: Sequence[int] | None = None,
        budget: str = "score",
        bounds: Sequence[float] = (0.5, 2.0),
        frames: float = 1.0,
    ):
        super().__init__(layers, keep=keep, budget=budget, bounds=bounds, frames=frames)
        given = list(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else []
        if len(given) != 3 or not all(map(is_number, given)) or min(given) < 0 or not sum(given):
            raise MMSpecError(
                f"Holistic: weights={shown(weights)} must be three numbers of 0 or more, global, temporal and spatial, "
                "and not all 0"
            )
        positive(self, crop=crop)
        self.weights = tuple(map(float, given))
        self.crop, self.first = crop, number(self, lowest=0, highest=1, first=first)

    def asked_layers(self, target: Target) -> list[int]:
        """Return the layers whose attention counts: none without a weight."""
        return super().asked_layers(target) if self.weights[0] else []

    @torch.no_grad()
    def token_scores(self, target: Target, view: TargetView, layout: Layout) -> Tensor:
        """Return the weighted sums of all visual tokens, `[batch, length]`; 0 for all else."""
        heard, found = self.heard(target, view, layout), torch.zeros(layout.visual.shape, device=layout.visual.device)
        for row, picture in layout.pictures():
            tokens, kind = layout.tokens(row, picture), layout.kinds[row][picture]
            grid = whole_frames(layout.grids[row][picture], len(tokens), kind, "Holistic")
            tokens = tokens[: grid[0] * grid[1] * grid[2]]
            found[row, tokens] = self.weighted(heard[row, tokens], view.embeds[row, tokens], grid)
        return found

    def heard(self, target: Target, view: TargetView, layout: Layout) -> Tensor:
        """Return the global scores of all visual tokens, `[batch, length]`: those of one picture sum up to 1."""
        total, layers = torch.zeros(layout.visual.shape, device=layout.visual.device), self.asked_layers(target)
        for look in self.looks(target, view):
            for picture in range(max(map(len, layout.spans))):  # of the pictures of a row
                keys, words = (torch.zeros_like(layout.visual) for _ in range(2))
                for row in (row for row, spans in enumerate(layout.spans) if picture < len(spans)):
                    keys[row, layout.tokens(row, picture)] = True
                    words[row] = layout.asked(row, picture)
                total += look.received(words, keys) * keys / len(layers)
        return total

    def weighted(self, heard: Tensor, embeds: Tensor, grid: Grid) -> Tensor:
        """Return the weighted sums of the tokens of one video, `[tokens]`.

        Args:
            heard: `[tokens]` global scores.
            embeds: `[tokens, hidden]` what the target reads of its tower.
            grid: frames, rows and columns.
        """
        seen = functional.normalize(embeds.float(), dim=-1).view(*grid, -1)
        times = rescaled(temporal(seen))
        times[0] = self.first
        parts = (rescaled(heard.view(grid)), times, rescaled(spatial(seen, self.crop)))
        return sum((weight * part for weight, part in zip(self.weights, parts, strict=True)), parts[0] * 0).flatten()


def rescaled(scores: Tensor) -> Tensor:
    """Return `[frames, rows, columns]` scores, of which every frame goes from 0 to 1; 0 where all of a frame are
    equal."""
    low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    return (scores - low) / (high - low).masked_fill(high == low, 1)


def temporal(seen: Tensor) -> Tensor:
    """Return 1 minus the cosine with the same place of the frame before, `[frames, rows, columns]`, and 1 in the first
    frame; of `[frames, rows, columns, hidden]` vectors of length 1."""
    change = torch.ones(seen.shape[:3], device=seen.device)
    change[1:] -= (seen[1:] * seen[:-1]).sum(-1)
    return change


def spatial(seen: Tensor, crop: int) -> Tensor:
    """Return the variance of the cosines with all places of the crop in which a token is, `[frames, rows, columns]`.

    Args:
        seen: `[frames, rows, columns, hidden]` vectors of length 1.
        crop: edge of a crop, in tokens. The grid is filled up with zeros to a multiple of it.
    """
    _, rows, columns, _ = seen.shape
    filled = functional.pad(seen, (0, 0, 0, -columns % crop, 0, -rows % crop))
    split = "frame (down row) (across column) size -> frame down across (row column) size"
    crops = rearrange(filled, split, row=crop, column=crop)
    spread = (crops @ crops.transpose(-1, -2)).var(-1, correction=0)
    joined = "frame down across (row column) -> frame (down row) (across column)"
    return rearrange(spread, joined, row=crop, column=crop)[:, :rows, :columns]
