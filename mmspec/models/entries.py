"""ChosenEntries: some of the committed entries of a cache, the same ones in all layers or others for every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .transfer import to_device


@dataclass(frozen=True)
class ChosenEntries:
    """The entries that a branch of a session sees.

    Args:
        layers: for each layer of the cache, `[batch, heads, width]` indices of entries, in ascending order, of which
            those behind a row's number of entries mean nothing. `heads` is the number of heads with keys of their own,
            or 1 where all see the same.
        lengths: number of entries per row, the same for all heads and layers.
    """

    layers: list[Tensor]
    lengths: list[int]

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], layers: int, device: torch.device) -> ChosenEntries:
        """Return the same entries for all heads of all layers.

        Args:
            rows: per row, the indices of its entries.
            layers: number of layers.
            device: where the indices are kept.
        """
        lengths = [len(row) for row in rows]
        width = max(lengths)
        index = to_device([[*row, *[0] * (width - len(row))] for row in rows], device)
        return cls([index[:, None]] * layers, lengths)

    def with_rows(self, lengths: Sequence[int]) -> ChosenEntries:
        """Return the same with further rows below, which see all of their entries.

        Args:
            lengths: the number of entries of each of them.
        """
        width = max(*self.lengths, *lengths)
        layers = []
        for index in self.layers:
            grown = torch.arange(width, device=index.device).repeat(len(self.lengths) + len(lengths), index.shape[1], 1)
            grown[: len(index), :, : index.shape[2]] = index
            layers.append(grown)
        return ChosenEntries(layers, [*self.lengths, *lengths])
