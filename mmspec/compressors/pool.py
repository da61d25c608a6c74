"""Pool and Conv: one entry for every window of a picture's grid."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ..arguments import positive
from .base import Compressed, VisualCompressor, VisualSpan, grid_of
from .source import Sources


def windows(grid: tuple[int, int], size: int, device: torch.device) -> Sources:
    """The mean over every `size` x `size` window of a grid; windows at the edge may be smaller."""
    rows, columns = (torch.arange(edge, device=device) // size for edge in grid)
    across = math.ceil(grid[1] / size)
    return Sources.groups((rows[:, None] * across + columns).flatten(), math.ceil(grid[0] / size) * across)


class Pool(VisualCompressor):
    """The mean of every window of the grid.

    Args:
        size: edge of the windows in tokens.
    """

    settings = ("size",)

    def __init__(self, size: int = 2):
        super().__init__()
        positive(self, size=size)
        self.size = size

    def forward(self, span: VisualSpan) -> Compressed:
        source = windows(grid_of(span, "Pool"), self.size, span.embeds.device)
        return Compressed(source.mean(span.embeds), source)


class Conv(VisualCompressor):
    """A learned convolution with windows side by side, which begins as their mean.

    Args:
        size: edge of the windows in tokens; a picture whose edge is no multiple is padded with zeros.
    """

    settings = ("size",)

    def __init__(self, size: int = 2):
        super().__init__()
        positive(self, size=size)
        self.size = size

    def attach(self, hidden: int, state: int) -> None:
        self.conv = nn.Conv2d(hidden, hidden, self.size, stride=self.size)
        with torch.no_grad():
            nn.init.zeros_(self.conv.bias)
            self.conv.weight.copy_(torch.eye(hidden)[..., None, None].expand_as(self.conv.weight) / self.size**2)

    def forward(self, span: VisualSpan) -> Compressed:
        rows, columns = grid_of(span, "Conv")
        picture = span.embeds.to(self.conv.weight.dtype).T.reshape(1, -1, rows, columns)
        picture = functional.pad(picture, (0, -columns % self.size, 0, -rows % self.size))
        source = windows((rows, columns), self.size, span.embeds.device)
        return Compressed(self.conv(picture).flatten(2)[0].T.to(span.embeds.dtype), source)
