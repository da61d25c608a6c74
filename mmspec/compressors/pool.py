"""Pool and Conv: one entry for every window of a picture's grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..trees.base import positive
from .base import Compressed, VisualCompressor, VisualSpan, grid_of


def windows(grid: tuple[int, int], size: int, like: Tensor) -> Tensor:
    """`[windows, tokens]` weights of the mean over every `size` x `size` window; those at the edge may be smaller."""
    rows, columns = grid
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    window = (row // size) * math.ceil(columns / size) + column // size
    members = functional.one_hot(window.flatten()).T.to(like)
    return members / members.sum(-1, keepdim=True)


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
        source = windows(grid_of(span, "Pool"), self.size, span.embeds)
        return Compressed(source @ span.embeds, source)


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
        source = windows((rows, columns), self.size, span.embeds)
        return Compressed(self.conv(picture).flatten(2)[0].T.to(span.embeds.dtype), source)
