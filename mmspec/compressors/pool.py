"""Pool and Conv: compressors that leave one entry for every window of a picture's grid."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from ..families.vision import Grid
from ..settings.arguments import positive
from .base import Compressed, VisualCompressor, VisualSpan, grid_of
from .token_assignment import Sources


def windows(grid: Grid, size: int, device: torch.device) -> Sources:
    """Return the means over every `size` x `size` window of every frame; windows at the edge may be smaller."""
    times = torch.arange(grid[0], device=device)[:, None, None]
    rows, columns = (torch.arange(edge, device=device) // size for edge in grid[1:])
    down, across = (math.ceil(edge / size) for edge in grid[1:])
    groups = (times * down + rows[:, None]) * across + columns
    return Sources.groups(groups.flatten(), grid[0] * down * across)


class Pool(VisualCompressor):
    """Replaces every window of a picture's grid by its mean; videos are pooled frame by frame.

    Args:
        size: edge of the windows in tokens.
    """

    settings = ("size",)

    def __init__(self, size: int = 2):
        super().__init__()
        positive(self, size=size)
        self.size = size

    def forward(self, span: VisualSpan) -> Compressed:
        """Return the mean of every window."""
        source = windows(grid_of(span, "Pool"), self.size, span.embeds.device)
        return Compressed(source.mean(span.embeds), source)


class Conv(VisualCompressor):
    """Applies a learned convolution to windows side by side, which begins as their mean; videos are compressed frame by
    frame.

    Args:
        size: edge of the windows in tokens; a picture whose edge is not a multiple of it is padded with zeros.
    """

    settings = ("size",)

    def __init__(self, size: int = 2):
        super().__init__()
        positive(self, size=size)
        self.size = size

    def attach(self, hidden: int, state: int) -> None:
        """Create the convolution's weights, which begin as a mean."""
        self.conv = nn.Conv2d(hidden, hidden, self.size, stride=self.size)
        with torch.no_grad():
            for weight in self.conv.parameters():
                nn.init.zeros_(weight)
            self.conv.weight.copy_(torch.eye(hidden)[..., None, None].expand_as(self.conv.weight) / self.size**2)

    def forward(self, span: VisualSpan) -> Compressed:
        """Return one entry for every window."""
        times, rows, columns = grid = grid_of(span, "Conv")
        embeds = span.embeds.to(self.conv.weight.dtype)
        frames = rearrange(embeds, "(time row column) size -> time size row column", time=times, row=rows)
        frames = functional.pad(frames, (0, -columns % self.size, 0, -rows % self.size))
        left = rearrange(self.conv(frames), "time size row column -> (time row column) size")
        return Compressed(left.to(span.embeds.dtype), windows(grid, self.size, span.embeds.device))
